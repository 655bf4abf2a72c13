"""Give rows to a model and keep what it says, compactly.

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

from robustfusion._fields import field, logits_of, p_values_of
from robustfusion._tree import leaves, map_leaves, map_tensors
from robustfusion.candidates import candidate_names
from robustfusion.disruption import Condition, Disruption
from robustfusion.disruption.protocol import Setting
from robustfusion.evaluation.data import CachedFeatures, EvaluationData, Rows
from robustfusion.evaluation.results import Recovered

# What is done to a modality of a row.
INTACT, CORRUPTED, DISCARDED, PARTIAL = range(4)
States: TypeAlias = NDArray[np.int8]  # (N, M)
Part: TypeAlias = tuple[Rows, dict[str, Any], dict[str, Tensor]]  # rows, inputs, available

_AXES = 30
_SHOWN_ROWS = 300  # of recovered features: what a figure can show
_CHECKED_ROWS = 4
_LOWEST = -6e4  # float16 ends at -65,504


class RowResults:
    """What a model said about N rows; a row that was not evaluated is not `known`."""

    def __init__(self, rows: int, modalities: int, candidates: int) -> None:
        self.known = np.zeros(rows, dtype=np.bool_)
        self.predictions = np.full(rows, -1, dtype=np.int16)
        self.confidence = np.zeros(rows, dtype=np.float16)
        self.log_likelihood = np.zeros(rows, dtype=np.float16)
        self.quality = np.full((rows, modalities), np.nan, dtype=np.float32)
        self.p_values = np.full((rows, modalities), np.nan, dtype=np.float16)
        self.weights = np.zeros((rows, candidates), dtype=np.float32)

    @classmethod
    def empty_like(cls, other: "RowResults") -> "RowResults":
        """Room for as many rows, none known."""
        return cls(len(other.known), other.quality.shape[1], other.weights.shape[1])

    def copy_rows(self, source: "RowResults", rows: NDArray[np.int64]) -> None:
        """Take over some rows of another."""
        for name, values in vars(self).items():
            values[rows] = getattr(source, name)[rows]

    def mean_weights(self) -> tuple[float, ...] | None:
        """Mean share of each candidate, over the rows with any weight; None without weights."""
        total = self.weights.sum(1, dtype=np.float64)
        kept = total > 0
        if not self.weights.shape[1] or not kept.any():
            return None
        return tuple((self.weights[kept] / total[kept, None]).mean(0, dtype=np.float64).tolist())


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


def _take(value: Any, rows: Rows) -> Any:
    """Some rows of a nested batch."""

    def taken(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf[torch.from_numpy(rows).to(leaf.device)]
        return [leaf[row] for row in rows.tolist()]

    return map_leaves(taken, value)


def _check_alone(alone: Tensor, together: Tensor) -> None:
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
                        self.digest.add(name, _take(inputs[name], found))
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
                        self.digest.add(name, _take(inputs[name], hashed))
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
        values = _take(value, picked)
        key, raw = (name, state), values
        if self.encode is not None:
            values = self._encoded(name, raw)
            if state == INTACT and key not in self.features and len(picked) > 1:
                few = np.arange(min(_CHECKED_ROWS, len(picked) - 1))
                _check_alone(self._encoded(name, _take(raw, few)), values)
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


class Forward:
    """Calls the model on what a source gives, and keeps its answers."""

    def __init__(self, source: Streamed) -> None:
        self.source, self.names = source, source.data.modalities
        self.num_classes = 0
        self.candidates: tuple[str, ...] = ()
        self._pairs: dict[tuple[str, str], list[tuple[Tensor, Tensor, Rows]]] = {}

    def clean(self, *, check_rows: bool) -> RowResults:
        """Evaluate all rows undisrupted."""
        total = len(self.source.data.ids)
        shown = np.zeros(total, dtype=np.bool_)
        shown[np.linspace(0, total - 1, min(_SHOWN_ROWS, total)).astype(np.int64)] = True
        results: RowResults | None = None
        for rows, inputs, available in self.source.intact():
            out = self.source.call(inputs, available)
            logits = logits_of(out, len(rows))
            if results is None:
                self.num_classes = logits.shape[1]
                weights = field(out, "weights")
                width = 0 if weights is None else weights.shape[1]
                self.candidates = candidate_names(self.source.model, width)
                results = RowResults(total, len(self.names), width)
                if check_rows:
                    self._check_rows(inputs, available, logits)
            self._keep(results, rows, out, available)
            self._keep_recovered(out, available, rows, shown[rows])
        if results is None:
            raise ValueError(f"data must give {total} rows, as many as it has ids, got 0")
        low, high = self.source.range
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0 .. {self.num_classes - 1}, the model's classes, got "
                f"{low} .. {high}"
            )
        return results

    def disrupted(
        self, disruption: Disruption, states: States, rows: Rows, results: RowResults
    ) -> None:
        """Evaluate some rows under a disruption, into their places in `results`."""
        for at, inputs, available in self.source.disrupted(disruption, states, rows):
            self._keep(results, at, self.source.call(inputs, available), available)

    def _keep(
        self, results: RowResults, rows: Rows, out: Any, available: Mapping[str, Tensor]
    ) -> None:
        logits = logits_of(out, len(rows)).float()
        finite = logits.isfinite().all(-1)
        log_probs = logits.log_softmax(-1)
        confidence, predictions = log_probs.exp().max(-1)
        # What is no class is refused after the pass, with the range of all labels.
        labels = torch.from_numpy(self.source.labels[rows].astype(np.int64)).to(logits.device)
        true = log_probs.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        results.known[rows] = True
        results.predictions[rows] = torch.where(finite, predictions, -1).cpu().numpy()
        results.confidence[rows] = torch.where(finite, confidence, 0.0).cpu().numpy()
        kept = torch.where(finite, true.clamp_min(_LOWEST), -torch.inf)
        results.log_likelihood[rows] = kept.cpu().numpy()
        scored = field(out, "log_quality") or {}
        odd = p_values_of(self.source.model, out)
        for column, name in enumerate(self.names):
            for values, store in ((scored, results.quality), (odd, results.p_values)):
                if name in values:
                    value = torch.where(available[name], values[name].float(), torch.nan)
                    store[rows, column] = value.cpu().numpy()
        if results.weights.shape[1]:
            results.weights[rows] = field(out, "weights").float().cpu().numpy()

    def _check_rows(
        self, inputs: Mapping[str, Any], available: Mapping[str, Tensor], logits: Tensor
    ) -> None:
        few = min(len(logits) // 2, _CHECKED_ROWS)
        if few < 1:
            return
        rows = np.arange(few)
        masks = {name: mask[:few] for name, mask in available.items()}
        out = self.source.call({name: _take(x, rows) for name, x in inputs.items()}, masks)
        _check_alone(logits_of(out, few), logits)

    def _keep_recovered(
        self, out: Any, available: Mapping[str, Tensor], rows: Rows, shown: NDArray[np.bool_]
    ) -> None:
        """Keep real features beside the recovered ones, of rows that have both modalities."""
        features = field(out, "features") or {}
        for target, sources in (field(out, "recovered") or {}).items():
            for source, made in sources.items():
                real = features.get(target)
                if real is None or real.shape != made.shape:
                    continue
                both = (available[target] & available[source]).cpu().numpy() & shown
                at = torch.from_numpy(np.flatnonzero(both))
                kept = (real.cpu()[at].float(), made.cpu()[at].float(), rows[both])
                self._pairs.setdefault((target, source), []).append(kept)

    def recovered(self) -> dict[tuple[str, str], Recovered]:
        """The kept features on the principal axes of real and recovered together."""
        found = {}
        for pair, parts in self._pairs.items():
            real = torch.cat([part[0] for part in parts])
            made = torch.cat([part[1] for part in parts])
            joint = torch.cat([real, made]).double()
            if len(real) < 2 or not bool(joint.isfinite().all()):
                continue
            centered = joint - joint.mean(0)
            # The axes from the smaller of the two products.
            variance, left = torch.linalg.eigh(centered @ centered.T)
            variance, left = variance.flip(0).clamp_min(0), left.flip(1)
            width = min(_AXES, joint.shape[1])
            points = (left * variance.sqrt())[:, :width].float().numpy()
            share = (variance / variance.sum().clamp_min(1e-300))[:width].float().numpy()
            rows = np.concatenate([part[2] for part in parts])
            found[pair] = Recovered(
                points[: len(real)], points[len(real) :], share, self.source.labels[rows]
            )
        return found
