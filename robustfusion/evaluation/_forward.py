"""Give rows to a model and keep what it says, compactly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._fields import field, logits_of, p_values_of
from robustfusion.candidates import candidate_names
from robustfusion.disruption import Disruption
from robustfusion.evaluation._sources import (
    CHECKED_ROWS,
    States,
    Streamed,
    check_alone,
    take_rows,
)
from robustfusion.evaluation.data import Rows
from robustfusion.evaluation.results import Recovered

_AXES = 30
_SHOWN_ROWS = 300  # of recovered features: what a figure can show
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
        few = min(len(logits) // 2, CHECKED_ROWS)
        if few < 1:
            return
        rows = np.arange(few)
        masks = {name: mask[:few] for name, mask in available.items()}
        out = self.source.call({name: take_rows(x, rows) for name, x in inputs.items()}, masks)
        check_alone(logits_of(out, few), logits)

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
