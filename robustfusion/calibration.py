"""After training: what is usual, and how sure to be, by samples the model has not seen."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._modules import evaluating
from robustfusion._validation import check_labels
from robustfusion.candidates import trusted_by
from robustfusion.quality import QualityEstimator
from robustfusion.voting import VotingHead

_PRIOR_ROWS = 50  # ours: of so many rows a pattern's temperature lies half-way to that of all
_BINS = 15  # as Guo et al. have it
# How much more than at birth a modality may be doubted. In sketches a larger factor gained little
# on intact posts and lost macro-F1 where the other modality was poor.
_DOUBT = 2.0
_TRIED, _ROUNDS = 8, 3  # of the search on a grid, one modality after the other


class PatternCalibration(NamedTuple):
    """What calibration did for the samples of which just these modalities are there.

    Attributes:
        modalities: Their names.
        rows: Number of held-out samples; those with more modalities count too, without them.
        temperature: What logits are divided by.
        ece: Expected calibration error in 15 bins, before and after.
        nll: Mean negative log-likelihood, before and after.
    """

    modalities: tuple[str, ...]
    rows: int
    temperature: float
    ece: tuple[float, float]
    nll: tuple[float, float]


class CalibrationReport(NamedTuple):
    """What :func:`~robustfusion.calibrate` did.

    Attributes:
        patterns: One :class:`PatternCalibration` for each of the head's candidates; empty for a
            head without temperatures.
        alarms: For each modality the share of one half of the held-out rows that alarms at 5 % by
            the other half: near 0.05 if the two are alike. NaN with fewer than 40 rows.
        doubts: For each modality the quality below which its stand-in weighs more than a feature.
            Empty for a head without stand-ins.
    """

    patterns: tuple[PatternCalibration, ...]
    alarms: dict[str, float]
    doubts: dict[str, float]

    def to_markdown(self) -> str:
        """Return the report as a table and a line."""
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
            f"{name} {100 * rate:.1f} %" if rate == rate else f"{name} not known (too few rows)"
            for name, rate in self.alarms.items()
        )
        lines = [*(lines if self.patterns else []), "", f"Alarms at 5 %: {alarms}."]
        if self.doubts:
            doubts = ", ".join(f"{name} {doubt:.2f}" for name, doubt in self.doubts.items())
            lines += ["", f"A stand-in weighs more than a feature of less quality than: {doubts}."]
        return "\n".join(lines)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    voters: Iterable[Mapping[str, Any]] | None = None,
) -> CalibrationReport:
    r"""Calibrate a trained model's qualities, p-values and probabilities on held-out samples.

    Each quality estimator takes the held-out features as what is usual for intact ones. Then the
    log-quality :math:`q_m` of each modality's stand-in, :math:`q_0` at birth, is set to minimize

    .. math:: \sum_i \mathrm{NLL}_i(q) + \tfrac12 \sum_m (q_m - q_0)^2,
              \qquad q_0 \le q_m \le q_0 + \log 2:

    a modality without which the others predict as well weighs less, and so does less harm when it
    is poor. Last, each availability pattern gets a temperature :math:`T`, which minimizes the
    negative log-likelihood of ``logits / T``. A pattern with n samples is drawn towards the
    temperature of all patterns, :math:`\log T = (n \log T_n + 50 \log T_{all}) / (n + 50)`. What
    is learned lies in buffers and is saved with the model.

    The samples must be intact and must not have been trained on: the validation samples, say.
    Train further, and call it again.

    Args:
        model: :class:`~robustfusion.DRFClassifier`, :class:`~robustfusion.DRFHead` or any model
            that returns a :class:`~robustfusion.DRFOutput` and holds such a head.
        batches: Dicts of ``inputs``, ``available`` (optional) and ``label`` (B,).
        voters: The same of the training samples, for a :class:`~robustfusion.VotingHead`.

    Returns:
        A small report, with ``to_markdown()``.

    Raises:
        ValueError: If the model has no quality estimators, or nothing comes in ``batches``, or a
            batch lacks something, or there are ``voters`` for another head. Then nothing has
            changed.
        TypeError: If labels are not integers.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, calibrate
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> inputs = {"image": torch.randn(64, 8), "text": torch.randn(64, 4)}
        >>> report = calibrate(head, [{"inputs": inputs, "label": torch.randint(3, (64,))}])
        >>> [pattern.modalities for pattern in report.patterns]
        [('image', 'text'), ('image',), ('text',)]

    Reference:
        Temperature: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. P-values:
        split conformal prediction, https://arxiv.org/abs/2107.07511.
    """
    head: Any = next((m for m in model.modules() if hasattr(m, "estimators")), None)
    if head is None:
        raise ValueError(
            f"model has no quality estimators to calibrate: got {type(model).__name__}, expected "
            "a DRFHead or a model with one"
        )
    if voters is not None and not isinstance(head, VotingHead):
        raise ValueError(f"voters are for a VotingHead, got {type(head).__name__}")
    with evaluating(model):
        features, available, labels = _collect(model, batches, "batches")
        if voters is not None:
            voting, there, votes = _collect(model, voters, "voters")
            head.fit(voting, votes, there)
        before = _patterns(head, features, available, labels)
        alarms = {}
        for name, estimator in head.estimators.items():
            rows = features[name][available[name]]
            alarms[name] = _alarm_rate(estimator, rows)
            if len(rows) > 1:
                estimator.calibrate(rows)
        doubts = _weigh_stand_ins(head, features, available, labels)
        if not hasattr(head, "temperature"):
            return CalibrationReport((), alarms, doubts)
        head.temperature.fill_(1)
        after = _patterns(head, features, available, labels)
        pooled = _best_temperature(*(torch.cat(part) for part in zip(*after, strict=True)))
        found = []
        for place, (old, (logits, target)) in enumerate(zip(before, after, strict=True)):
            own = _best_temperature(logits, target) if len(target) else pooled
            share = len(target) / (len(target) + _PRIOR_ROWS)
            temperature = own.log().lerp(pooled.log(), 1 - share).exp()
            head.temperature[place] = temperature
            errors = zip(_errors(*old), _errors(logits / temperature, target), strict=True)
            names = head.candidates[place]
            found.append(PatternCalibration(names, len(target), float(temperature), *errors))
        head.temperature[-1] = pooled
    return CalibrationReport(tuple(found), alarms, doubts)


def _weigh_stand_ins(
    head: Any, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> dict[str, float]:
    """Set what stand-ins count for."""
    head = head.head if isinstance(head, VotingHead) else head
    if not hasattr(head, "stand_in"):
        return {}
    head.stand_in.reset_log_quality()
    log_quality, out = head.stand_in.log_quality, head(features, available)
    born, rows = log_quality.clone(), out.usable.any(1)
    here = torch.stack(list(available.values()), dim=1)
    without = (here[:, None] & ~trusted_by(len(born), here.device))[rows].to(born)
    log_weight, logits, labels = out.weights[rows].log(), out.candidate_logits[rows], labels[rows]

    def cost(fitted: Tensor) -> Tensor:
        weights = (log_weight + without @ (fitted - born)).softmax(1)
        mixed = (weights[:, None].to(logits) @ logits).squeeze(1)
        prior: Tensor = 0.5 * (fitted - born).square().sum()
        return F.cross_entropy(mixed, labels, reduction="sum") + prior

    fitted = born.clone()
    for _ in range(_ROUNDS):
        for place in range(len(born)):
            tried = fitted.repeat(_TRIED, 1)
            tried[:, place] = born[place] + torch.linspace(0, math.log(_DOUBT), _TRIED)
            fitted = tried[torch.stack([cost(trial) for trial in tried]).argmin()]
    log_quality.copy_(fitted)
    return dict(zip(head.dims, fitted.exp().tolist(), strict=True))


def _collect(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], argument: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The features that reach the head, which of them are there, and the labels."""
    features: dict[str, list[Tensor]] = {}
    available: dict[str, list[Tensor]] = {}
    labels = []
    for batch in batches:
        if not isinstance(batch, Mapping) or not {"inputs", "label"} <= batch.keys():
            got = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(
                f'{argument} must be dicts of "inputs", "label" and, where something is missing, '
                f'"available"; got {got}'
            )
        out = model(batch["inputs"], batch.get("available"))
        for name, rows in out.features.items():
            features.setdefault(name, []).append(rows)
            available.setdefault(name, []).append(out.log_quality[name] > -torch.inf)
        label = torch.as_tensor(batch["label"])
        check_labels(label, *out.logits.shape)
        labels.append(label.to(out.logits.device))
    if not labels:
        raise ValueError(f"{argument} must hold at least one batch, got none")
    return (
        {name: torch.cat(rows) for name, rows in features.items()},
        {name: torch.cat(masks) for name, masks in available.items()},
        torch.cat(labels),
    )


def _patterns(
    head: Any, features: dict[str, Tensor], available: dict[str, Tensor], labels: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of the samples that have what each candidate trusts, with just that."""
    found = []
    for candidate in head.candidates:
        rows = torch.stack([available[name] for name in candidate]).all(0)
        part = {name: values[rows] for name, values in features.items()}
        mask = {
            name: torch.full_like(labels[rows], name in candidate, dtype=torch.bool)
            for name in features
        }
        found.append((head(part, mask).logits, labels[rows]))
    return found


def _best_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature between 1/20 and 20 of the least NLL, to a step of 2 %."""
    grid = torch.logspace(-1.3, 1.3, 301, device=logits.device)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in grid])
    return grid[losses.argmin()]


def _errors(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Expected calibration error and negative log-likelihood."""
    if not len(labels):
        return float("nan"), float("nan")
    confidence, answer = logits.softmax(-1).max(-1)
    bins = (confidence * _BINS).long().clamp_max(_BINS - 1)
    gap = torch.zeros(_BINS, device=logits.device)
    gap.index_add_(0, bins, (answer == labels).to(gap.dtype) - confidence.to(gap.dtype))
    return float(gap.abs().sum() / len(labels)), float(F.cross_entropy(logits, labels))


def _alarm_rate(estimator: QualityEstimator, rows: Tensor) -> float:
    """The share of every second row that is an alarm at 5 % by the others."""
    if len(rows) < 40:  # beside fewer than 19 others nothing has a p-value of 5 %
        return float("nan")
    score = estimator.score(rows)
    odd, reference = score[::2], score[1::2]
    p_value = (1 + (reference[None] >= odd[:, None]).sum(1)) / (1 + len(reference))
    return float((p_value <= 0.05).double().mean())
