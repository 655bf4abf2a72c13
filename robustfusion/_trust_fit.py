"""Fit trust and predicted harm to held-out samples, intact and damaged."""

import math
from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from robustfusion.candidates import Candidates
from robustfusion.functional import masked_softmax
from robustfusion.tasks import Task, sample_loss

# Penalty of the squared directions; cross-validation chooses. Between 0.1 and 3 the accuracy
# hardly changes: sketches on three seeds of the main job and on MVSA-Single.
_PENALTIES = (3.0, 1.0, 0.3, 0.1)
_NUMBER_PENALTY = 1e-2  # penalty of the few other numbers, squared, about their initial values
_INTACT_SHARE = 0.5  # weight of intact samples in the fit; kinds of damage share the rest equally
_FOLDS = 3
_MIN_ERROR = 1e-6  # squared error in units of the variance of the targets
_ITERATIONS = 60  # steps of L-BFGS
# Ridge penalty of predicted harm. With less, references that a fold left out vary more than new
# samples do, and false alarms are too rare.
_HARM_PENALTY = 2.0
LOWEST_LOG_QUALITY = -8.0  # lower ones count as this; none of 2,048 intact features is as unusual


class HeldOut(NamedTuple):
    """Held-out samples, intact and damaged, as a trained model sees them.

    Attributes:
        features: (N, D_m) for each modality, standardized.
        available: (N, M) bool, True where a modality is present.
        log_quality: (N, M), at most 0.
        agreement: (N, M), evidence that is added to that of each modality.
        logits: (N, K, H, C), the predictions of each candidate. H is 2 for a head whose candidates
            mix early and late fusion, else 1.
        target: The target of each sample, see :mod:`robustfusion.tasks`.
        kind: (N,) long, 0 for intact samples, else the number of the kind of damage.
        group: (N,) long, equal for all copies of one sample.
    """

    features: dict[str, Tensor]
    available: Tensor
    log_quality: Tensor
    agreement: Tensor
    logits: Tensor
    target: Tensor
    kind: Tensor
    group: Tensor

    def rows(self, selected: Tensor) -> "HeldOut":
        """Return the samples that a mask or an index selects."""
        features = {name: x[selected] for name, x in self.features.items()}
        return HeldOut(features, *(part[selected] for part in self[1:]))


class TrustFit(NamedTuple):
    """The outcome of a fit.

    Attributes:
        penalty: The chosen penalty, inf where learning did not pay and changed no weight.
        nll: Cross-validated negative log-likelihood of the fused prediction, before and after.
        samples: Number of samples, with intact and damaged copies counted singly.
    """

    penalty: float
    nll: tuple[float, float]
    samples: int


class Numbers(NamedTuple):
    """The numbers that the fit of trust moves."""

    directions: tuple[Tensor, ...]
    bias: Tensor
    slope: Tensor
    offset: Tensor
    late_share: Tensor
    scale: Tensor  # a factor of the logits, whose confidence is calibrated elsewhere


class _Part(NamedTuple):
    """Some of the samples, and what the objective needs of them."""

    samples: HeldOut
    trusted: Tensor
    usable: Tensor
    weight: Tensor


class TrustProblem:
    """The likelihood of held-out targets as a function of one vector of numbers."""

    def __init__(
        self, samples: HeldOut, candidates: Candidates, log_prior: float, task: Task
    ) -> None:
        self.samples, self.task = samples, task
        self.trusted, self.usable = candidates.restrict(samples.available)
        self.weight = _weights(samples.kind)
        modalities, number = samples.available.shape[1], len(candidates)
        widths = [x.shape[1] for x in samples.features.values()]
        self.sizes = [*widths, modalities, modalities, number, 1, 1]
        self.width = sum(widths)
        # The initial numbers are the rule without learning: log-quality minus log-prior.
        self.initial = torch.zeros(sum(self.sizes)).to(samples.log_quality)
        self.initial[self.width : self.width + modalities] = -log_prior
        self.folds = folds(samples)
        # Numbers are normally distributed with the variance of the initial errors.
        self.precision = 1.0
        if task == "regression":
            everything = torch.ones_like(samples.kind, dtype=torch.bool)
            error = (self._nll(self.initial, self._part(everything)) * self.weight).sum()
            self.precision = 0.5 / max(float(error), _MIN_ERROR)

    def numbers(self, vector: Tensor) -> Numbers:
        """Name the parts of a vector."""
        *directions, bias, slope, offset, late, scale = torch.split(vector, self.sizes)
        if self.task == "regression":  # numbers have a scale, which is not calibrated elsewhere
            scale = torch.zeros_like(scale)
        return Numbers(tuple(directions), bias, slope.exp(), offset, late.sigmoid(), scale.exp())

    def fit(self) -> tuple[TrustFit, Numbers]:
        """Choose the penalty by cross-validation, and return the fit to all samples."""
        parts = [(self._part(train), test, self._part(test)) for train, test in self.folds]
        vectors = [self.initial] * len(parts)
        before = losses = self._losses(parts, vectors)
        penalty = math.inf
        for trial in _PENALTIES:  # from strong to weak, each starting from the one before
            vectors = [
                self._minimize(train, trial, vector)
                for (train, _, _), vector in zip(parts, vectors, strict=True)
            ]
            trial_losses = self._losses(parts, vectors)
            if trial_losses.sum() < losses.sum():
                penalty, losses = trial, trial_losses
            elif penalty < math.inf:  # weaker penalties only get worse
                break
        gain = before - losses
        if gain.mean() <= gain.std() / math.sqrt(len(gain)):  # no more than chance explains
            penalty, losses = math.inf, before
        vector = self.initial
        if penalty < math.inf:
            everything = torch.ones_like(self.samples.kind, dtype=torch.bool)
            vector = self._minimize(self._part(everything), penalty, self.initial)
        nll = (float(before.sum()), float(losses.sum()))
        return TrustFit(penalty, nll, len(self.samples.target)), self.numbers(vector)

    def _part(self, selected: Tensor) -> _Part:
        weight = self.weight[selected]
        return _Part(
            self.samples.rows(selected),
            self.trusted[selected],
            self.usable[selected],
            weight / weight.sum(),
        )

    def _nll(self, vector: Tensor, part: _Part) -> Tensor:
        """Return the negative log-likelihood of each sample of a part."""
        samples, numbers = part.samples, self.numbers(vector)
        learned = [
            x.to(vector.dtype) @ direction
            for x, direction in zip(samples.features.values(), numbers.directions, strict=True)
        ]
        evidence = torch.stack(learned, dim=1) + numbers.slope * samples.log_quality + numbers.bias
        evidence = (evidence + samples.agreement)[:, None].where(part.trusted, 0.0)
        weights = masked_softmax(evidence.sum(-1) + numbers.offset, part.usable)
        logits = samples.logits.to(vector.dtype)
        logits = torch.lerp(logits[:, :, 0], logits[:, :, -1], numbers.late_share)
        fused = einsum(weights, numbers.scale * logits, "n k, n k c -> n c")
        return self.precision * sample_loss(fused, samples.target, self.task)[0]

    def _minimize(self, part: _Part, penalty: float, start: Tensor) -> Tensor:
        """Return the vector with the smallest penalized loss."""
        with torch.enable_grad():
            vector = start.clone().requires_grad_()
            optimizer = torch.optim.LBFGS(
                [vector], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                optimizer.zero_grad()
                moved = (vector - self.initial).square()
                loss = (self._nll(vector, part) * part.weight).sum()
                loss = loss + penalty * moved[: self.width].sum()
                loss = loss + _NUMBER_PENALTY * moved[self.width :].sum()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return vector.detach()

    def _losses(self, parts: list[tuple[_Part, Tensor, _Part]], vectors: list[Tensor]) -> Tensor:
        """Return the weighted loss of each sample, all copies of it, by the fold without it."""
        nll = torch.zeros_like(self.weight)
        for (_, test, part), vector in zip(parts, vectors, strict=True):
            nll[test] = self._nll(vector, part)
        index = torch.unique(self.samples.group, return_inverse=True)[1]
        total = torch.zeros(int(index.max()) + 1).to(nll)
        return total.index_add_(0, index, nll * self.weight)


class HarmFit(NamedTuple):
    """Predicted harm of one modality: a linear function, and its values on intact samples.

    Attributes:
        direction: (D,), of the standardized features.
        slope: (), of the log-quality.
        bias: ().
        references: (n,), the harm predicted for intact samples by folds that left them out.
    """

    direction: Tensor
    slope: Tensor
    bias: Tensor
    references: Tensor


def fit_harm(samples: HeldOut, name: str, candidate: int, task: Task) -> HarmFit | None:
    """Fit how much damage to one modality changes the prediction from it alone.

    The target is the total variation between the predictions from the damaged and from the intact
    feature, its mean over several labels, or the mean distance of numbers in units of their
    standard deviation, at most 1 each. No target is needed. ``None`` if no damaged copy of the
    modality is known.
    """
    index = list(samples.features).index(name)
    x = samples.features[name].float()
    prediction = samples.logits[:, candidate].float().mean(1)
    if task != "regression":
        prediction = prediction.softmax(-1) if task == "multiclass" else prediction.sigmoid()
    intact = (samples.kind == 0) & samples.available[:, index]
    # The intact row of each sample, which its copies are compared with.
    row = torch.full((int(samples.group.max()) + 1,), -1, device=x.device)
    row[samples.group[intact]] = intact.nonzero().squeeze(1)
    partner = row[samples.group]
    damaged = (samples.kind > 0) & samples.available[:, index] & (partner >= 0)
    damaged = damaged & (x != x[partner]).any(1)
    if not bool(damaged.any()):
        return None
    change = (prediction - prediction[partner]).abs()
    harm = 0.5 * change.sum(-1) if task == "multiclass" else change.clamp_max(1).mean(-1)
    quality = samples.log_quality[:, index, None].clamp_min(LOWEST_LOG_QUALITY)
    rows = torch.cat([x, quality], dim=1)
    used = intact | damaged
    rows, harm, damaged = rows[used], harm.where(damaged, 0.0)[used], damaged[used]
    weight = _weights(samples.kind[used])
    fold = torch.unique(samples.group, return_inverse=True)[1][used] % _FOLDS
    predicted = torch.zeros_like(harm)
    for number in range(_FOLDS):
        train, test = fold != number, fold == number
        *slopes, bias = _ridge(rows[train], harm[train], weight[train])
        predicted[test] = rows[test] @ torch.stack(slopes) + bias
    *direction, slope, bias = _ridge(rows, harm, weight)
    return HarmFit(torch.stack(direction), slope, bias, predicted[~damaged])


def _ridge(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return slopes and intercept of a weighted ridge regression, (n, D) -> (D + 1,)."""
    weight = weight / weight.sum()
    mean, target = weight @ x, weight @ y
    root = weight.sqrt()
    a, b = (x - mean) * root[:, None], (y - target) * root
    wide = a.shape[1] > a.shape[0]
    gram = a @ a.T if wide else a.T @ a
    gram.diagonal().add_(_HARM_PENALTY)
    slope = a.T @ torch.linalg.solve(gram, b) if wide else torch.linalg.solve(gram, a.T @ b)
    return torch.cat([slope, (target - mean @ slope)[None]])


def _weights(kind: Tensor) -> Tensor:
    """Weight all kinds of damage equally, and intact samples as much as all damage together."""
    _, index, counts = torch.unique(kind, return_inverse=True, return_counts=True)
    weight = 1 / counts[index].float()
    intact = kind == 0
    if bool(intact.any()) and not bool(intact.all()):
        number = len(counts) - 1
        weight = torch.where(intact, _INTACT_SHARE * weight, (1 - _INTACT_SHARE) * weight / number)
    total: Tensor = weight / weight.sum()
    return total


def folds(samples: HeldOut) -> list[tuple[Tensor, Tensor]]:
    """Return masks of the samples to fit and of those to leave out.

    A fold leaves out a part of the samples with all their copies and, of the rest, a part of the
    kinds of damage, so that what is chosen suits samples and kinds that the fit did not see.
    """
    group = torch.unique(samples.group, return_inverse=True)[1]
    several = len(torch.unique(samples.kind)) > 2 * _FOLDS
    parts = []
    for fold in range(_FOLDS):
        test = group % _FOLDS == fold
        unseen = (samples.kind > 0) & (samples.kind % _FOLDS == fold) & several
        parts.append((~test & ~unseen, test))
    return parts
