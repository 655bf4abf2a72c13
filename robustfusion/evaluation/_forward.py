"""Give rows to a model and keep what it says, compactly."""

from collections.abc import Mapping
from typing import Any, TypeAlias

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

# One record a row; of a row that was not evaluated `known` is False.
Answers: TypeAlias = NDArray[np.void]

_AXES = 30
_SHOWN_ROWS = 300  # of recovered features: what a figure can show
_LOWEST = -6e4  # float16 ends at -65,504


def mean_weights(answers: Answers) -> tuple[float, ...] | None:
    """Mean share of each candidate, over the rows with any weight; None without weights."""
    weights = answers["weights"]
    total = weights.sum(1, dtype=np.float64)
    kept = total > 0
    if not kept.any():
        return None
    return tuple((weights[kept] / total[kept, None]).mean(0, dtype=np.float64).tolist())


class Forward:
    """Calls the model on what a source gives, and keeps its answers."""

    def __init__(self, source: Streamed) -> None:
        self.source, self.names = source, source.data.modalities
        self.num_classes = 0
        self.candidates: tuple[str, ...] = ()
        self._pairs: dict[tuple[str, str], list[tuple[Tensor, Tensor, Rows]]] = {}

    def clean(self, *, check_rows: bool) -> Answers:
        """Evaluate all rows undisrupted."""
        total = len(self.source.data.ids)
        shown = np.zeros(total, dtype=np.bool_)
        shown[np.linspace(0, total - 1, min(_SHOWN_ROWS, total)).astype(np.int64)] = True
        parts: list[Answers] = []
        for rows, inputs, available in self.source.intact():
            out = self.source.call(inputs, available)
            if not parts:
                logits = logits_of(out, len(rows))
                self.num_classes = logits.shape[1]
                weights = field(out, "weights")
                width = 0 if weights is None else weights.shape[1]
                self.candidates = candidate_names(self.source.model, width)
                if check_rows and (few := min(len(rows) // 2, CHECKED_ROWS)):
                    first = np.arange(few)
                    alone = [
                        {m: take_rows(x, first) for m, x in p.items()} for p in (inputs, available)
                    ]
                    check_alone(logits_of(self.source.call(*alone), few), logits)
            parts.append(self._answers(out, rows, available))
            self._keep_recovered(out, available, rows, shown[rows])
        low, high = self.source.labels.min(), self.source.labels.max()
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0 .. {self.num_classes - 1}, the model's classes, got "
                f"{low} .. {high}"
            )
        return np.concatenate(parts)

    def disrupted(
        self, disruption: Disruption, states: States, rows: Rows, answers: Answers
    ) -> None:
        """Evaluate some rows under a disruption, into their places in `answers`."""
        for at, inputs, available in self.source.disrupted(disruption, states, rows):
            answers[at] = self._answers(self.source.call(inputs, available), at, available)

    def _answers(self, out: Any, rows: Rows, available: Mapping[str, Tensor]) -> Answers:
        logits = logits_of(out, len(rows)).float()
        finite = logits.isfinite().all(-1)
        log_probs = logits.log_softmax(-1)
        confidence, predictions = log_probs.exp().max(-1)
        # What is no class is refused after the pass, with the range of all labels.
        labels = torch.from_numpy(self.source.labels[rows]).to(logits.device)
        true = log_probs.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        per_modality = (len(self.names),)
        kinds = [
            ("known", np.bool_),
            ("predictions", np.int16),
            ("confidence", np.float16),
            ("log_likelihood", np.float16),
            ("quality", np.float32, per_modality),
            ("p_values", np.float16, per_modality),
            ("weights", np.float32, (len(self.candidates),)),
        ]
        made = np.zeros(len(rows), kinds)
        made["known"] = True
        made["predictions"] = torch.where(finite, predictions, -1).cpu().numpy()
        made["confidence"] = torch.where(finite, confidence, 0.0).cpu().numpy()
        made["log_likelihood"] = (
            torch.where(finite, true.clamp_min(_LOWEST), -torch.inf).cpu().numpy()
        )
        scored = {"quality": field(out, "log_quality") or {}}
        scored["p_values"] = p_values_of(self.source.model, out)
        for kind, values in scored.items():
            made[kind] = np.nan
            for column, name in enumerate(self.names):
                if name in values:
                    seen = torch.where(available[name], values[name].float(), torch.nan)
                    made[kind][:, column] = seen.cpu().numpy()
        if self.candidates:
            made["weights"] = field(out, "weights").float().cpu().numpy()
        return made

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
            labels = self.source.labels[np.concatenate([part[2] for part in parts])]
            found[pair] = Recovered(
                points[: len(real)], points[len(real) :], share, labels.astype(np.int16)
            )
        return found
