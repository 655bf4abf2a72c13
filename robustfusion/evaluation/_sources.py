"""The inputs of a model under each disruption, each input read and encoded once where possible.

Cached features, and the features that a model's own encoders make, are small enough to keep: every
condition is then put together from them. For any other model the data are asked for every
condition, because inputs such as padded tokens cannot be put together from different batches.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion._tree import leaves, map_tensors
from robustfusion.disruption import CachedFeatures, Disruption
from robustfusion.disruption.cached import take_rows
from robustfusion.disruption.protocol import Setting
from robustfusion.evaluation.data import EvaluationData, Rows

# The states that a disruption can put an input into.
INTACT, CORRUPTED, MISSING, PARTIAL = range(4)
States: TypeAlias = NDArray[np.int8]  # (N, M)
Part: TypeAlias = tuple[Rows, dict[str, Any], dict[str, Tensor]]  # rows, inputs, available

CHECKED_ROWS = 4  # rows that are also evaluated by themselves: any of them shows a dependence


def check_by_themselves(few: Tensor, all_rows: Tensor, model: nn.Module) -> None:
    """Raise unless a few rows give the same result by themselves as in their batch."""
    together = all_rows[: len(few)]
    # Kernels for another batch size differ in the last digits, dependent rows in the first.
    scale = float(together.abs().max().nan_to_num())
    if bool(torch.isclose(few, together, 1e-3, 1e-3 * scale, equal_nan=True).all()):
        return
    training = parts_in_training_mode(model)
    advice = f"put {', '.join(training)} into evaluation mode: eval() did not reach it. If"
    raise ValueError(
        "the model's answers for a sample depend on the other samples of its batch, or on chance: "
        f"is a part still in training mode? {advice if training else 'None was found. If'} "
        "the model is meant to be so, pass batch_size=1, which evaluates each sample by itself"
    )


def parts_in_training_mode(model: nn.Module) -> list[str]:
    """Return the names of the parts that are in training mode after ``model.eval()``.

    These are modules that refuse it, and modules in an attribute that is a list or a mapping.
    """
    names = [name for name, part in model.named_modules() if part.training and name]
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            pairs: Any = value.items() if isinstance(value, Mapping) else []
            pairs = enumerate(value) if isinstance(value, list | tuple) else pairs
            for key, part in pairs if attribute != "_modules" else []:
                if isinstance(part, nn.Module) and part.training:
                    names.append(f"{prefix}.{attribute}[{key!r}]".removeprefix("."))
    return names


def corrupts_one(condition: Disruption) -> bool:
    """Return whether a condition corrupts one named modality, and nothing else."""
    return condition.setting == "C" and isinstance(condition.modality, str)


class InputSource:
    """Gives inputs to a model, and keeps the features of each distinct input where it can."""

    def __init__(self, model: nn.Module, data: EvaluationData, batch_size: int) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size
        has_encoders = callable(getattr(model, "encode", None)) and hasattr(model, "head")
        self.encode: Any = getattr(model, "encode", None) if has_encoders else None
        is_plain = isinstance(data, CachedFeatures) and all(
            isinstance(values, Tensor) for values in data.features.values()
        )
        self.keeps = has_encoders or is_plain
        # The inputs that are given out go to the head where the features are encoded already.
        self.call: Any = model.head if has_encoders else model
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.observed: NDArray[np.bool_] = np.ones((len(data.ids), len(data.modalities)), bool)
        self.labels: NDArray[Any] = np.zeros(len(data.ids), np.int64)
        # Features (N, ..., D), and which rows of them are known, by modality and state.
        self._features: dict[tuple[str, int], Tensor] = {}
        self._known: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self._hashes: dict[tuple[str, int], Any] = {}
        self._is_first_seed = True

    def intact(self) -> Iterator[Part]:
        """Yield all rows undisrupted, and note their labels and what was observed."""
        clean = Disruption(self.data.modalities, strategy="clean")
        parts = self._read_intact(clean, np.arange(len(self.data.ids)))
        if not self.keeps:
            yield from parts
            return
        rows = np.concatenate([rows for rows, *_ in parts])
        yield from self.disrupted(clean, np.full(self.observed.shape, INTACT, np.int8), rows)

    def _read_intact(self, clean: Disruption, every_row: Rows) -> Iterator[Part]:
        for rows, inputs, available in self._batches(clean, every_row, are_labels_new=True):
            for column, name in enumerate(self.data.modalities):
                seen = available[name].cpu().numpy()
                self.observed[rows, column] = seen
                self._hash(name, inputs[name])
                if self.keeps:
                    self._store(rows, name, INTACT, inputs[name], seen)
            yield rows, inputs, available

    def prepare(self, seed: int, states: Mapping[Disruption, States], *, first: bool) -> None:
        """Read and encode every input once that some condition of the seed corrupts."""
        names, self._is_first_seed = self.data.modalities, first
        if not self.keeps:
            return
        if self.data.fresh_corruption:
            for key in [key for key in self._known if key[1] != INTACT]:
                del self._known[key], self._features[key]
        hashed = {
            condition.modality: table == CORRUPTED
            for condition, table in states.items()
            if first and corrupts_one(condition)
        }
        kinds: tuple[tuple[int, Setting], ...] = ((CORRUPTED, "C"), (PARTIAL, "P"))
        for state, setting in kinds:
            needed = np.logical_or.reduce([table == state for table in states.values()])
            for column, name in enumerate(names):
                needed[:, column] &= ~self._known.get((name, state), np.False_)
            rows = np.flatnonzero(needed.any(1))
            if not len(rows):
                continue
            whole = Disruption(
                names,
                setting=setting,
                strategy="independent",
                rate=tuple(needed.any(0).astype(float).tolist()),
                seed=seed,
            )
            for part, inputs, _ in self._batches(whole, rows):
                for column, name in enumerate(names):
                    if state == CORRUPTED and name in hashed:
                        self._hash(name, inputs[name], hashed[name][part, column])
                    self._store(part, name, state, inputs[name], needed[part, column])

    def disrupted(self, disruption: Disruption, states: States, rows: Rows) -> Iterator[Part]:
        """Yield some rows under a disruption, which puts all rows into these states."""
        if self.keeps:
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                yield part, *self._assembled(part, states[part])
            return
        is_hashed = self._is_first_seed and corrupts_one(disruption)
        for part, inputs, available in self._batches(disruption, rows):
            for column, name in enumerate(self.data.modalities):
                if is_hashed:
                    self._hash(name, inputs[name], states[part, column] == CORRUPTED)
            yield part, inputs, available

    def digest(self) -> str:
        """Return a digest of the inputs, intact and corrupted, in the order they came in."""
        whole = b"".join(digest.digest() for _, digest in sorted(self._hashes.items()))
        return hashlib.blake2b(whole, digest_size=16).hexdigest()

    def _batches(
        self, disruption: Disruption, rows: Rows, are_labels_new: bool = False
    ) -> Iterator[Part]:
        """Yield the batches of the data on the model's device, with the rows they hold."""
        start = 0
        for batch in self.data.batches(disruption, rows, self.batch_size):
            available = {m: mask.to(self.device) for m, mask in batch["available"].items()}
            inputs = {
                name: map_tensors(lambda x: x.to(self.device), value)
                for name, value in batch["inputs"].items()
            }
            count = len(next(iter(available.values())))
            part, start = rows[start : start + count], start + count
            if start > len(rows):
                break
            if are_labels_new:
                self._note_labels(part, torch.as_tensor(batch["label"]).cpu())
            yield part, inputs, available
        if start != len(rows):
            raise ValueError(f"data must give {len(rows)} rows, as many as asked for, got {start}")

    def _note_labels(self, rows: Rows, labels: Tensor) -> None:
        """Keep classes as integers (N,), labels and numbers as (N, C)."""
        if labels.ndim > 1 or labels.is_floating_point():
            labels = labels.float().reshape(len(labels), -1)
            if self.labels.ndim == 1:
                self.labels = np.full((len(self.labels), labels.shape[1]), np.nan, np.float32)
        self.labels[rows] = labels.numpy()

    def _hash(self, name: str, value: Any, chosen: NDArray[np.bool_] | None = None) -> None:
        """Add some rows of a modality to its digests, one for each leaf of a nested input."""
        if chosen is not None:
            if not chosen.any():
                return
            value = take_rows(value, torch.from_numpy(chosen).nonzero()[:, 0])
        for index, leaf in enumerate(leaves(value)):
            new = hashlib.blake2b(digest_size=16)
            _hash_leaf(self._hashes.setdefault((name, index), new), leaf)

    def _store(
        self, rows: Rows, name: str, state: int, value: Any, wanted: NDArray[np.bool_]
    ) -> None:
        """Encode and keep the wanted rows; they are available, others may be placeholders."""
        picked = torch.from_numpy(wanted).nonzero()[:, 0]
        if not len(picked):
            return
        key, raw = (name, state), take_rows(value, picked)
        values = self._encoded(name, raw)
        if key not in self._features:
            if self.encode is not None and state == INTACT and len(picked) > 1:
                few = torch.arange(min(CHECKED_ROWS, len(picked) - 1))
                check_by_themselves(self._encoded(name, take_rows(raw, few)), values, self.model)
            self._features[key] = values.new_zeros((len(self.data.ids), *values.shape[1:]))
            self._known[key] = np.zeros(len(self.data.ids), np.bool_)
        self._features[key][torch.from_numpy(rows[wanted]).to(values.device)] = values
        self._known[key][rows[wanted]] = True

    def _encoded(self, name: str, value: Any) -> Any:
        if self.encode is None:
            return value
        mask = torch.ones(len(next(leaves(value))), dtype=torch.bool, device=self.device)
        return self.encode({name: value}, {name: mask})[0][name]

    def _assembled(
        self, rows: Rows, states: States
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the features of some rows in their states, zero where missing, and the masks."""
        inputs, available = {}, {}
        for column, name in enumerate(self.data.modalities):
            mask = self.observed[rows, column] & (states[:, column] != MISSING)
            tables = {state: x for (m, state), x in self._features.items() if m == name}
            if not tables:
                raise ValueError(f"data must hold {name} in some row, got it in none")
            first = next(iter(tables.values()))
            features = first.new_zeros((len(rows), *first.shape[1:]))
            for state, table in tables.items():
                target = np.flatnonzero(mask & (states[:, column] == state))
                origin = torch.from_numpy(rows[target]).to(table.device)
                features[torch.from_numpy(target).to(table.device)] = table[origin]
            inputs[name] = features
            available[name] = torch.from_numpy(mask).to(features.device)
        return inputs, available


def _hash_leaf(digest: Any, leaf: Any) -> None:
    if isinstance(leaf, Tensor):
        plain = leaf.detach().cpu().contiguous()
        digest.update(plain.view(torch.uint8).numpy() if plain.ndim else repr(plain).encode())
    elif isinstance(leaf, list | tuple):
        for entry in leaf:
            _hash_leaf(digest, entry)
    elif isinstance(leaf, str):
        digest.update(leaf.encode("utf-8", "surrogatepass") + b"\0")
    elif hasattr(leaf, "tobytes"):
        digest.update(leaf.tobytes())
