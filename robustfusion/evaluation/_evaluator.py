"""The answers of a model under all conditions: each distinct input is evaluated once."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion._outputs import logits_of, p_values_of, read_output
from robustfusion._predictions import predicted_by, task_of
from robustfusion.candidates import candidate_names
from robustfusion.disruption import Disruption, canonical_id
from robustfusion.disruption.cached import take_rows
from robustfusion.disruption.plan import Draws
from robustfusion.evaluation._sources import (
    CHECKED_ROWS,
    CORRUPTED,
    INTACT,
    MISSING,
    PARTIAL,
    InputSource,
    States,
    check_by_themselves,
    corrupts_one,
)
from robustfusion.evaluation.data import Rows
from robustfusion.evaluation.results import ARRAYS, OPTIONAL, Answers, Quality, Recovered

# One record a row; `known` is False where the row was not evaluated in this state.
Records: TypeAlias = NDArray[np.void]

_NUM_AXES = 30  # as many principal axes as van der Maaten and Hinton, 2008, give to t-SNE
_NUM_POINTS = 300  # recovered features kept for a figure, in which more points would overlap
_MIN_LOG_LIKELIHOOD = -6e4  # float16 ends at -65,504


class Evaluator:
    """Fills a table of answers by the states of a sample's inputs; conditions look them up."""

    def __init__(self, source: InputSource) -> None:
        self.source, self.names = source, source.data.modalities
        self.task = task_of(source.model)
        # NumPy integers print differently, and the ids are part of the report's fingerprint.
        self.ids = tuple(canonical_id(sample_id) for sample_id in source.data.ids)
        self.candidates: tuple[str, ...] = ()
        self._pairs: dict[tuple[str, str], list[tuple[Tensor, Tensor, Rows]]] = {}
        self.clean = self._evaluate_clean()
        # Records (N,) by the state of every modality.
        self._table: dict[tuple[int, ...], Records] = {(INTACT,) * len(self.names): self.clean}
        self.seed: int | None = None
        self._states: dict[Disruption, States] = {}
        self._runs: dict[Disruption, list[dict[str, Any]]] = {}
        self._corrupted: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.names}
        self.digest = hashlib.blake2b(digest_size=16)

    def _evaluate_clean(self) -> Records:
        total = len(self.ids)
        is_drawn = np.zeros(total, dtype=np.bool_)
        is_drawn[np.linspace(0, total - 1, min(_NUM_POINTS, total)).astype(np.int64)] = True
        parts: list[Records] = []
        for rows, *batch in self.source.intact():
            out = self.source.call(*batch)
            if not parts:
                logits = logits_of(out, len(rows))
                self.num_classes = logits.shape[1]
                weights = read_output(out, "weights")
                width = 0 if weights is None else weights.shape[1]
                self.candidates = candidate_names(self.source.model, width)
                if count := min(len(rows) // 2, CHECKED_ROWS):
                    few = self.source.call(*(take_rows(x, torch.arange(count)) for x in batch))
                    check_by_themselves(logits_of(few, count), logits, self.source.model)
            parts.append(self._record(out, rows, batch[1]))
            self._keep_recovered(out, batch[1], rows, is_drawn[rows])
        check_targets(self.source.labels, self.task, self.num_classes)
        return np.concatenate(parts)

    def begin(self, seed: int, conditions: Sequence[Disruption]) -> None:
        """Plan all conditions of a seed, so that each input is read once for all of them."""
        is_first = self.seed is None
        if self.source.data.fresh_corruption:
            stale = {CORRUPTED, PARTIAL}
            self._table = {key: x for key, x in self._table.items() if not stale & {*key}}
        self.seed = seed
        draws = Draws(seed, self.ids, self.names)
        columns = torch.from_numpy(self.source.observed).unbind(1)
        observed = dict(zip(self.names, columns, strict=True))
        self._states = {}
        for condition in conditions:
            plan = condition.plan_from(draws, observed)
            states = np.full(self.source.observed.shape, INTACT, dtype=np.int8)
            for column, name in enumerate(self.names):
                damage = PARTIAL if condition.setting == "P" else CORRUPTED
                states[plan.corrupted[name].numpy(), column] = damage
                states[plan.missing[name].numpy(), column] = MISSING
            self._states[condition] = states
        self.source.prepare(seed, self._states, first=is_first)

    def run(self, condition: Disruption) -> None:
        """Evaluate one condition under the seed that has begun."""
        states = self._states[condition]
        self.digest.update(f"{condition.key} {self.seed} ".encode() + states.tobytes())
        records = self._look_up(condition, states)
        if corrupts_one(condition):
            name = str(condition.modality)
            self._corrupted[name].append(records["quality"][:, self.names.index(name)].copy())
        counts = [np.isin(states, kind).sum(0) for kind in ((CORRUPTED, PARTIAL), MISSING)]
        names = [name for name in (*ARRAYS, *OPTIONAL) if name in (records.dtype.names or ())]
        run: dict[str, Any] = {name: records[name].copy() for name in names}
        run |= {"seed": self.seed, "counts": np.stack(counts, -1)}
        run["weights"] = _mean_weights(records)
        self._runs.setdefault(condition, []).append(run)

    def _look_up(self, condition: Disruption, states: States) -> Records:
        """Return the records of all rows in their states, after evaluating the unknown ones."""
        codes = states.astype(np.int64) @ (4 ** np.arange(states.shape[1]))
        groups = [np.flatnonzero(codes == code) for code in np.unique(codes)]
        rows_by_state = {tuple(states[rows[0]].tolist()): rows for rows in groups}
        records = np.zeros_like(self.clean)
        for state, rows in rows_by_state.items():
            if state in self._table:
                records[rows] = self._table[state][rows]
        unknown = np.flatnonzero(~records["known"])
        if len(unknown):
            seeded = dataclasses.replace(condition, seed=self.seed or 0)
            for rows, *batch in self.source.disrupted(seeded, states, unknown):
                records[rows] = self._record(self.source.call(*batch), rows, batch[1])
        for state, rows in rows_by_state.items():
            self._table.setdefault(state, np.zeros_like(self.clean))[rows] = records[rows]
        return records

    def answers(self, condition: Disruption) -> Answers:
        """Return the answers under one condition, sample by sample, of all its seeds."""
        runs = self._runs[condition]
        weights = [run["weights"] for run in runs if run["weights"] is not None]
        arrays: dict[str, Any] = {
            name: np.stack([run[name] for run in runs])
            for name in (*ARRAYS, *OPTIONAL)
            if name in runs[0]
        }
        return Answers(
            condition,
            seeds=tuple(run["seed"] for run in runs),
            weights=tuple(np.mean(weights, axis=0).tolist()) if weights else None,
            **arrays,
        )

    def qualities(self) -> dict[str, Quality]:
        """Return the log-qualities when clean, and with the modality corrupted in all rows."""
        qualities = {}
        for column, name in enumerate(self.names):
            clean, corrupted = self.clean["quality"][:, column].copy(), self._corrupted[name]
            if not np.isnan(clean).all():
                none = np.empty((0, len(clean)), np.float32)
                qualities[name] = Quality(clean, np.stack(corrupted) if corrupted else none)
        return qualities

    def _record(self, out: Any, rows: Rows, available: Mapping[str, Tensor]) -> Records:
        num_modalities = (len(self.names),)
        dtypes = [
            ("known", np.bool_),
            *self._answer_dtypes(),
            ("confidence", np.float16),
            ("log_likelihood", np.float16),
            ("quality", np.float32, num_modalities),
            ("p_values", np.float16, num_modalities),
            ("weights", np.float32, (len(self.candidates),)),
        ]
        records = np.zeros(len(rows), dtypes)
        records["known"] = True
        for name, answers in self._answers(out, rows).items():
            records[name] = answers.detach().cpu().numpy()
        scores = {"quality": read_output(out, "log_quality") or {}}
        scores["p_values"] = p_values_of(self.source.model, out)
        for kind, values in scores.items():
            records[kind] = np.nan
            for column, name in enumerate(self.names):
                if name in values:
                    seen = torch.where(available[name], values[name].float(), torch.nan)
                    records[kind][:, column] = seen.cpu().numpy()
        if self.candidates:
            records["weights"] = read_output(out, "weights").float().cpu().numpy()
        return records

    def _answer_dtypes(self) -> list[tuple[Any, ...]]:
        kind = {"multiclass": np.int16, "multilabel": np.int8, "regression": np.float32}[self.task]
        width = () if self.task == "multiclass" else (self.num_classes,)
        optional = "half_widths" if self.task == "regression" else "probabilities"
        return [("predictions", kind, width), (optional, np.float32, (self.num_classes,))]

    def _answers(self, out: Any, rows: Rows) -> dict[str, Tensor]:
        """Return what the model says about the target of each row."""
        logits = logits_of(out, len(rows)).float()
        finite = logits.isfinite().all(-1)
        predictions = predicted_by(self.source.model, out, len(rows))
        nothing = logits.new_full((len(rows),), torch.nan)
        answers = {"confidence": nothing, "log_likelihood": nothing}
        if self.task == "multiclass":
            log_probs = logits.log_softmax(-1)
            probabilities = log_probs.exp()
            confidence = probabilities.gather(1, predictions[:, None])[:, 0]
            # A label that is no class is refused after the pass, when the range of all is known.
            labels = torch.from_numpy(self._classes(rows)).to(logits.device)
            likelihood = log_probs.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            likelihood = likelihood.clamp_min(_MIN_LOG_LIKELIHOOD)
            answers["confidence"] = torch.where(finite, confidence, 0.0)
            answers["log_likelihood"] = torch.where(finite, likelihood, -torch.inf)
            answers["predictions"] = torch.where(finite, predictions, -1)
        elif self.task == "multilabel":
            probabilities = logits.sigmoid()
            answers["predictions"] = torch.where(finite[:, None], predictions.to(torch.int8), -1)
        else:
            answers["predictions"] = torch.where(finite[:, None], predictions.float(), torch.nan)
            answers["half_widths"] = half_widths(self.source.model, out, logits)
            return answers
        answers["probabilities"] = torch.where(finite[:, None], probabilities, 0.0)
        return answers

    def _classes(self, rows: Rows) -> NDArray[np.int64]:
        labels = self.source.labels
        if labels.ndim > 1:
            check_targets(labels, self.task, self.num_classes)
        return np.asarray(labels[rows])

    def _keep_recovered(
        self, out: Any, available: Mapping[str, Tensor], rows: Rows, is_drawn: NDArray[np.bool_]
    ) -> None:
        """Keep true and recovered features of the rows that have both modalities."""
        features = read_output(out, "features") or {}
        for target, sources in (read_output(out, "recovered") or {}).items():
            for source, recovered in sources.items():
                true = features.get(target)
                if true is None or true.shape != recovered.shape:
                    continue
                both = (available[target] & available[source]).cpu().numpy() & is_drawn
                index = torch.from_numpy(np.flatnonzero(both))
                pair = (true.cpu()[index].float(), recovered.cpu()[index].float(), rows[both])
                self._pairs.setdefault((target, source), []).append(pair)

    def recovered(self) -> dict[tuple[str, str], Recovered]:
        """Return the kept features on the principal axes of true and recovered ones together."""
        points_of = {}
        for pair, parts in self._pairs.items():
            true = torch.cat([part[0] for part in parts])
            joint = torch.cat([true, *(part[1] for part in parts)]).double()
            if len(true) < 2 or not bool(joint.isfinite().all()):
                continue
            centered = joint - joint.mean(0)
            # There are fewer points than dimensions as a rule, so their products are smaller.
            variance, left = torch.linalg.eigh(centered @ centered.T)
            variance, left = variance.flip(0).clamp_min(0), left.flip(1)
            width = min(_NUM_AXES, joint.shape[1])
            points = (left * variance.sqrt())[:, :width].float().numpy()
            share = (variance / variance.sum().clamp_min(1e-300))[:width].float().numpy()
            chosen = np.concatenate([part[2] for part in parts])
            is_class = self.task == "multiclass"
            labels = self.source.labels[chosen] if is_class else np.zeros(len(chosen))
            points_of[pair] = Recovered(
                points[: len(true)], points[len(true) :], share, labels.astype(np.int16)
            )
        return points_of


def check_targets(targets: NDArray[Any], task: str, num_classes: int) -> None:
    """Raise unless targets are classes (N,), labels (N, C) or numbers (N, C), as the task says."""
    if task != "multiclass":
        if targets.shape != (len(targets), num_classes):
            raise ValueError(
                f"labels must have shape ({len(targets)}, {num_classes}) for the model's "
                f"task={task!r}, got {targets.shape}"
            )
        return
    if targets.ndim > 1:
        raise ValueError(
            f"labels must be classes, integers of shape ({len(targets)},), for a model of "
            f"task='multiclass', got shape {targets.shape}: its head takes task='multilabel' or "
            "'regression'"
        )
    low, high = targets.min(), targets.max()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in 0 .. {num_classes - 1}, the model's classes, got {low} .. {high}"
        )


def half_widths(model: Any, output: Any, logits: Tensor) -> Tensor:
    """Return half the width of the interval of each number, (B, C); NaN without intervals."""
    for part in (getattr(model, "head", None), model):
        interval = getattr(part, "interval", None)
        if callable(interval):
            try:
                low, high = interval(output)
            except ValueError:  # a head without intervals
                continue
            return torch.as_tensor((high - low).float() / 2)
    return torch.full_like(logits, torch.nan)


def _mean_weights(records: Records) -> tuple[float, ...] | None:
    """Return the mean share of each candidate, over the rows that have any weight."""
    weights = records["weights"]
    total = weights.sum(1, dtype=np.float64)
    rows = total > 0
    if not rows.any():
        return None
    return tuple((weights[rows] / total[rows, None]).mean(0, dtype=np.float64).tolist())
