"""Calibrate a trained model on held-out samples: p-values, trust, temperatures."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from robustfusion._modules import evaluating
from robustfusion._outputs import read_output
from robustfusion._trust_fit import HeldOut, TrustFit
from robustfusion.drf import DRFHead
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import conformal_p_value, expected_calibration_error
from robustfusion.quality import QualityEstimator
from robustfusion.tasks import (
    Task,
    check_target,
    confidence,
    fit_interval,
    fit_thresholds,
    sample_loss,
)

# With this number of samples, the log of a pattern's temperature is halved.
_SHRINKAGE_SAMPLES = 50
_FEW_ROWS = 50  # with fewer rows the report remarks that a temperature is uncertain
_LOG_TEMPERATURES = torch.linspace(-3, 3, 301)  # temperatures from 1/20 to 20 in steps of 2 %
# Largest factor by which a stand-in may gain weight. In sketches a larger factor gained little on
# intact posts and lost macro-F1 where the other modality was damaged.
_MAX_PRIOR_FACTOR = 2.0
_MIN_ERROR = 1e-6  # squared error in units of the variance of the targets
_PRIOR_STEPS, _PRIOR_ROUNDS = 8, 3  # grid search over one modality after the other


class PatternCalibration(NamedTuple):
    """The calibration of samples with exactly these modalities.

    Attributes:
        modalities: Names of the modalities.
        rows: Number of held-out samples; those with more modalities count as well, without them.
        temperature: What the logits are divided by.
        ece: Expected calibration error in 15 bins, before and after.
        nll: Mean negative log-likelihood, before and after.
    """

    modalities: tuple[str, ...]
    rows: int
    temperature: float
    ece: tuple[float, float]
    nll: tuple[float, float]


class IntervalCalibration(NamedTuple):
    """The intervals of numbers for samples with exactly these modalities.

    Attributes:
        modalities: Names of the modalities.
        rows: Number of held-out samples; those with more modalities count as well, without them.
        half_width: (C,), half the width of the interval of each number.
    """

    modalities: tuple[str, ...]
    rows: int
    half_width: tuple[float, ...]


class CalibrationReport(NamedTuple):
    """The report of :func:`~robustfusion.calibrate`.

    Attributes:
        patterns: One :class:`PatternCalibration` for each of the head's candidates; empty for a
            head without temperatures, and without labels.
        alarms: For each modality the share of one half of the held-out rows that raises an alarm
            at 5 %, with the other half as references: near 0.05 if the halves are alike. NaN with
            fewer than 40 rows.
        trust_thresholds: For each modality the quality below which its stand-in weighs more than
            the feature; empty for a head without stand-ins, or if trust was learned.
        trust: What was learned from damaged samples, ``None`` without any.
        intervals: One :class:`IntervalCalibration` for each of the candidates of a head for
            regression, whose ``patterns`` are empty.
    """

    patterns: tuple[PatternCalibration, ...]
    alarms: dict[str, float]
    trust_thresholds: dict[str, float]
    trust: TrustFit | None = None
    intervals: tuple[IntervalCalibration, ...] = ()

    def to_markdown(self) -> str:
        """Return the report as a table and a few lines."""
        lines = [
            "| modalities | rows | temperature | ECE | NLL |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {' + '.join(p.modalities)} | {p.rows} | {p.temperature:.2f} "
                f"| {p.ece[0]:.3f} → {p.ece[1]:.3f} | {p.nll[0]:.3f} → {p.nll[1]:.3f} |"
                for p in self.patterns
            ),
        ]
        alarms = ", ".join(
            f"{name} {100 * rate:.1f} %" if rate == rate else f"{name} unknown (too few rows)"
            for name, rate in self.alarms.items()
        )
        if self.intervals:
            lines = ["| modalities | rows | half-width at 90 % |", "|---|---:|---:|"]
            for row in self.intervals:
                widths = ", ".join(f"{value:.4g}" for value in row.half_width)
                lines.append(f"| {' + '.join(row.modalities)} | {row.rows} | {widths} |")
        used = self.patterns or self.intervals
        lines = [*(lines if used else []), "", f"Alarms at 5 %: {alarms}."]
        few = [
            f"{' + '.join(p.modalities)} ({p.rows})" for p in self.patterns if p.rows < _FEW_ROWS
        ]
        if few:
            lines += ["", f"Fewer than {_FEW_ROWS} rows, uncertain temperature: {', '.join(few)}."]
        rises = [" + ".join(p.modalities) for p in self.patterns if p.ece[1] > p.ece[0] + 0.005]
        if rises:
            lines += ["", f"ECE rises: {', '.join(rises)}. A temperature minimizes the NLL."]
        if self.trust_thresholds:
            below = ", ".join(f"{value:.2f} ({m})" for m, value in self.trust_thresholds.items())
            lines += ["", f"Below a quality of {below} the head prefers its stand-in."]
        if self.trust is not None:
            before, after = self.trust.nll
            outcome = "gave no reason to change trust"
            if math.isfinite(self.trust.penalty):
                outcome = f"changed the cross-validated NLL from {before:.3f} to {after:.3f}"
            lines += ["", f"{self.trust.samples} intact and damaged samples {outcome}."]
        return "\n".join(lines)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    damaged: Iterable[Mapping[str, Any]] | None = None,
    *,
    thresholds: bool = False,
) -> CalibrationReport:
    r"""Calibrate a trained model's qualities, p-values and probabilities on held-out samples.

    Each quality estimator takes the held-out features as its references for intact ones. Then the
    head learns how much to trust each modality: with ``damaged``, from what damage does to the
    prediction, see :class:`~robustfusion.LearnedTrust`; without, the log-priors :math:`q_m` of the
    stand-ins are fitted to the intact samples, so that a modality without which the others predict
    as well gets less weight. Last, each availability pattern gets a temperature :math:`T`, or for
    regression the half-width of an interval that covers 90 % of each number, which
    ``head.interval(output)`` returns. All results are in buffers and are saved with the model.

    Batches without labels give references for qualities and p-values; trust and temperatures stay
    as they were.

    The samples must be intact and must not have been trained on, for example the validation
    samples. Call it again after further training.

    Args:
        model: :class:`~robustfusion.DRFClassifier`, :class:`~robustfusion.DRFHead` or any model
            that returns a :class:`~robustfusion.DRFOutput` and contains such a head, also inside a
            :class:`~robustfusion.NeighborVoteHead` that was fitted.
        batches: Dicts of ``inputs``, ``available`` (optional), ``label``, the target (in all
            batches or in none), and ``id`` (optional), the name of each sample.
        damaged: Batches of the same samples, damaged, as
            :func:`~robustfusion.disruption.damage` makes them: like ``batches``, with ``kind`` and
            ``modality``, which name the damage. No label says what is damaged: the head learns
            from the labels of the classes what it costs. Use many kinds, each at severities over
            its whole range.
        thresholds: Whether to fit the decision thresholds of ``head.predict`` to macro-F1, see
            :func:`robustfusion.tasks.fit_thresholds`. Otherwise they are the usual ones.

    Returns:
        A small report, with ``to_markdown()``.

    Raises:
        ValueError: If the model has nothing to calibrate, ``batches`` is empty or a batch lacks
            something, or its target does not fit the task. Then nothing has changed.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, calibrate
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> inputs = {"image": torch.randn(64, 8), "text": torch.randn(64, 4)}
        >>> report = calibrate(head, [{"inputs": inputs, "label": torch.randint(3, (64,))}])
        >>> [pattern.modalities for pattern in report.patterns]
        [('image', 'text'), ('image',), ('text',)]

    Note:
        The log-priors minimize

        .. math:: \sum_i \mathrm{NLL}_i(q) + \tfrac12 \sum_m (q_m - q_0)^2,
                  \qquad q_0 \le q_m \le q_0 + \log 2

        from their initial value :math:`q_0`. A temperature minimizes the negative log-likelihood
        of ``logits / T``. With n samples it is drawn towards the temperature of all patterns,
        :math:`\log T = (n \log T_n + 50 \log T_{all}) / (n + 50)`. For regression the likelihood
        is normal with the variance of the first errors. Intervals are split conformal, but trust
        and log-priors were fitted to the same samples, so that the promise holds nearly.

    Reference:
        Temperature: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. P-values:
        split conformal prediction, https://arxiv.org/abs/2107.07511.
    """
    modules = list(model.modules())
    scoring: Any = next((m for m in modules if hasattr(m, "estimators")), None)
    scaled = (m for m in modules if isinstance(getattr(m, "temperature", None), Tensor))
    head: Any = next(scaled, None)  # a NeighborVoteHead, or the DRFHead itself
    if scoring is None:
        raise ValueError(
            f"model has no quality estimators to calibrate: got {type(model).__name__}, expected "
            "a DRFHead or a model with one"
        )
    if damaged is not None and not hasattr(scoring, "trust"):
        raise ValueError(f"damaged needs a head that learns trust, got {type(scoring).__name__}")
    task: Task = getattr(scoring, "task", "multiclass")
    if thresholds and (head is None or task == "regression"):
        raise ValueError(
            "thresholds needs a head with temperatures and task='multiclass' or 'multilabel', got "
            f"{type(scoring).__name__} with task={task!r}"
        )
    with evaluating(model):
        intact = encode_batches(model, batches)
        features, available, labels = intact.features, intact.available, intact.labels
        copies = None
        if damaged is not None:
            copies = encode_batches(model, damaged, "damaged")
            if labels is None or copies.labels is None:
                raise ValueError("damaged needs a label in all batches, got batches without one")
            _check_damaged(intact, copies)
        before = []
        if head is not None and labels is not None:
            before = _by_pattern(head, features, available, labels)
            if task == "regression" and isinstance(scoring, DRFHead):
                _set_residual_variance(scoring, features, available, labels)
        alarms = {}
        for name, estimator in scoring.estimators.items():
            rows = features[name][available[name]]
            alarms[name] = _alarm_rate(estimator.score(rows))
            if len(rows) > 1:
                estimator.calibrate(rows)
        trust_thresholds, trust = {}, None
        if labels is None:
            alarms |= _take_harm_references(scoring, intact)
            return CalibrationReport((), alarms, {})
        if copies is not None:
            trust = scoring.trust.fit_held_out(_held_out(scoring, intact, copies), task)
            counts = scoring.trust.reference_count.tolist()
            for name, harm, count in zip(alarms, scoring.trust.references, counts, strict=True):
                if count:
                    alarms[name] = _alarm_rate(harm[:count])
        elif isinstance(scoring, DRFHead):
            trust_thresholds = _fit_log_priors(scoring, features, available, labels)
        if head is None:
            return CalibrationReport((), alarms, trust_thresholds, trust)
        head.temperature.fill_(1)
        after = _by_pattern(head, features, available, labels)
        pooled_logits, pooled_labels = (torch.cat(part) for part in zip(*after, strict=True))
        if task == "regression":
            intervals = _fit_intervals(head, after)
            head.interval_width[-1] = fit_interval(pooled_logits, pooled_labels)
            return CalibrationReport((), alarms, trust_thresholds, trust, intervals)
        head.temperature[-1] = _temperature(pooled_logits, pooled_labels, task)
        patterns = []
        for index, (old, (logits, target)) in enumerate(zip(before, after, strict=True)):
            temperature = head.temperature[index] = _temperature(logits, target, task)
            errors = zip(
                _errors(*old, task), _errors(logits / temperature, target, task), strict=True
            )
            names = head.candidates[index]
            patterns.append(PatternCalibration(names, len(target), float(temperature), *errors))
        if hasattr(head, "thresholds"):
            head.thresholds.fill_(1.0 if task == "multiclass" else 0.5)
        if thresholds:
            logits, target = after[0]
            head.thresholds.copy_(fit_thresholds(logits / head.temperature[0], target, task))
    return CalibrationReport(tuple(patterns), alarms, trust_thresholds, trust)


class EncodedBatches(NamedTuple):
    """All samples of some batches, as they reach the head.

    Attributes:
        features: (N, D_m) for each modality.
        available: (N,) bool for each modality.
        labels: The target of each sample, ``None`` if no batch has labels.
        ids: The name of each sample; its number where the batches have no ``id``.
        kinds: (modality, kind) of the damage of each sample; empty strings where it is intact.
    """

    features: dict[str, Tensor]
    available: dict[str, Tensor]
    labels: Tensor | None
    ids: list[Any]
    kinds: list[tuple[str, str]]


@torch.no_grad()
def encode_batches(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], argument: str = "batches"
) -> EncodedBatches:
    """Return the features that reach the head, with masks and labels, of all batches.

    Raises:
        ValueError: If there is no batch, or one lacks ``inputs``, or some have no ``label``.
        TypeError: If a target is no tensor of numbers.
    """
    features: dict[str, list[Tensor]] = {}
    available: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    ids: list[Any] = []
    kinds: list[tuple[str, str]] = []
    for batch in batches:
        fits = isinstance(batch, Mapping) and "inputs" in batch
        if not fits or (features and ("label" in batch) != bool(labels)):
            got = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f'{argument} must be dicts of "inputs", "label" (in all batches or in none) and, '
                f'where something is missing, "available"; got {got}'
            )
        out = model(batch["inputs"], batch.get("available"))
        for name, rows in read_output(out, "features").items():
            features.setdefault(name, []).append(rows)
            available.setdefault(name, []).append(out.log_quality[name] > -torch.inf)
        count = len(out.logits)
        if "label" in batch:
            label = torch.as_tensor(batch["label"])
            check_target(label, out.logits, _task_of(model))
            labels.append(label.to(out.logits.device))
        ids += batch.get("id", range(len(ids), len(ids) + count))
        kinds += [(batch.get("modality", ""), batch.get("kind", ""))] * count
    if not features:
        raise ValueError(f"{argument} must hold at least one batch, got none")
    return EncodedBatches(
        {name: torch.cat(rows) for name, rows in features.items()},
        {name: torch.cat(masks) for name, masks in available.items()},
        torch.cat(labels) if labels else None,
        ids,
        kinds,
    )


def _check_damaged(intact: EncodedBatches, copies: EncodedBatches) -> None:
    """Raise if damaged samples cannot teach anything."""
    same = all(torch.equal(x, intact.features[name]) for name, x in copies.features.items())
    if same:
        raise ValueError("damaged must hold damaged copies of the samples, got the same features")
    for name, mask in copies.available.items():
        if not bool(mask.any()) and bool(intact.available[name].any()):
            raise ValueError(
                f"damaged must hold damaged features of modality {name!r}, got none: a missing "
                "modality is no damage, and the head is calibrated for it anyway"
            )


def _take_harm_references(head: Any, intact: EncodedBatches) -> dict[str, float]:
    """Let a trust that was learned take the harm of intact samples; return the alarm rates."""
    trust, alarms = getattr(head, "trust", None), {}
    if trust is None or not bool(trust.reference_count.any()):
        return {}
    out = head(intact.features, intact.available)
    log_quality = torch.stack(list(out.log_quality.values()), dim=1)
    harm = trust.harm(head.standardize(intact.features), log_quality)
    for index, name in enumerate(trust.dims):
        rows = harm[intact.available[name], index]
        if not trust.reference_count[index] or len(rows) < 2:
            continue
        alarms[name] = _alarm_rate(rows)
        chosen = torch.linspace(0, len(rows) - 1, min(len(rows), trust.references.shape[1]))
        trust.references[index, : len(chosen)] = rows[chosen.round().long()]
        trust.reference_count[index] = len(chosen)
    return alarms


def _held_out(head: Any, intact: EncodedBatches, copies: EncodedBatches) -> HeldOut:
    """Return intact samples and their damaged copies as the head sees them."""
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(copies.kinds), 1)}
    names = dict.fromkeys(intact.ids + copies.ids)
    groups = {sample: number for number, sample in enumerate(names)}
    parts = []
    for part, numbers in ((intact, {}), (copies, kinds)):
        out = head(part.features, part.available)
        labels = cast("Tensor", part.labels)
        if head.task == "regression":
            labels = head.standardize_target(labels)
        available = torch.stack(list(part.available.values()), dim=1)
        log_quality = torch.stack(list(out.log_quality.values()), dim=1)
        parts.append(
            HeldOut(
                head.standardize(part.features),
                available,
                log_quality.masked_fill(~available, 0.0),  # a missing input has none, −inf
                out.extras["agreement"],
                out.extras["half_logits"],
                labels,
                torch.tensor([numbers.get(kind, 0) for kind in part.kinds]).to(labels.device),
                torch.tensor([groups[sample] for sample in part.ids]).to(labels.device),
            )
        )
    first, second = parts
    features = {name: torch.cat([x, second.features[name]]) for name, x in first.features.items()}
    rest = (torch.cat(pair) for pair in zip(first[1:], second[1:], strict=True))
    return HeldOut(features, *rest)


def _fit_log_priors(
    head: DRFHead, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> dict[str, float]:
    """Set the log-prior of each stand-in and return the qualities that they stand for."""
    head.trust.reset()
    initial = -head.trust.bias
    out = head(features, available)
    rows = out.extras["usable"].any(1)
    observed = torch.stack(list(available.values()), dim=1)
    replaced = (observed[:, None] & (head.candidates.mask == 0))[rows].to(initial)
    log_weight, target = out.weights[rows].log(), labels[rows]
    logits = out.extras["half_logits"][rows].mean(2)
    precision = 1.0
    if head.task == "regression":
        target = head.standardize_target(target)
        fused = (log_weight.softmax(1)[:, None].to(logits) @ logits).squeeze(1)
        error = sample_loss(fused, target, head.task)[0].sum() / max(len(target), 1)
        precision = 0.5 / max(float(error), _MIN_ERROR)

    def cost(log_prior: Tensor) -> Tensor:
        weights = (log_weight + replaced @ (log_prior - initial)).softmax(1)
        fused = (weights[:, None].to(logits) @ logits).squeeze(1)
        penalty: Tensor = 0.5 * (log_prior - initial).square().sum()
        return precision * sample_loss(fused, target, head.task)[0].sum() + penalty

    best = initial
    steps = torch.linspace(0, math.log(_MAX_PRIOR_FACTOR), _PRIOR_STEPS)
    for _ in range(_PRIOR_ROUNDS):
        for index in range(len(initial)):
            trials = best.repeat(_PRIOR_STEPS, 1)
            trials[:, index] = initial[index] + steps
            best = trials[torch.stack([cost(trial) for trial in trials]).argmin()]
    head.trust.bias.copy_(-best)
    return dict(zip(head.dims, best.exp().tolist(), strict=True))


def _by_pattern(
    head: Any, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return logits and labels of all samples that can be restricted to each candidate."""
    outcome = []
    for candidate in head.candidates:
        rows = torch.stack([available[name] for name in candidate]).all(0)
        part = {name: values[rows] for name, values in features.items()}
        mask = {name: rows.new_full((int(rows.sum()),), name in candidate) for name in features}
        outcome.append((head(part, mask).logits, labels[rows]))
    return outcome


def _task_of(model: nn.Module) -> Task:
    """Return the task of a model's head."""
    tasks = (getattr(module, "task", None) for module in model.modules())
    return cast("Task", next((task for task in tasks if isinstance(task, str)), "multiclass"))


def _set_residual_variance(
    head: DRFHead, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> None:
    """Set the variance of the errors of predictions from one modality, over all modalities."""
    out, target = head(features, available), head.standardize_target(labels)
    count = len(head.dims)
    errors = (out.extras["half_logits"][:, -count:].mean(2) - target[:, None]).square()
    observed = torch.stack(list(available.values()), dim=1)[..., None]
    known = observed & ~errors.isnan()
    total = errors.where(known, 0.0).sum((0, 1))
    head.residual_variance.copy_(total / known.sum((0, 1)).clamp_min(1))


def _fit_intervals(
    head: Any, patterns: list[tuple[Tensor, Tensor]]
) -> tuple[IntervalCalibration, ...]:
    """Set the interval of each candidate's pattern."""
    intervals = []
    for index, (numbers, target) in enumerate(patterns):
        width = head.interval_width[index] = fit_interval(numbers, target)
        row = IntervalCalibration(head.candidates[index], len(target), tuple(width.tolist()))
        intervals.append(row)
    return tuple(intervals)


def _temperature(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the temperature with the smallest NLL, drawn towards 1; 1 if that does not help.

    It is kept if it lowers the leave-one-out NLL, in which each sample is scored by the
    temperature of the others.
    """
    grid = _LOG_TEMPERATURES.to(logits.device)
    one = len(grid) // 2
    if not len(labels):
        return grid[one].exp()
    share = len(labels) / (len(labels) + _SHRINKAGE_SAMPLES)
    losses = torch.stack([sample_loss(logits / t, labels, task)[0] for t in grid.exp()])
    total = losses.sum(1)
    best = one + share * (total.argmin() - one)
    left_out = one + share * ((total[:, None] - losses).argmin(0) - one)
    gain = losses[one] - losses.gather(0, left_out.round().long()[None])[0]
    return torch.where(gain.sum() > 0, grid[best.round().long()].exp(), 1.0)


def _errors(logits: Tensor, labels: Tensor, task: Task) -> tuple[float, float]:
    """Return expected calibration error and negative log-likelihood."""
    if not len(labels):
        return float("nan"), float("nan")
    loss, weight = sample_loss(logits, labels, task)
    sure = confidence(logits, task)
    if task == "multilabel":
        known, correct = labels >= 0, (logits > 0) == (labels > 0.5)
    else:
        classes = labels.argmax(1) if labels.ndim > 1 else labels
        known, correct = classes >= 0, logits.argmax(-1) == classes
    ece = expected_calibration_error(sure[known], correct[known])
    return float(ece), float(loss.sum() / weight.sum().clamp_min(1))


def _alarm_rate(scores: Tensor) -> float:
    """Return the share of every second score that raises an alarm at 5 % among the others."""
    if len(scores) < 40:  # with fewer than 19 references no p-value is as small as 5 %
        return float("nan")
    return float((conformal_p_value(scores[::2], scores[1::2]) <= 0.05).float().mean())


@torch.no_grad()
def refresh(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> None:
    """Recompute queues, moments and scores from training samples, after weights were averaged.

    Moving averages of weights, such as ``torch.optim.swa_utils.AveragedModel``, timm's
    ``ModelEmaV3`` or ``ema_pytorch``, treat the rows of a queue as weights and average rows of
    different samples. Then p-values are NaN, and the switch to evaluation warns. After this call
    qualities and alarms are those of the averaged encoders. Call :func:`~robustfusion.calibrate`
    next. It is the counterpart of ``torch.optim.swa_utils.update_bn``.

    Args:
        model: The averaged model.
        batches: Dicts of ``inputs`` and ``available`` (optional) of training samples; labels are
            not needed. As many samples as the queues hold are enough.

    Raises:
        ValueError: If ``batches`` is empty. Then nothing has changed.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.calibration import refresh
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> averaged = torch.optim.swa_utils.AveragedModel(head)
        >>> inputs = {"image": torch.randn(64, 8), "text": torch.randn(64, 4)}
        >>> refresh(averaged, [{"inputs": inputs}])
        >>> len(averaged.module.queues["image"])
        64
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("batches must hold at least one batch, got none")
    parts = list(model.modules())
    heads = [part for part in parts if isinstance(getattr(part, "queues", None), dict)]
    for part in parts:
        if isinstance(part, QualityEstimator | FeatureQueue):
            part.reset()
    with evaluating(model):
        for batch in itertools.chain([first], iterator):
            # Only the heads themselves are in training mode: their parts drop and update nothing.
            for head in heads:
                head.training = True
            model(batch["inputs"], batch.get("available"))
            for head in heads:
                head.training = False
        for part in parts:
            if isinstance(part, QualityEstimator):
                part.eval()
