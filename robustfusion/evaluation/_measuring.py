"""What a model says over the conditions. Each distinct input is given to it once."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._outputs import logits_of, p_values_of, read_output
from robustfusion.candidates import candidate_names
from robustfusion.disruption import Condition, canonical_id
from robustfusion.disruption.cached import take_rows
from robustfusion.disruption.protocol import draw, plan_from
from robustfusion.evaluation import _sources
from robustfusion.evaluation._sources import CORRUPTED, DISCARDED, INTACT, PARTIAL, Source, States
from robustfusion.evaluation.data import Rows
from robustfusion.evaluation.results import CELL, Cell, Quality, Recovered

# One record a row; of a row that was not evaluated `known` is False.
Answers: TypeAlias = NDArray[np.void]

_AXES = 30  # as van der Maaten and Hinton, 2008, give t-SNE; the PCA figure shows two
_SHOWN_ROWS = 300  # of recovered features: what a figure can show
_LOWEST = -6e4  # float16 ends at -65,504


class Measuring:
    """Collects the conditions; keeps the answers to distinct inputs while they are needed."""

    def __init__(self, source: Source, *, reuse: bool) -> None:
        self.source, self.names, self.reuse = source, source.data.modalities, reuse
        # An id of numpy prints in another way than the same id of Python.
        self.ids = tuple(canonical_id(sample_id) for sample_id in source.data.ids)
        self.candidates: tuple[str, ...] = ()
        self._pairs: dict[tuple[str, str], list[tuple[Tensor, Tensor, Rows]]] = {}
        self.clean = self._clean()
        # By what is done to each modality of a row.
        self.known: dict[tuple[int, ...], Answers] = {(INTACT,) * len(self.names): self.clean}
        self.seed: int | None = None
        self.states: Mapping[Condition, States] = {}
        self.runs: dict[Condition, list[dict[str, Any]]] = {}
        self.corrupted: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.names}
        self.digest = hashlib.blake2b(digest_size=16)

    def _clean(self) -> Answers:
        """Evaluate all rows undisrupted."""
        total = len(self.ids)
        shown = np.zeros(total, dtype=np.bool_)
        shown[np.linspace(0, total - 1, min(_SHOWN_ROWS, total)).astype(np.int64)] = True
        parts: list[Answers] = []
        for rows, *batch in self.source.intact():
            out = self.source.call(*batch)
            if not parts:
                logits = logits_of(out, len(rows))
                self.num_classes = logits.shape[1]
                weights = read_output(out, "weights")
                width = 0 if weights is None else weights.shape[1]
                self.candidates = candidate_names(self.source.model, width)
                if self.reuse and (few := min(len(rows) // 2, _sources.CHECKED_ROWS)):
                    alone = (take_rows(part, torch.arange(few)) for part in batch)
                    _sources.check_alone(logits_of(self.source.call(*alone), few), logits)
            parts.append(self._record(out, rows, batch[1]))
            self._keep_recovered(out, batch[1], rows, shown[rows])
        low, high = self.source.labels.min(), self.source.labels.max()
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0 .. {self.num_classes - 1}, the model's classes, got "
                f"{low} .. {high}"
            )
        return np.concatenate(parts)

    def begin(self, seed: int, conditions: Sequence[Condition]) -> None:
        """Plan all conditions of a seed, so that each input is read once for all of them."""
        first = self.seed is None
        if self.source.data.fresh_corruption:
            stale = {CORRUPTED, PARTIAL}
            self.known = {key: made for key, made in self.known.items() if not stale & {*key}}
        self.seed = seed
        draws = draw(seed, self.ids, self.names)
        columns = torch.from_numpy(self.source.observed).unbind(1)
        observed = dict(zip(self.names, columns, strict=True))
        self.states = {}
        for condition in conditions:
            plan = plan_from(condition.disruption(self.names, seed), draws, observed)
            states = np.full(self.source.observed.shape, INTACT, dtype=np.int8)
            for column, name in enumerate(self.names):
                corrupted = PARTIAL if condition.setting == "P" else CORRUPTED
                states[plan.corrupted[name].numpy(), column] = corrupted
                states[plan.discarded[name].numpy(), column] = DISCARDED
            self.states[condition] = states
        self.source.prepare(seed, self.states, first=first)

    def run(self, condition: Condition) -> None:
        """Evaluate one condition under the seed."""
        states = self.states[condition]
        self.digest.update(f"{condition.key} {self.seed} ".encode() + states.tobytes())
        answers = self._answers(condition, states)
        if condition.setting == "C" and condition.modality is not None:
            column = self.names.index(condition.modality)
            self.corrupted[condition.modality].append(answers["quality"][:, column].copy())
        done = [np.isin(states, kind).sum(0) for kind in ((CORRUPTED, PARTIAL), DISCARDED)]
        run: dict[str, Any] = {name: answers[name].copy() for name in CELL if name != "counts"}
        run |= {"seed": self.seed, "counts": np.stack(done, -1), "weights": _mean_weights(answers)}
        self.runs.setdefault(condition, []).append(run)

    def _answers(self, condition: Condition, states: States) -> Answers:
        known = self.known if self.reuse else {}
        # A number for each way to disrupt a row.
        ways = states.astype(np.int64) @ (4 ** np.arange(states.shape[1]))
        found = [np.flatnonzero(ways == way) for way in np.unique(ways)]
        places = {tuple(states[at[0]].tolist()): at for at in found}
        answers = np.zeros_like(self.clean)
        for key, at in places.items():
            if key in known:
                answers[at] = known[key][at]
        rows = np.flatnonzero(~answers["known"])
        if len(rows):
            disruption = condition.disruption(self.names, self.seed or 0)
            for at, *batch in self.source.disrupted(disruption, states, rows):
                answers[at] = self._record(self.source.call(*batch), at, batch[1])
        for key, at in places.items():
            known.setdefault(key, np.zeros_like(self.clean))[at] = answers[at]
        return answers

    def cell(self, condition: Condition) -> Cell:
        """The per-sample results of one condition under its seeds."""
        runs = self.runs[condition]
        weights = [run["weights"] for run in runs if run["weights"] is not None]
        parts: dict[str, Any] = {name: np.stack([run[name] for run in runs]) for name in CELL}
        return Cell(
            condition,
            seeds=tuple(run["seed"] for run in runs),
            weights=tuple(np.mean(weights, axis=0).tolist()) if weights else None,
            **parts,
        )

    def qualities(self) -> dict[str, Quality]:
        """Clean scores, and those of the rows whose modality was corrupted throughout."""
        found = {}
        for column, name in enumerate(self.names):
            clean, corrupted = self.clean["quality"][:, column].copy(), self.corrupted[name]
            if not np.isnan(clean).all():
                none = np.empty((0, len(clean)), np.float32)
                found[name] = Quality(clean, np.stack(corrupted) if corrupted else none)
        return found

    def _record(self, out: Any, rows: Rows, available: Mapping[str, Tensor]) -> Answers:
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
        scored = {"quality": read_output(out, "log_quality") or {}}
        scored["p_values"] = p_values_of(self.source.model, out)
        for kind, values in scored.items():
            made[kind] = np.nan
            for column, name in enumerate(self.names):
                if name in values:
                    seen = torch.where(available[name], values[name].float(), torch.nan)
                    made[kind][:, column] = seen.cpu().numpy()
        if self.candidates:
            made["weights"] = read_output(out, "weights").float().cpu().numpy()
        return made

    def _keep_recovered(
        self, out: Any, available: Mapping[str, Tensor], rows: Rows, shown: NDArray[np.bool_]
    ) -> None:
        """Keep real features beside the recovered ones, of rows that have both modalities."""
        features = read_output(out, "features") or {}
        for target, sources in (read_output(out, "recovered") or {}).items():
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


def _mean_weights(answers: Answers) -> tuple[float, ...] | None:
    """Mean share of each candidate, over the rows with any weight; None without weights."""
    weights = answers["weights"]
    total = weights.sum(1, dtype=np.float64)
    kept = total > 0
    if not kept.any():
        return None
    return tuple((weights[kept] / total[kept, None]).mean(0, dtype=np.float64).tolist())
