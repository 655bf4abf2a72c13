"""Rows of the data under a disruption, ready for the model: each input read once if it can be.

Two roads lead from the data to the model. Features that the data hold, or that the model's own
encoders make, are few enough to keep: each input of a modality is read and encoded once, and every
condition is put together from these rows. For any other model the data make every condition anew.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion._tree import leaves, map_tensors
from robustfusion.disruption import Condition, Disruption
from robustfusion.disruption.cached import take_rows
from robustfusion.disruption.protocol import Setting
from robustfusion.evaluation.data import CachedFeatures, EvaluationData, Rows

# What is done to a modality of a row.
INTACT, CORRUPTED, DISCARDED, PARTIAL = range(4)
States: TypeAlias = NDArray[np.int8]  # (N, M)
Part: TypeAlias = tuple[Rows, dict[str, Any], dict[str, Tensor]]  # rows, inputs, available

CHECKED_ROWS = 4  # given alone too: a mixing of rows shows in any, and few cost little


def check_alone(alone: Tensor, together: Tensor) -> None:
    """Raise unless the first rows come out as they did among all."""
    together = together[: len(alone)]
    # Kernels of another batch size differ in the last digits; rows that mix, in the first.
    scale = float(together.abs().max().nan_to_num())
    if not bool(torch.isclose(alone, together, 1e-3, 1e-3 * scale, equal_nan=True).all()):
        raise ValueError(
            "the model's answers for a row depend on the other rows of its batch, or on chance: "
            "pass reuse=False to evaluate every condition in full"
        )


class Source:
    """Gives rows to a model, and keeps the features of each distinct input where it can.

    These lie by modality and by what was done to the input.
    """

    def __init__(
        self, model: nn.Module, data: EvaluationData, batch_size: int, *, reuse: bool
    ) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size
        encodes = callable(getattr(model, "encode", None)) and hasattr(model, "head")
        self.kept = reuse and (encodes or isinstance(data, CachedFeatures))
        self.encode: Any = getattr(model, "encode", None) if self.kept else None
        # What takes the rows: the head alone, where there are encoders.
        self.call: Any = model if self.encode is None else model.head
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.observed: NDArray[np.bool_] = np.ones((len(data.ids), len(data.modalities)), bool)
        self.labels: NDArray[np.int64] = np.zeros(len(data.ids), np.int64)
        self.features: dict[tuple[str, int], Tensor] = {}
        self.have: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self._hashes: dict[tuple[str, int], Any] = {}

    def intact(self) -> Iterator[Part]:
        """All rows undisrupted; labels and what was observed are known afterwards."""
        names = self.data.modalities
        nothing = Disruption(names, disruption_rate=0.0)
        everything = np.arange(len(self.data.ids))
        for rows, inputs, available in self._batches(nothing, everything, labeled=True):
            for column, name in enumerate(names):
                there = available[name].cpu().numpy()
                self.observed[rows, column] = there
                self._hash(name, inputs[name])
                if self.kept:
                    self._store(rows, name, INTACT, inputs[name], there)
            if self.kept:
                inputs, available = self._assembled(
                    rows, np.zeros((len(rows), len(names)), np.int8)
                )
            yield rows, inputs, available

    def prepare(self, seed: int, states: Mapping[Condition, States], *, first: bool) -> None:
        """Get ready for a seed: read every row once that some condition corrupts, to keep it."""
        names, self.first = self.data.modalities, first
        if not self.kept:
            return
        if self.data.fresh_corruption:
            for key in [key for key in self.have if key[1] != INTACT]:
                del self.have[key], self.features[key]
        fixed = {
            c.modality: s == CORRUPTED
            for c, s in states.items()
            if first and c.strategy == "fixed" and c.setting == "C"
        }
        kinds: tuple[tuple[int, Setting], ...] = ((CORRUPTED, "C"), (PARTIAL, "P"))
        for state, setting in kinds:
            needed = np.logical_or.reduce([table == state for table in states.values()])
            for column, name in enumerate(names):
                needed[:, column] &= ~self.have.get((name, state), np.False_)
            rows = np.flatnonzero(needed.any(1))
            if not len(rows):
                continue
            rates = dict(zip(names, needed.any(0).astype(float).tolist(), strict=True))
            made = Disruption(
                names, setting, strategy="independent", disruption_rate=rates, seed=seed
            )
            for at, inputs, _ in self._batches(made, rows):
                for column, name in enumerate(names):
                    if state == CORRUPTED and name in fixed:
                        self._hash(name, inputs[name], fixed[name][at, column])
                    self._store(at, name, state, inputs[name], needed[at, column])

    def disrupted(self, disruption: Disruption, states: States, rows: Rows) -> Iterator[Part]:
        """Some rows under a disruption."""
        if self.kept:
            for start in range(0, len(rows), self.batch_size):
                at = rows[start : start + self.batch_size]
                yield at, *self._assembled(at, states[at])
            return
        hashed = self.first and disruption.strategy == "fixed" and disruption.setting == "C"
        for at, inputs, available in self._batches(disruption, rows):
            for column, name in enumerate(self.data.modalities if hashed else ()):
                self._hash(name, inputs[name], states[at, column] == CORRUPTED)
            yield at, inputs, available

    def digest(self) -> str:
        """Of the values of each modality, intact and corrupted, in the order they came in."""
        whole = b"".join(found.digest() for _, found in sorted(self._hashes.items()))
        return hashlib.blake2b(whole, digest_size=16).hexdigest()

    def _batches(
        self, disruption: Disruption, rows: Rows, *, labeled: bool = False
    ) -> Iterator[Part]:
        """The batches of the data on the model's device, with the rows they hold."""
        start = 0
        for batch in self.data.batches(disruption, rows, self.batch_size):
            available = {m: mask.to(self.device) for m, mask in batch["available"].items()}
            inputs = {
                name: map_tensors(lambda x: x.to(self.device), value)
                for name, value in batch["inputs"].items()
            }
            count = len(next(iter(available.values())))
            at, start = rows[start : start + count], start + count
            if start > len(rows):
                break
            if labeled:
                self.labels[at] = torch.as_tensor(batch["label"]).cpu().numpy()
            yield at, inputs, available
        if start != len(rows):
            raise ValueError(f"data must give {len(rows)} rows, as many as asked for, got {start}")

    def _hash(self, name: str, value: Any, chosen: NDArray[np.bool_] | None = None) -> None:
        """Take in some rows of a modality, each leaf in a digest of its own."""
        if chosen is not None:
            if not chosen.any():
                return
            value = take_rows(value, torch.from_numpy(chosen).nonzero()[:, 0])
        for place, leaf in enumerate(leaves(value)):
            new = hashlib.blake2b(digest_size=16)
            _hash_leaf(self._hashes.setdefault((name, place), new), leaf)

    def _store(
        self, rows: Rows, name: str, state: int, value: Any, wanted: NDArray[np.bool_]
    ) -> None:
        """Encode the wanted rows, which are there, and no others."""
        picked = torch.from_numpy(wanted).nonzero()[:, 0]
        if not len(picked):
            return
        key, raw = (name, state), take_rows(value, picked)
        values = self._encoded(name, raw)
        if key not in self.features:
            if self.encode is not None and state == INTACT and len(picked) > 1:
                few = torch.arange(min(CHECKED_ROWS, len(picked) - 1))
                check_alone(self._encoded(name, take_rows(raw, few)), values)
            self.features[key] = values.new_zeros((len(self.data.ids), *values.shape[1:]))
            self.have[key] = np.zeros(len(self.data.ids), np.bool_)
        self.features[key][torch.from_numpy(rows[wanted]).to(values.device)] = values
        self.have[key][rows[wanted]] = True

    def _encoded(self, name: str, value: Any) -> Any:
        if self.encode is None:
            return value
        there = torch.ones(len(next(leaves(value))), dtype=torch.bool, device=self.device)
        return self.encode({name: value}, {name: there})[0][name]

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
