"""Rows of the data under a disruption, ready for the model: each input read once if it can be.

Two roads lead from the data to the model. Features that the data hold, or that the model's own
encoders make, are few enough to keep: each input of a modality is read and encoded once, and every
condition is put together from these rows. For any other model the data make every condition anew.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion._tree import leaves, map_leaves, map_tensors
from robustfusion.disruption import Condition, Disruption
from robustfusion.disruption.protocol import Setting
from robustfusion.evaluation.data import CachedFeatures, EvaluationData, Rows

# What is done to a modality of a row.
INTACT, CORRUPTED, DISCARDED, PARTIAL = range(4)
States: TypeAlias = NDArray[np.int8]  # (N, M)
Part: TypeAlias = tuple[Rows, dict[str, Any], dict[str, Tensor]]  # rows, inputs, available

CHECKED_ROWS = 4


class Digest:
    """One digest of the inputs of each modality, in the order in which they are given."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Take in some rows of a modality."""
        for place, leaf in enumerate(leaves(value)):
            new = hashlib.blake2b(digest_size=16)
            _hash_leaf(self._parts.setdefault((name, place), new), leaf)

    def hexdigest(self) -> str:
        """Of everything so far."""
        whole = b"".join(self._parts[key].digest() for key in sorted(self._parts))
        return hashlib.blake2b(whole, digest_size=16).hexdigest()


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


def take_rows(value: Any, rows: Rows) -> Any:
    """Some rows of a nested batch."""

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[torch.from_numpy(rows).to(leaf.device)]
        return [leaf[row] for row in rows.tolist()]

    return map_leaves(taken, value)


def check_alone(alone: Tensor, together: Tensor) -> None:
    """Raise unless the first rows come out as they did among all."""
    together = together[: len(alone)]
    scale = float(together.abs().max().nan_to_num())
    if not bool(torch.isclose(alone, together, 1e-3, 1e-3 * scale, equal_nan=True).all()):
        raise ValueError(
            "the model's answers for a row depend on the other rows of its batch, or on chance: "
            "pass reuse=False to evaluate every condition in full"
        )


class Streamed:
    """The data make every condition; the model takes it as it comes."""

    def __init__(self, model: nn.Module, data: EvaluationData, batch_size: int) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size
        first = next((p for p in model.parameters()), torch.empty(0))
        self.device = first.device
        self.digest = Digest()
        self.observed: NDArray[np.bool_] = np.ones((len(data.ids), len(data.modalities)), bool)
        self.labels: NDArray[np.int16] = np.zeros(len(data.ids), np.int16)

    def intact(self) -> Iterator[Part]:
        """All rows undisrupted; labels and what was observed are known afterwards."""
        total, start, names = len(self.data.ids), 0, self.data.modalities
        labels = []
        nothing = Disruption(names, disruption_rate=0.0)
        for batch in self.data.batches(nothing, np.arange(total), self.batch_size):
            inputs, available = self._moved(batch)
            labels.append(torch.as_tensor(batch["label"]).cpu().long().numpy())
            rows = np.arange(start, start + len(labels[-1]))
            start += len(rows)
            if start > total:
                break
            self.labels[rows] = labels[-1]
            for column, name in enumerate(names):
                self.observed[rows, column] = available[name].cpu().numpy()
                self.digest.add(name, inputs[name])
            yield rows, *self._kept(rows, INTACT, inputs, available)
        if start != total:
            raise ValueError(f"data must give {total} rows, as many as it has ids, got {start}")
        self.range = (int(min(x.min() for x in labels)), int(max(x.max() for x in labels)))

    def prepare(self, seed: int, states: Mapping[Condition, States], *, first: bool) -> None:
        """Get ready for the conditions of a seed."""
        self.first = first

    def disrupted(self, disruption: Disruption, states: States, rows: Rows) -> Iterator[Part]:
        """Some rows under a disruption."""
        hashed = self.first and disruption.strategy == "fixed" and disruption.setting == "C"
        start = 0
        for batch in self.data.batches(disruption, rows, self.batch_size):
            inputs, available = self._moved(batch)
            at = rows[start : start + len(next(iter(available.values())))]
            start += len(at)
            if hashed:
                for column, name in enumerate(self.data.modalities):
                    found = np.flatnonzero(states[at, column] == CORRUPTED)
                    if len(found):
                        self.digest.add(name, take_rows(inputs[name], found))
            yield at, inputs, available

    def call(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
        """The model's output."""
        return self.model(inputs, available)

    def _kept(
        self, rows: Rows, state: int, inputs: dict[str, Any], available: dict[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return inputs, available

    def _moved(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        inputs = {
            name: map_tensors(lambda x: x.to(self.device), value)
            for name, value in batch["inputs"].items()
        }
        return inputs, {name: mask.to(self.device) for name, mask in batch["available"].items()}


class Stored(Streamed):
    """Features of each distinct input are kept: by modality and what was done to the input."""

    def __init__(self, model: nn.Module, data: EvaluationData, batch_size: int) -> None:
        super().__init__(model, data, batch_size)
        self.encode: Callable[..., Any] | None = getattr(model, "encode", None)
        self.features: dict[tuple[str, int], Tensor] = {}
        self.have: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self.seed: int | None = None

    def call(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
        """The output of the head alone, where there are encoders."""
        if self.encode is None:
            return self.model(inputs, available)
        head: Any = self.model.head
        return head(inputs, available)

    def prepare(self, seed: int, states: Mapping[Condition, States], *, first: bool) -> None:
        """Read every row that is corrupted in some condition of this seed, once."""
        names = self.data.modalities
        if seed != self.seed and self.data.fresh_corruption:
            for key in [key for key in self.have if key[1] != INTACT]:
                del self.have[key], self.features[key]
        self.seed = seed
        fixed = {
            c.modality: s == CORRUPTED
            for c, s in states.items()
            if first and c.strategy == "fixed" and c.setting == "C"
        }
        kinds: tuple[tuple[int, Setting], ...] = ((CORRUPTED, "C"), (PARTIAL, "P"))
        for state, setting in kinds:
            needed = np.zeros_like(self.observed)
            for table in states.values():
                needed |= table == state
            for column, name in enumerate(names):
                have = self.have.get((name, state))
                needed[:, column] &= True if have is None else ~have
            rates = {name: float(needed[:, k].any()) for k, name in enumerate(names)}
            disruption = Disruption(
                names,
                setting,
                strategy="independent",
                disruption_rate=rates,
                seed=seed,
            )
            rows, start = np.flatnonzero(needed.any(1)), 0
            if not len(rows):
                continue
            for batch in self.data.batches(disruption, rows, self.batch_size):
                inputs, available = self._moved(batch)
                at = rows[start : start + len(next(iter(available.values())))]
                start += len(at)
                for column, name in enumerate(names):
                    if state == CORRUPTED and name in fixed:
                        hashed = np.flatnonzero(fixed[name][at, column])
                        self.digest.add(name, take_rows(inputs[name], hashed))
                    wanted = torch.from_numpy(needed[at, column])
                    self._store(at, name, state, inputs[name], wanted)

    def disrupted(self, disruption: Disruption, states: States, rows: Rows) -> Iterator[Part]:
        """Some rows, put together."""
        for start in range(0, len(rows), self.batch_size):
            at = rows[start : start + self.batch_size]
            yield at, *self._assembled(at, states[at])

    def _kept(
        self, rows: Rows, state: int, inputs: dict[str, Any], available: dict[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        for name, value in inputs.items():
            self._store(rows, name, state, value, available[name].cpu())
        return self._assembled(rows, np.zeros((len(rows), len(self.data.modalities)), np.int8))

    def _store(self, rows: Rows, name: str, state: int, value: Any, wanted: Tensor) -> None:
        """Encode the wanted rows, which are there, and no others."""
        picked = np.flatnonzero(wanted.numpy())
        if not len(picked):
            return
        values = take_rows(value, picked)
        key, raw = (name, state), values
        if self.encode is not None:
            values = self._encoded(name, raw)
            if state == INTACT and key not in self.features and len(picked) > 1:
                few = np.arange(min(CHECKED_ROWS, len(picked) - 1))
                check_alone(self._encoded(name, take_rows(raw, few)), values)
        if key not in self.features:
            shape = (len(self.data.ids), *values.shape[1:])
            self.features[key] = values.new_zeros(shape)
            self.have[key] = np.zeros(len(self.data.ids), np.bool_)
        self.features[key][torch.from_numpy(rows[picked]).to(values.device)] = values
        self.have[key][rows[picked]] = True

    def _encoded(self, name: str, value: Any) -> Tensor:
        rows = len(next(leaves(value)))
        there = torch.ones(rows, dtype=torch.bool, device=self.device)
        assert self.encode is not None
        encoded: Tensor = self.encode({name: value}, {name: there})[0][name]
        return encoded

    def _assembled(
        self, rows: Rows, states: States
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs, available = {}, {}
        for column, name in enumerate(self.data.modalities):
            there = self.observed[rows, column] & (states[:, column] != DISCARDED)
            stored = {k: v for (m, k), v in self.features.items() if m == name}
            if not stored:
                raise ValueError(f"{name} was observed in no row before row {rows[-1]}")
            some = next(iter(stored.values()))
            made = some.new_zeros((len(rows), *some.shape[1:]))
            for state, values in stored.items():
                at = np.flatnonzero(there & (states[:, column] == state))
                where = torch.from_numpy(rows[at]).to(values.device)
                made[torch.from_numpy(at).to(values.device)] = values[where]
            inputs[name] = made
            available[name] = torch.from_numpy(there).to(made.device)
        return inputs, available


def make_source(model: nn.Module, data: EvaluationData, batch_size: int, reuse: bool) -> Streamed:
    """The road that a model and its data can take."""
    encodes = callable(getattr(model, "encode", None)) and hasattr(model, "head")
    keep = reuse and (encodes or isinstance(data, CachedFeatures))
    return (Stored if keep else Streamed)(model, data, batch_size)
