"""Measure how accuracy, alarms and trust change with the severity of each kind of damage."""

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion._modules import evaluating
from robustfusion._outputs import logits_of, p_values_of, read_output
from robustfusion._predictions import predicted_by, task_of
from robustfusion._tree import map_tensors
from robustfusion._validation import check_between, check_positive
from robustfusion.disruption import Disruption, RawSamples
from robustfusion.disruption.damage import Kinds, Samples, as_raw_samples, damage
from robustfusion.evaluation import metrics
from robustfusion.evaluation import statistics as stats
from robustfusion.evaluation._evaluator import check_targets, half_widths
from robustfusion.evaluation.damage_results import DamageReport, DamageScores

SEVERITIES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
_REPLICATES = 1000  # bootstrap replicates: the standard error is then exact to about 2 %
_Cell = tuple[str, str, str, float]  # model, modality, kind, severity


@torch.no_grad()
def damage_report(
    model: nn.Module | Mapping[str, nn.Module],
    samples: Samples,
    kinds: Kinds,
    *,
    severities: Sequence[float] = SEVERITIES,
    seeds: Sequence[int] = (0,),
    batch_size: int = 64,
    alarm_rate: float = 0.05,
) -> DamageReport:
    """Measure accuracy, or other metrics, alarms and trust over kinds and severities of damage.

    In each cell of the report one modality of every sample is damaged. Samples that lack it count
    with their intact prediction. For comparison the report has the modality declared missing and
    the majority class: a model below these would do better without the damaged input. Models that
    predict several labels or numbers get the metrics of their task, see `DamageScores.metrics`.

    Any model works whose `model(inputs, available)` returns logits, as for `robustness_report`.
    Alarms need a method `p_values` of the model or its head, trust needs `trust` in the output.

    Args:
        model: The model, or several by name, which all get the same damaged samples.
        samples: As for :func:`~robustfusion.disruption.damage`.
        kinds: As for :func:`~robustfusion.disruption.damage`: kinds of damage by modality.
        severities: Severities in (0, 1]. All of them use the same random numbers.
        seeds: Seeds of the damage; scores are means over them.
        batch_size: Samples in a batch.
        alarm_rate: A sample whose p-value is at most this raises an alarm.

    Returns:
        The report, with `to_markdown`, `to_csv`, `to_dict` and `plot`.

    Raises:
        ValueError: If the arguments, the labels, the tasks or the output of a model do not fit.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.disruption import FEATURE_DAMAGE, CachedFeatures
        >>> from robustfusion.evaluation import damage_report
        >>> features = {"image": torch.randn(40, 8), "text": torch.randn(40, 4)}
        >>> data = CachedFeatures(features, torch.arange(40) % 3)
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> report = damage_report(head, data, {"image": FEATURE_DAMAGE}, severities=(0.5, 1.0))
        >>> 0 <= report["DRFHead", "image", "noise", 0.5].accuracy <= 1
        True
        >>> print(report.to_markdown().splitlines()[4])
        ## Accuracy, image damaged
    """
    models = dict(model) if isinstance(model, Mapping) else {type(model).__name__: model}
    if not models or not all(isinstance(part, nn.Module) for part in models.values()):
        raise TypeError("model must be an nn.Module, or a mapping from names to modules")
    if not severities or not all(0 < severity <= 1 for severity in severities):
        raise ValueError(f"severities must lie in (0, 1], one or more, got {tuple(severities)}")
    if not seeds:
        raise ValueError("seeds must be integers, one or more")
    check_positive(batch_size, "batch_size")
    check_between(alarm_rate, 0, 1, "alarm_rate")
    raw = as_raw_samples(samples)
    damage(raw, kinds)  # which checks the kinds before the work begins
    table = _Table(models, raw)
    with ExitStack() as stack:
        for part in models.values():
            stack.enter_context(evaluating(part))
        table.fill_intact(batch_size)
        for modality in kinds:
            table.fill_missing(modality, batch_size)
        for severity in map(float, severities):
            table.begin(kinds, severity, len(seeds))
            for index, seed in enumerate(seeds):
                for batch in damage(
                    raw, kinds, severity=severity, batch_size=batch_size, seed=seed
                ):
                    rows = np.array([table.row_of[sample_id] for sample_id in batch["id"]])
                    table.fill((batch["modality"], batch["kind"], severity), rows, batch, index)
    return table.report(tuple(kinds), tuple(seeds), alarm_rate)


class _Table:
    """The answers of all models to all samples, by model, modality, kind and severity."""

    def __init__(self, models: Mapping[str, nn.Module], raw: RawSamples) -> None:
        self.models, self.raw, self.names = models, raw, raw.modalities
        self.row_of = {sample_id: row for row, sample_id in enumerate(raw.ids)}
        tasks = {task_of(model) for model in models.values()}
        if len(tasks) > 1:
            raise ValueError(f"model must hold models of one task, got {sorted(tasks)}")
        self.task = tasks.pop()
        self.labels: NDArray[Any] = np.zeros(len(raw.ids), np.int64)
        self.num_classes = 0
        # Arrays (S, N, P + C + 2 M): the prediction, of 1 or C numbers, then probabilities or
        # half-widths of intervals, then p-values, then trust by modality.
        self.intact: dict[str, NDArray[np.float64]] = {}
        self.answers: dict[_Cell, NDArray[np.float64]] = {}
        # Features (N, ..., D) by modality, of the models that have encoders.
        self.features: dict[str, dict[str, Tensor]] = {name: {} for name in models}

    def fill_intact(self, batch_size: int) -> None:
        """Evaluate all samples as they are, and read their labels."""
        clean, start = Disruption(self.names, strategy="clean"), 0
        for batch in self.raw.batches(clean, np.arange(len(self.labels)), batch_size):
            stop = start + len(batch["label"])
            self._note_labels(start, torch.as_tensor(batch["label"]))
            rows = np.arange(start, stop)
            for model, answers in self._evaluate(batch, rows, self.names).items():
                empty = np.full((1, len(self.labels), answers.shape[1]), np.nan)
                self.intact.setdefault(model, empty)[0, rows] = answers
            start = stop
        check_targets(self.labels, self.task, self.num_classes)
        for model, answers in self.intact.items():
            self.answers |= {(model, name, "intact", 0.0): answers for name in self.names}

    def _note_labels(self, start: int, labels: Tensor) -> None:
        if labels.ndim > 1 or labels.is_floating_point():
            labels = labels.float().reshape(len(labels), -1)
            if not start:
                self.labels = np.full((len(self.labels), labels.shape[1]), np.nan)
        self.labels[start : start + len(labels)] = labels.numpy()

    def fill_missing(self, modality: str, batch_size: int) -> None:
        """Evaluate all samples with a modality declared missing."""
        rows, start = np.arange(len(self.labels)), 0
        self.begin({modality: ("missing",)}, 1.0, 1)
        missing = Disruption(self.names, setting="D", strategy="fixed", modality=modality)
        for batch in self.raw.batches(missing, rows, batch_size):
            stop = start + len(batch["label"])
            self.fill((modality, "missing", 1.0), rows[start:stop], batch)
            start = stop

    def begin(self, kinds: Kinds, severity: float, num_seeds: int) -> None:
        """Begin the cells of a severity with the answers to the intact samples."""
        for modality, names in kinds.items():
            for kind in names:
                for model, answers in self.intact.items():
                    copies = np.repeat(answers, num_seeds, axis=0)
                    self.answers[model, modality, kind, severity] = copies

    def fill(
        self,
        where: tuple[str, str, float],
        rows: NDArray[np.int64],
        batch: Mapping[str, Any],
        index: int = 0,
    ) -> None:
        """Write the answers to some damaged samples over those to the intact ones."""
        changed = () if where[1] == "missing" else where[:1]
        for model, answers in self._evaluate(batch, rows, changed).items():
            self.answers[(model, *where)][index, rows] = answers

    def _evaluate(
        self, batch: Mapping[str, Any], rows: NDArray[np.int64], changed: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the answers (B, P + C + 2 M) of each model to a batch of samples.

        Only the changed modalities are encoded; the features of the others are known.
        """
        by_model = {}
        for name, model in self.models.items():
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            inputs = {}
            for modality, value in batch["inputs"].items():
                inputs[modality] = map_tensors(functools.partial(_to, device=device), value)
            available = {m: mask.to(device) for m, mask in batch["available"].items()}
            out = self._call(name, inputs, available, torch.from_numpy(rows), changed)
            logits = logits_of(out, len(next(iter(available.values())))).float()
            self.num_classes = max(self.num_classes, logits.shape[1])
            columns = self._answers(model, out, logits)
            for values in (p_values_of(model, out), read_output(out, "trust") or {}):
                for m in self.names:
                    value = (
                        values[m].double()
                        if m in values
                        else logits.new_full((len(logits),), torch.nan).double()
                    )
                    columns.append(value.where(available[m], torch.nan))
            by_model[name] = torch.stack(columns, 1).cpu().numpy()
        return by_model

    def _answers(self, model: nn.Module, out: Any, logits: Tensor) -> list[Tensor]:
        """Return the columns of the prediction, and those of probabilities or half-widths."""
        finite, predicted = logits.isfinite().all(1), predicted_by(model, out, len(logits))
        if self.task == "regression":
            predicted = predicted.double().where(finite[:, None], torch.nan)
            details = half_widths(model, out, logits)
        elif self.task == "multilabel":
            predicted = predicted.double().where(finite[:, None], -1)
            details = logits.sigmoid().where(finite[:, None], 0.0)
        else:
            predicted = predicted.double().where(finite, -1)[:, None]
            details = logits.softmax(1).where(finite[:, None], 0.0)
        return [*predicted.unbind(1), *details.double().unbind(1)]

    def _call(
        self,
        name: str,
        inputs: Mapping[str, Any],
        available: Mapping[str, Tensor],
        rows: Tensor,
        changed: Sequence[str],
    ) -> Any:
        model: Any = self.models[name]
        if not (callable(getattr(model, "encode", None)) and hasattr(model, "head")):
            return model(inputs, available)
        features, known = {}, self.features[name]
        if changed:
            part = {m: inputs[m] for m in changed}, {m: available[m] for m in changed}
            features = dict(model.encode(*part)[0])
        for m in self.names:
            if m not in features:
                features[m] = known[m][rows.to(known[m].device)]
            elif len(changed) == len(self.names):  # all samples as they are
                shape = (len(self.labels), *features[m].shape[1:])
                known.setdefault(m, features[m].new_zeros(shape))
                known[m][rows.to(known[m].device)] = features[m]
        return model.head(features, available)

    def report(
        self, modalities: Sequence[str], seeds: tuple[int, ...], alarm_rate: float
    ) -> DamageReport:
        """Return the scores of all cells, in the order of the modalities and kinds."""
        weights = np.concatenate(
            list(stats.bootstrap_weights(len(self.labels), _REPLICATES, seed=0))
        )
        scores, predictions = [], {}
        for cell, answers in self.answers.items():
            modality = cell[1]
            if modality not in modalities:
                continue
            first = answers.shape[-1] - 2 * len(self.names)
            column = first + self.names.index(modality)
            p, trust = (answers[..., column + k] for k in (0, len(self.names)))
            width = first // 2 if self.task != "multiclass" else 1
            details = answers[..., width:first]
            predictions[cell] = self._predictions(answers[..., :width])
            values = self._metrics(predictions[cell], details)
            right = metrics.utility(self.task, self.labels, predictions[cell]).mean(0)
            error = float((weights @ right / len(right)).std(ddof=1))
            scores.append(
                DamageScores(
                    *cell,
                    accuracy=values.get("accuracy", math.nan),
                    accuracy_se=error if "accuracy" in values else math.nan,
                    macro_f1=values.get("macro_f1", math.nan),
                    alarms=_mean((p <= alarm_rate).astype(float), ~np.isnan(p)),
                    trust=_mean(trust, ~np.isnan(trust)),
                    metrics=values,
                )
            )
        order = {m: k for k, m in enumerate(modalities)}
        scores.sort(key=lambda s: order[s.modality])
        baseline = self._baseline()
        return DamageReport(
            models=tuple(self.models),
            labels=self.labels,
            seeds=seeds,
            majority=(
                baseline.get("accuracy", math.nan),
                baseline.get("macro_f1", math.nan),
            ),
            alarm_rate=alarm_rate,
            scores=tuple(scores),
            predictions=predictions,
            task=self.task,
            baseline=baseline,
        )

    def _predictions(self, columns: NDArray[np.float64]) -> NDArray[Any]:
        """Return classes (S, N), labels or numbers (S, N, C) of their columns."""
        if self.task == "regression":
            return columns.copy()
        integers = columns.astype(np.int64)
        return integers[..., 0] if self.task == "multiclass" else integers

    def _metrics(
        self, predictions: NDArray[Any], details: NDArray[np.float64] | None
    ) -> dict[str, float]:
        """Return the metrics of the task, means over the seeds."""
        once = np.ones((1, len(self.labels)), dtype=np.float32)
        by_seed: dict[str, list[float]] = {}
        for seed, guess in enumerate(predictions):
            extra = None if details is None else details[seed]
            if self.task == "regression":
                values = metrics.number_metrics(self.labels, guess, extra, once)
            elif self.task == "multilabel":
                scores = guess.astype(np.float64) if extra is None else extra
                values = metrics.label_metrics(self.labels, guess, scores, once)
            else:
                f1 = stats.classification_scores(self.labels, guess[None], self.num_classes)
                values = {"accuracy": f1.accuracy[0], "macro_f1": f1.macro_f1[0]}
                if extra is not None:
                    values["auroc"] = metrics.class_auroc(self.labels, extra, once)
            for name, value in values.items():
                by_seed.setdefault(name, []).append(float(value[0]))
        return {name: float(np.mean(values)) for name, values in by_seed.items()}

    def _baseline(self) -> dict[str, float]:
        """Return the metrics of the best constant prediction."""
        if self.task == "multiclass":
            counts = np.bincount(self.labels, minlength=self.num_classes)
            return self._metrics(np.full((1, len(self.labels)), counts.argmax()), None)
        constant = metrics.constant_predictions(self.task, self.labels)
        columns = np.broadcast_to(constant, (1, *self.labels.shape)).astype(np.float64)
        if self.task == "regression":
            return self._metrics(columns, None)
        return self._metrics((columns > 0.5).astype(np.int64), columns)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def _mean(values: NDArray[np.float64], counted: NDArray[np.bool_]) -> float:
    return float(values[counted].mean()) if counted.any() else float("nan")
