"""Posts as tensors, computed once: clean and corrupted, by frozen encoders or only prepared."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed, nn

from robustfusion._optional import optional
from robustfusion._tree import leaves, map_leaves, map_tensors
from robustfusion._validation import check_keys, check_positive
from robustfusion.datasets.cache import FeatureCache
from robustfusion.disruption import placeholder, sample_generator
from robustfusion.disruption.cached import shape_of
from robustfusion.disruption.cached_features import CachedFeatures
from robustfusion.disruption.data import Corruption

Encoder = Callable[[list[Any]], Any]

# Part of each cache key. Raise it whenever the readers return other contents for a file.
_READING = 3
# Rows collected before they are written: an interrupted run repeats at most so many.
_PIECE = 1024


class Encoding(NamedTuple):
    """The way from inputs of one modality to tensors: a preparation and an optional network.

    Args:
        prepare: function from a list of B inputs to a batch, a tensor (B, ...) or a mapping of
            tensors: an image transform and a stack, a tokenizer, any function.
        network: a frozen encoder, from that batch to features (B, D), run in evaluation mode
            where its parameters are. Without one the prepared batch itself is the result, for an
            encoder that is to be trained; its rows must have one shape.
        name: description of ``prepare`` in words, with versions. With a ``cache``, the name and
            the network's weights identify the features.

    Example:
        >>> import torch
        >>> from robustfusion.datasets import Encoding
        >>> def lengths(texts):
        ...     return torch.tensor([[float(len(text)), text.count(" ")] for text in texts])
        >>> encoding = Encoding(lengths, torch.nn.Linear(2, 4).eval(), "letters and blanks")
        >>> encoding(["so happy", "meh"]).shape
        torch.Size([2, 4])
    """

    prepare: Callable[[list[Any]], Any]
    network: nn.Module | None = None
    name: str = ""

    def __call__(self, inputs: list[Any]) -> Any:
        """Return the batch of a list of inputs, on the CPU."""
        batch = self.prepare(inputs)
        if self.network is not None:
            state = chain(self.network.parameters(), self.network.buffers())
            device = next((tensor.device for tensor in state), torch.device("cpu"))
            batch = self.network(map_tensors(lambda leaf: leaf.to(device), batch))
        return map_tensors(_plain, batch)


@torch.no_grad()
def encode(
    dataset: Any,
    encoders: Mapping[str, Encoding | Encoder],
    *,
    corruptions: Mapping[str, Corruption] | None = None,
    seeds: Sequence[int] = (),
    cache: FeatureCache | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> CachedFeatures:
    """Make tensors of posts once, clean and under disruption seeds.

    Each post is read and decoded once. Its inputs are then corrupted under every seed, as by
    :class:`~robustfusion.disruption.DisruptedDataset`, and encoded. An encoder sees available
    inputs only; a missing one has a row of zeros. Equal files are encoded once. With a cache,
    files that an earlier run encoded are not encoded again, and an interrupted run resumes. Where
    torch.distributed is initialized, as under ``torchrun`` or accelerate, each rank then encodes
    its share of the posts into the cache and reads all of them.

    Args:
        dataset: a :class:`PostDataset`, whose ``image_transform``, say to one size, is applied
            before the corruption, or anything with ``ids``, ``labels``, ``class_names``, a length
            and mappings with "inputs" as items.
        encoders: for each modality an :class:`Encoding`, or a function from a list of B inputs
            to (B, D) features or another batch of tensors.
        corruptions: for each modality that may be corrupted, a function of (input, generator),
            such as ``ImageCorruption()``.
        seeds: disruption seeds; each gives one corrupted version.
        cache: stores the features of every modality whose :class:`Encoding` has a ``name``.
        batch_size: inputs for one call of an encoder.
        progress: show a progress bar (tqdm) on a terminal.

    Returns:
        The data for :func:`~robustfusion.evaluation.robustness_report`, in the order of the data
        set; train on its ``features`` and ``available``.

    Raises:
        ValueError: for an encoder in training mode, one with a network and no name where a cache
            is given, or one that does not return a row for each input.

    Example:
        >>> import torch
        >>> from robustfusion.datasets import encode
        >>> from robustfusion.disruption import TextCorruption
        >>> class Posts(list):  # or MVSA(...), TumEmo(...), PostTable(...)
        ...     ids, labels, class_names = ["a", "b"], [0, 1], ("sad", "happy")
        >>> image, texts = torch.zeros(3, 8, 8), ("rain again", "so very happy")
        >>> posts = Posts({"inputs": {"text": text, "image": image}} for text in texts)
        >>> encoders = {"text": lambda texts: torch.tensor([[len(t)] for t in texts]).float()}
        >>> encoders["image"] = torch.stack
        >>> masked = {"text": TextCorruption(severity=1.0)}
        >>> data = encode(posts, encoders, corruptions=masked, seeds=(0, 1))
        >>> data.features["text"][:, 0], data.corrupted["text"][0][:, 0]
        (tensor([10., 13.]), tensor([13., 20.]))
        >>> data.features["image"].shape
        torch.Size([2, 3, 8, 8])
    """
    check_positive(batch_size, "batch_size")
    columns = _columns(dataset, encoders, corruptions or {}, seeds, cache)
    rank, ranks = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
    shared = [column for column in columns if column.cache is not None]
    options = (batch_size, progress and rank == 0)
    if ranks > 1 and shared:
        # Share by row number: what is left to do differs by the time at which a rank looks.
        _fill(dataset, shared, range(rank, len(dataset), ranks), *options)
        distributed.barrier()
    _fill(dataset, columns, range(len(dataset)), *options)
    clean = [column for column in columns if column.seed is None]
    return CachedFeatures(
        {column.name: column.result() for column in clean},
        torch.tensor(list(dataset.labels)),
        ids=dataset.ids,
        corrupted={
            name: {c.seed: c.result() for c in columns if c.name == name and c.seed is not None}
            for name in (corruptions or {} if seeds else ())
        },
        available={column.name: torch.from_numpy(column.available) for column in clean},
        class_names=dataset.class_names,
    )


@dataclass
class _Column:
    """One modality of all posts, clean or under one seed, filled as rows become known."""

    name: str
    encoding: Encoding
    digests: list[str | None]
    cache: FeatureCache | None
    corruption: Corruption | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.cache is not None:
            how = f"{self.encoding.name}, reading {_READING}"
            if self.seed is not None:
                how += f", {self.corruption!r}, {self.seed}"
            self.key = FeatureCache.key(self.name, self.encoding.network or "", how)
        self.rows: dict[str, list[int]] = {}  # by digest: equal contents are encoded once
        for row, digest in enumerate(self.digests):
            if digest is not None:
                self.rows.setdefault(digest, []).append(row)
        self.todo = set(self.rows)
        self.available = np.array([digest is not None for digest in self.digests], dtype=np.bool_)
        self.table: Any = None
        self.unsaved: list[str] = []

    def encode(self, rows: Iterable[int], samples: list[dict[str, Any]]) -> None:
        """Encode the rows of some samples that are neither known nor missing."""
        wanted: dict[str, Any] = {}
        for row, sample in zip(rows, samples, strict=True):
            digest = self.digests[row]
            if digest is None or digest not in self.todo:
                continue
            if not sample.get("available", {}).get(self.name, True):
                self.todo.discard(digest)
                self.available[self.rows[digest]] = False
                continue
            value = sample["inputs"][self.name]
            if self.corruption is not None and self.seed is not None:
                noise = sample_generator(self.seed, sample["id"], self.name)
                value = self.corruption(value, noise)
            wanted[digest] = value
        if wanted:
            self.fill(list(wanted), self._checked(self.encoding(list(wanted.values())), wanted))
            self.unsaved += wanted

    def _checked(self, batch: Any, wanted: Any) -> Any:
        where, rows = f'encoders["{self.name}"]', len(wanted)
        for leaf in leaves(batch):
            if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != rows:
                raise ValueError(f"{where} must return ({rows}, ...), got {shape_of(leaf)}")
        vectors = isinstance(batch, Tensor) and batch.ndim == 2 and batch.is_floating_point()
        if not vectors and (self.cache is not None or self.encoding.network is not None):
            raise ValueError(f"{where} must return ({rows}, D) features, got {shape_of(batch)}")
        return batch

    def fill(self, digests: list[str], batch: Any) -> None:
        """Write the rows of some contents into the table."""
        if self.table is None:
            total = len(self.digests)
            self.table = placeholder(
                map_tensors(lambda leaf: leaf[:1].expand(total, *leaf.shape[1:]), batch)
            )
        source = [row for row, digest in enumerate(digests) for _ in self.rows[digest]]
        target = [row for digest in digests for row in self.rows[digest]]

        def put(table: Tensor, rows: Tensor) -> None:
            if rows.shape[1:] != table.shape[1:] or rows.dtype != table.dtype:
                raise ValueError(
                    f'encoders["{self.name}"] must give rows of one shape, got '
                    f"{tuple(rows.shape[1:])} after {tuple(table.shape[1:])}"
                )
            table[target] = rows[source]

        map_leaves(put, self.table, batch)
        self.todo.difference_update(digests)

    def load(self) -> None:
        """Fill the rows that the cache has."""
        if self.cache is not None:
            for digests, block in self.cache.stream(self.key, self.todo):
                self.fill(digests, torch.from_numpy(block))

    def save(self, *, least: int) -> None:
        """Write new rows to the cache, if there are at least so many."""
        if self.cache is not None and len(self.unsaved) >= least:
            rows = [self.rows[digest][0] for digest in self.unsaved]
            self.cache.store(self.key, self.unsaved, self.table[rows].numpy())
            self.unsaved = []

    def result(self) -> Any:
        """Return the whole column."""
        if self.table is None:
            raise ValueError(f'no post has the modality "{self.name}"')
        return self.table


def _columns(
    dataset: Any,
    encoders: Mapping[str, Encoding | Encoder],
    corruptions: Mapping[str, Corruption],
    seeds: Sequence[int],
    cache: FeatureCache | None,
) -> list[_Column]:
    check_keys(corruptions, encoders, "corruptions")
    columns = []
    for name, encoder in encoders.items():
        encoding = encoder if isinstance(encoder, Encoding) else Encoding(encoder)
        for module in (encoding.prepare, encoding.network):
            if isinstance(module, nn.Module) and module.training:
                raise ValueError(f'encoders["{name}"] is in training mode: call .eval() first')
        if cache is not None and encoding.network is not None and not encoding.name:
            raise ValueError(f'encoders["{name}"] must have a name when a cache is given')
        clean = _digests(dataset, name, cached=cache is not None)
        # A corruption depends on the post's id, too.
        own = [d and f"{d}/{post_id}" for d, post_id in zip(clean, dataset.ids, strict=True)]
        store = cache if encoding.name else None
        columns.append(_Column(name, encoding, clean, store))
        if name in corruptions:
            columns += [
                _Column(name, encoding, own, store, corruptions[name], seed) for seed in seeds
            ]
    return columns


def _digests(dataset: Any, name: str, *, cached: bool) -> list[str | None]:
    read = getattr(dataset, "content_digest", None)
    # Digests of files that were not read yet cost a reading, and only a cache makes up for it.
    if read is None or not (cached or getattr(dataset, "verify", True)):
        return [f"row {row}" for row in range(len(dataset))]
    digests: list[str | None] = [read(row, name) for row in range(len(dataset))]
    if None in digests and getattr(dataset, "on_bad", "missing") != "missing":
        dataset[digests.index(None)]  # raises an error that says which post is bad and why
    return digests


def _fill(
    dataset: Any,
    columns: list[_Column],
    share: Iterable[int],
    batch_size: int,
    progress: bool,
) -> None:
    """Fill rows from the cache, then read the posts for which any column lacks a row."""
    for column in columns:
        column.load()
    rows = [row for row in share if any(column.digests[row] in column.todo for column in columns)]
    starts: Iterable[int] = range(0, len(rows), batch_size)
    if progress and rows:
        bar = optional("tqdm.auto", "progress needs tqdm", "report").tqdm
        starts = bar(starts, desc="encode", unit="batch", leave=False, disable=None)
    for start in starts:
        part = rows[start : start + batch_size]
        samples = [{"id": dataset.ids[row], **dataset[row]} for row in part]
        for column in columns:
            column.encode(part, samples)
            column.save(least=_PIECE)
    for column in columns:
        column.save(least=1)


def _plain(leaf: Tensor) -> Tensor:
    """Return a tensor on the CPU, half precision as float32 because NumPy has no bfloat16."""
    half = leaf.dtype in (torch.bfloat16, torch.float16)
    return (leaf.float() if half else leaf).detach().cpu()
