"""Fit trust to the likelihood of held-out labels: what is minimized, and by which folds."""

import math
from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional as F

from robustfusion.candidates import Candidates
from robustfusion.functional import masked_softmax

# Below this log-quality a feature is so unusual that it loses trust in any case. Above it, unusual
# and harmful are different things, and the learned direction decides.
VETO_BELOW = -3.0
_PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)  # of the squared directions; cross-validation chooses
_SCALAR_PENALTY = 1e-2  # of the few other numbers, squared, about their initial values
_INTACT_SHARE = 0.5  # weight of intact samples in the fit; kinds of damage share the rest equally
_FOLDS = 4
_ITERATIONS = 60  # steps of L-BFGS


class HeldOut(NamedTuple):
    """Held-out samples, intact and damaged, as a trained model sees them.

    Attributes:
        features: (N, D_m) for each modality, standardized.
        available: (N, M) bool, True where a modality is present.
        log_quality: (N, M), at most 0.
        agreement: (N, M), evidence that is added to that of each modality.
        logits: (N, K, H, C), the predictions of each candidate. H is 2 for a head whose candidates
            mix early and late fusion, else 1.
        target: (N,) long, the class of each sample.
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
        """Return the samples that a mask selects."""
        features = {name: x[selected] for name, x in self.features.items()}
        return HeldOut(features, *(part[selected] for part in self[1:]))


class TrustFit(NamedTuple):
    """The outcome of a fit.

    Attributes:
        penalty: The chosen penalty, inf where learning did not pay and changed nothing.
        nll: Cross-validated negative log-likelihood of the fused prediction, before and after.
        samples: Number of samples, with intact and damaged copies counted singly.
    """

    penalty: float
    nll: tuple[float, float]
    samples: int


class Numbers(NamedTuple):
    """The numbers that a fit moves, named."""

    directions: tuple[Tensor, ...]
    bias: Tensor
    veto: Tensor
    offset: Tensor
    late_share: Tensor
    scale: Tensor  # of the logits; their confidence is calibrated elsewhere and must not matter


class _Part(NamedTuple):
    """Some of the samples."""

    selected: Tensor
    samples: HeldOut
    trusted: Tensor
    usable: Tensor
    weight: Tensor


class Problem:
    """The likelihood of held-out labels as a function of one vector of numbers."""

    def __init__(self, samples: HeldOut, candidates: Candidates, log_prior: float) -> None:
        self.samples, self.log_prior = samples, log_prior
        self.trusted, self.usable = candidates.restrict(samples.available)
        self.weight = _weights(samples.kind)
        modalities, number = samples.available.shape[1], len(candidates)
        widths = [x.shape[1] for x in samples.features.values()]
        self.sizes = [*widths, modalities, modalities, number, 1, 1]
        # At first a typical intact feature, of log-quality log(1/2), is trusted as before the fit.
        bias = torch.full((modalities,), math.log(0.5) - log_prior - VETO_BELOW)
        rest = torch.zeros(modalities + number + 2)
        self.initial = torch.cat([torch.zeros(sum(widths)), bias, rest]).to(samples.log_quality)
        self.folds = [(self._part(train), self._part(test)) for train, test in _folds(samples)]

    def _part(self, selected: Tensor) -> "_Part":
        weight = self.weight[selected]
        rows = self.samples.rows(selected)
        share = weight / weight.sum()
        return _Part(selected, rows, self.trusted[selected], self.usable[selected], share)

    def numbers(self, vector: Tensor) -> Numbers:
        """Name the parts of a vector."""
        *directions, bias, veto, offset, late, scale = vector.split(self.sizes)
        return Numbers(tuple(directions), bias, veto.exp(), offset, late.sigmoid(), scale.exp())

    def cross_fit(self) -> tuple[TrustFit, list[Tensor | None]]:
        """Return the best fit and the vector of each fold, None where nothing is better."""
        before = self._losses([None] * len(self.folds))
        best, losses, chosen = [None] * len(self.folds), before, math.inf
        fitted = [self.initial] * len(self.folds)
        for penalty in _PENALTIES:
            fitted = [
                self._minimize(train, penalty, start)
                for (train, _), start in zip(self.folds, fitted, strict=True)
            ]
            trial = self._losses(fitted)
            if trial.sum() < losses.sum():
                best, losses, chosen = fitted, trial, penalty
        gain = before - losses
        if gain.mean() <= gain.std() / math.sqrt(len(gain)):  # no more than chance explains
            best, losses, chosen = [None] * len(self.folds), before, math.inf
        nll = (float(before.sum()), float(losses.sum()))
        return TrustFit(chosen, nll, len(self.samples.target)), best

    def left_out_evidence(self, fitted: list[Tensor | None]) -> Tensor:
        """Return the evidence of all samples, each by the function that did not see it, (N, M)."""
        evidence = torch.zeros_like(self.samples.log_quality)
        for (_, test), vector in zip(self.folds, fitted, strict=True):
            evidence[test.selected] = self._evidence(vector, test.samples)
        return evidence

    def _evidence(self, vector: Tensor | None, samples: HeldOut) -> Tensor:
        if vector is None:
            return samples.log_quality - self.log_prior
        numbers = self.numbers(vector)
        learned = [
            x.to(vector.dtype) @ direction
            for x, direction in zip(samples.features.values(), numbers.directions, strict=True)
        ]
        veto = numbers.veto * samples.log_quality.clamp_max(VETO_BELOW)
        return torch.stack(learned, dim=1) + veto + numbers.bias

    def _nll(self, vector: Tensor | None, part: "_Part") -> Tensor:
        """Return the negative log-likelihood of each sample of a part."""
        samples, trusted, usable = part.samples, part.trusted, part.usable
        evidence = self._evidence(vector, samples) + samples.agreement
        log_weight = evidence[:, None].where(trusted, 0.0).sum(-1)
        logits = samples.logits.to(evidence.dtype)
        if vector is None:
            logits = logits.mean(2)
        else:
            numbers = self.numbers(vector)
            log_weight = log_weight + numbers.offset
            early, late = logits[:, :, 0], logits[:, :, -1]
            logits = torch.lerp(early, late, numbers.late_share) * numbers.scale
        weights = masked_softmax(log_weight, usable)
        fused = einsum(weights, logits, "n k, n k c -> n c")
        return F.cross_entropy(fused, samples.target, reduction="none")

    def _minimize(self, train: "_Part", penalty: float, start: Tensor) -> Tensor:
        """Return the vector of the smallest penalized loss, found from a start by L-BFGS."""
        with torch.enable_grad():
            vector = start.clone().requires_grad_()
            optimizer = torch.optim.LBFGS(
                [vector], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
            )
            width = sum(self.sizes[:-5])

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (self._nll(vector, train) * train.weight).sum()
                moved = (vector - self.initial).square()
                loss = loss + penalty * moved[:width].sum()
                loss = loss + _SCALAR_PENALTY * moved[width:].sum()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return vector.detach()

    def _losses(self, vectors: list[Tensor | None]) -> Tensor:
        """Return the weighted loss of each group of samples by the function that left it out."""
        nll = torch.zeros_like(self.weight)
        for (_, test), vector in zip(self.folds, vectors, strict=True):
            nll[test.selected] = self._nll(vector, test)
        index = self.samples.group.unique(return_inverse=True)[1]
        return torch.zeros(int(index.max()) + 1).to(nll).index_add_(0, index, nll * self.weight)


def _weights(kind: Tensor) -> Tensor:
    """Weight the samples of each kind equally, and intact ones as much as all damage together."""
    index, counts = kind.unique(return_inverse=True, return_counts=True)[1:]
    weight = 1 / counts[index].float()
    intact = kind == 0
    if bool(intact.any()) and not bool(intact.all()):
        number = len(counts) - 1
        weight = torch.where(intact, _INTACT_SHARE * weight, (1 - _INTACT_SHARE) * weight / number)
    return weight / weight.sum()


def _folds(samples: HeldOut) -> list[tuple[Tensor, Tensor]]:
    """Return masks of the samples to fit and to leave out.

    A fold leaves out one part of the groups and, of the rest, one part of the kinds of damage.
    """
    group = samples.group.unique(return_inverse=True)[1]
    kind = samples.kind.unique(return_inverse=True)[1]
    several = int(kind.max()) >= _FOLDS
    folds = []
    for fold in range(_FOLDS):
        test = group % _FOLDS == fold
        unseen = (samples.kind > 0) & (kind % _FOLDS == fold) & several
        folds.append((~test & ~unseen, test))
    return folds
