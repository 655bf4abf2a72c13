"""Calibrate a trained model: references of p-values, priors of stand-ins, temperatures."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._modules import evaluating
from robustfusion._outputs import read_output
from robustfusion._validation import check_labels
from robustfusion.drf import DRFHead, initial_log_prior
from robustfusion.functional import conformal_p_value, expected_calibration_error
from robustfusion.quality import QualityEstimator

# A pattern with this number of samples gets a temperature half-way between its own and the pooled.
_SHRINKAGE_SAMPLES = 50
# Largest factor by which a stand-in may gain weight. In sketches a larger factor gained little on
# intact posts and lost macro-F1 where the other modality was damaged.
_MAX_PRIOR_FACTOR = 2.0
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


class CalibrationReport(NamedTuple):
    """The report of :func:`~robustfusion.calibrate`.

    Attributes:
        patterns: One :class:`PatternCalibration` for each of the head's candidates; empty for a
            head without temperatures.
        alarms: For each modality the share of one half of the held-out rows that raises an alarm
            at 5 %, with the other half as references: near 0.05 if the halves are alike. NaN with
            fewer than 40 rows.
        trust_thresholds: For each modality the quality below which its stand-in weighs more than
            the feature; empty for a head without stand-ins.
    """

    patterns: tuple[PatternCalibration, ...]
    alarms: dict[str, float]
    trust_thresholds: dict[str, float]

    def to_markdown(self) -> str:
        """Return the report as a table and two lines."""
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
        lines = [*(lines if self.patterns else []), "", f"Alarms at 5 %: {alarms}."]
        if self.trust_thresholds:
            below = ", ".join(f"{value:.2f} ({m})" for m, value in self.trust_thresholds.items())
            lines += ["", f"Below a quality of {below} the head prefers its stand-in."]
        return "\n".join(lines)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> CalibrationReport:
    r"""Calibrate a trained model's qualities, p-values and probabilities on held-out samples.

    Each quality estimator takes the held-out features as its references for intact ones. Then the
    log-priors :math:`q_m` of the stand-ins are fitted to the labels: a modality without which the
    others predict as well gets less weight, and so does less harm when it is damaged. Last, each
    availability pattern gets a temperature :math:`T`. All results are in buffers and are saved
    with the model.

    The samples must be intact and must not have been trained on, for example the validation
    samples. Call it again after further training.

    Args:
        model: :class:`~robustfusion.DRFClassifier`, :class:`~robustfusion.DRFHead` or any model
            that returns a :class:`~robustfusion.DRFOutput` and contains such a head, also inside a
            :class:`~robustfusion.NeighborVoteHead` that was fitted.
        batches: Dicts of ``inputs``, ``available`` (optional) and ``label`` (B,).

    Returns:
        A small report, with ``to_markdown()``.

    Raises:
        ValueError: If the model has nothing to calibrate, ``batches`` is empty or a batch lacks
            something. Then nothing has changed.
        TypeError: If labels are not integers.

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
        :math:`\log T = (n \log T_n + 50 \log T_{all}) / (n + 50)`.

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
    with evaluating(model):
        features, available, labels = encode_batches(model, batches)
        before = [] if head is None else _by_pattern(head, features, available, labels)
        alarms = {}
        for name, estimator in scoring.estimators.items():
            rows = features[name][available[name]]
            alarms[name] = _alarm_rate(estimator, rows)
            if len(rows) > 1:
                estimator.calibrate(rows)
        thresholds = {}
        if isinstance(scoring, DRFHead):
            thresholds = _fit_log_priors(scoring, features, available, labels)
        if head is None:
            return CalibrationReport((), alarms, thresholds)
        head.temperature.fill_(1)
        after = _by_pattern(head, features, available, labels)
        pooled = _best_temperature(*(torch.cat(part) for part in zip(*after, strict=True)))
        patterns = []
        for index, (old, (logits, target)) in enumerate(zip(before, after, strict=True)):
            own = _best_temperature(logits, target) if len(target) else pooled
            share = len(target) / (len(target) + _SHRINKAGE_SAMPLES)
            temperature = own.log().lerp(pooled.log(), 1 - share).exp()
            head.temperature[index] = temperature
            errors = zip(_errors(*old), _errors(logits / temperature, target), strict=True)
            names = head.candidates[index]
            patterns.append(PatternCalibration(names, len(target), float(temperature), *errors))
        head.temperature[-1] = pooled
    return CalibrationReport(tuple(patterns), alarms, thresholds)


def encode_batches(
    model: nn.Module, batches: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return the features that reach the head, their masks and the labels, of all batches."""
    features: dict[str, list[Tensor]] = {}
    available: dict[str, list[Tensor]] = {}
    labels = []
    for batch in batches:
        if not isinstance(batch, Mapping) or not {"inputs", "label"} <= batch.keys():
            got = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                'batches must be dicts of "inputs", "label" and, where something is missing, '
                f'"available"; got {got}'
            )
        out = model(batch["inputs"], batch.get("available"))
        for name, rows in read_output(out, "features").items():
            features.setdefault(name, []).append(rows)
            available.setdefault(name, []).append(out.log_quality[name] > -torch.inf)
        label = torch.as_tensor(batch["label"])
        check_labels(label, *out.logits.shape)
        labels.append(label.to(out.logits.device))
    if not labels:
        raise ValueError("batches must hold at least one batch, got none")
    return (
        {name: torch.cat(rows) for name, rows in features.items()},
        {name: torch.cat(masks) for name, masks in available.items()},
        torch.cat(labels),
    )


def _fit_log_priors(
    head: DRFHead, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> dict[str, float]:
    """Set the log-prior of each stand-in and return the qualities that they stand for."""
    initial = head.log_prior.fill_(initial_log_prior(len(head.dims))).clone()
    out = head(features, available)
    rows = out.extras["usable"].any(1)
    observed = torch.stack(list(available.values()), dim=1)
    replaced = (observed[:, None] & (head.candidates.mask == 0))[rows].to(initial)
    log_weight, logits, labels = out.weights[rows].log(), out.candidate_logits[rows], labels[rows]

    def cost(log_prior: Tensor) -> Tensor:
        weights = (log_weight + replaced @ (log_prior - initial)).softmax(1)
        fused = (weights[:, None].to(logits) @ logits).squeeze(1)
        penalty: Tensor = 0.5 * (log_prior - initial).square().sum()
        return F.cross_entropy(fused, labels, reduction="sum") + penalty

    best = initial.clone()
    steps = torch.linspace(0, math.log(_MAX_PRIOR_FACTOR), _PRIOR_STEPS)
    for _ in range(_PRIOR_ROUNDS):
        for index in range(len(initial)):
            trials = best.repeat(_PRIOR_STEPS, 1)
            trials[:, index] = initial[index] + steps
            best = trials[torch.stack([cost(trial) for trial in trials]).argmin()]
    head.log_prior.copy_(best)
    return dict(zip(head.dims, best.exp().tolist(), strict=True))


def _by_pattern(
    head: Any, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return logits and labels of all samples that can be restricted to each candidate."""
    outcome = []
    for candidate in head.candidates:
        rows = torch.stack([available[name] for name in candidate]).all(0)
        part = {name: values[rows] for name, values in features.items()}
        mask = {
            name: torch.full_like(labels[rows], name in candidate, dtype=torch.bool)
            for name in features
        }
        outcome.append((head(part, mask).logits, labels[rows]))
    return outcome


def _best_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the temperature between 1/20 and 20 with the smallest NLL, in steps of 2 %."""
    grid = torch.logspace(-1.3, 1.3, 301, device=logits.device)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in grid])
    return grid[losses.argmin()]


def _errors(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return expected calibration error and negative log-likelihood."""
    if not len(labels):
        return float("nan"), float("nan")
    confidence, answer = logits.softmax(-1).max(-1)
    ece = expected_calibration_error(confidence, answer == labels)
    return float(ece), float(F.cross_entropy(logits, labels))


def _alarm_rate(estimator: QualityEstimator, rows: Tensor) -> float:
    """Return the share of every second row that raises an alarm at 5 % among the others."""
    if len(rows) < 40:  # with fewer than 19 references no p-value is as small as 5 %
        return float("nan")
    score = estimator.score(rows)
    return float((conformal_p_value(score[::2], score[1::2]) <= 0.05).float().mean())
