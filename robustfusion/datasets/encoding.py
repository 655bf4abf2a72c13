"""Frozen features, computed once: the loop that runs encoders over posts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion.datasets.cache import FeatureCache
from robustfusion.datasets.post_dataset import PostDataset

Encoder = Callable[[list[Any]], Tensor]


class EncodedPosts(NamedTuple):
    """Features of posts: aligned lists, (N, D) features and (N,) masks by modality.

    What :func:`encode` returns; see the example there.
    """

    ids: list[str]
    labels: Tensor
    features: dict[str, Tensor]
    available: dict[str, Tensor]


def encode(
    dataset: PostDataset,
    encoders: Mapping[str, Encoder],
    *,
    cache: FeatureCache | None = None,
    keys: Mapping[str, str] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> EncodedPosts:
    """Run frozen encoders over posts once.

    An encoder sees available posts only; the features of a missing modality are zeros. Equal
    files are encoded once. With a cache, so are files that any earlier run has encoded.

    Args:
        dataset: the posts; its ``image_transform`` belongs to the preprocessing in the key.
        encoders: modality to a function from a list of B images or texts to (B, D) features.
        cache: where to look rows up and keep them.
        keys: modality to :meth:`FeatureCache.key`, needed with a cache.
        batch_size: posts for one call of an encoder.
        progress: show a progress bar (tqdm).

    Returns:
        Features in the order of the data set.

    Raises:
        ValueError: for a cache without a key for each encoder, an encoder in training mode, or
            one that returns another shape than (B, D).

    Example:
        >>> import tempfile
        >>> from robustfusion.datasets import MVSA, encode, make_posts
        >>> posts = MVSA(make_posts(tempfile.mkdtemp(), n=20))
        >>> def lengths(texts):
        ...     return torch.tensor([[float(len(text)), text.count(" ")] for text in texts])
        >>> encoded = encode(posts, {"text": lengths})
        >>> encoded.features["text"].shape, encoded.available["text"].all().item()
        (torch.Size([20, 2]), True)
        >>> encoded.ids == posts.ids
        True
    """
    for modality, encoder in encoders.items():
        if modality not in ("image", "text"):
            raise ValueError(f'encoders must be named "image" or "text", got {modality!r}')
        if isinstance(encoder, nn.Module) and encoder.training:
            raise ValueError(f'encoders["{modality}"] is in training mode: call .eval() first')
        if cache is not None and modality not in (keys or {}):
            raise ValueError(f'keys must have an entry for "{modality}" when a cache is given')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    features: dict[str, Tensor] = {}
    available: dict[str, Tensor] = {}
    for modality, encoder in encoders.items():
        digests = [dataset.content_digest(index, modality) for index in range(len(dataset))]
        if None in digests and dataset.on_bad != "missing":
            dataset[digests.index(None)]  # raises, and says which post is bad and why
        first: dict[str, int] = {}  # content to the first post that has it
        for index, digest in enumerate(digests):
            if digest is not None:
                first.setdefault(digest, index)
        key = (keys or {}).get(modality, "")
        rows = cache.lookup(key, first) if cache is not None else {}
        todo = {digest: index for digest, index in first.items() if digest not in rows}
        batches = _encode_batches(dataset, modality, encoder, todo, batch_size, progress)
        unsaved: dict[str, NDArray[Any]] = {}
        for batch in batches:
            rows.update(batch)
            unsaved.update(batch)
            # Written in pieces, so that an interrupted run has little to repeat.
            if cache is not None and len(unsaved) >= 1024:
                cache.store(key, list(unsaved), np.stack(list(unsaved.values())))
                unsaved.clear()
        if cache is not None and unsaved:
            cache.store(key, list(unsaved), np.stack(list(unsaved.values())))
        if not rows:
            raise ValueError(f'no post has the modality "{modality}"')
        zeros = np.zeros_like(next(iter(rows.values())))
        table = [zeros if digest is None else rows[digest] for digest in digests]
        features[modality] = torch.from_numpy(np.stack(table))
        available[modality] = torch.tensor([digest is not None for digest in digests])
    return EncodedPosts(dataset.ids, torch.tensor(dataset.labels), features, available)


def _encode_batches(
    dataset: PostDataset,
    modality: str,
    encoder: Encoder,
    todo: Mapping[str, int],
    batch_size: int,
    progress: bool,
) -> Iterator[dict[str, NDArray[Any]]]:
    digests = list(todo)
    starts: Iterable[int] = range(0, len(digests), batch_size)
    for start in _with_progress(starts, modality) if progress else starts:
        part = digests[start : start + batch_size]
        output = _run(encoder, [dataset[todo[d]]["inputs"][modality] for d in part], modality)
        yield dict(zip(part, output, strict=True))


def _run(encoder: Encoder, inputs: list[Any], modality: str) -> NDArray[Any]:
    with torch.no_grad():
        output = encoder(inputs)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f'encoders["{modality}"] must return ({len(inputs)}, D), got {got}')
    if output.dtype == torch.bfloat16:  # numpy has no bfloat16
        output = output.float()
    array: NDArray[Any] = output.detach().cpu().numpy()
    return array


def _with_progress(starts: Iterable[int], modality: str) -> Iterable[int]:
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise ImportError('progress needs tqdm: pip install "robustfusion[report]"') from error
    bar: Iterable[int] = tqdm(starts, desc=f"encode {modality}", unit="batch", leave=False)
    return bar
