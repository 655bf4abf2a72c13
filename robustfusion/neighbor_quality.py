"""The probability that a feature is intact, from its neighbours in a queue of its modality."""

import math
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._modules import keep_rows
from robustfusion._state import snapshot
from robustfusion._validation import check_between, check_mask, check_positive, check_vectors
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import (
    at_least_float32,
    fit_logistic,
    nearest_rows,
    replace_coordinates,
)
from robustfusion.moments import RunningMoments

_RECENT_SCORES = 512
_SHARES = (0.1, 0.6)
_ORIGIN = 0.5
_LOCAL = 0.25


class Look(NamedTuple):
    """What a look at the queue tells of each feature.

    ``score`` (B,) is higher for better features; ``gap`` (B,) is the log of one minus the mean
    cosine to the neighbours.
    """

    score: Tensor
    gap: Tensor


class NeighborQualityEstimator(nn.Module):
    r"""Estimate how likely a feature is intact, by its nearest neighbours among past features.

    A density asks how close a feature is to the centre, and takes the feature of a blank image for
    a good one; neighbours ask whether anything like it was seen. With :math:`s` the mean cosine
    between a standardised feature and the ``neighbors`` most similar rows of a queue, the score is

    .. math:: -\log(1 - s) + \tfrac14 \, \overline{\log(1 - s_j)},

    where :math:`s_j` is what neighbour j itself had when it entered: a quarter of what makes a
    local outlier factor, for a feature may be farther from its neighbours where these are far from
    each other. Angles are taken at a point half a standard deviation from the mean, on the side
    where each coordinate rests (against its skew): at the mean itself they would ignore lengths,
    and at the features' own zero they would depend on how the features were shifted.

    Scores become log-odds without labels or corrupted data: a share of 10 to 60 % of each
    feature's coordinates is replaced by those of other rows of the queue, which breaks the feature
    but keeps every marginal, and a logistic curve of two numbers is fitted to tell the scores of
    real features from those. It is refitted at each update from recent scores, by Newton's method
    rather than by your optimiser, so no learning rate can spoil it.

    Before anything was observed every feature is as likely intact as ``prior`` says.

    Args:
        dim: Width D of one feature vector.
        capacity: Number of past features kept.
        neighbors: Number of neighbours that are averaged.
        prior: Share of intact features to expect. The curve is fitted to as many broken features
            as real ones; a higher prior forgives more.

    Shape:
        - ``features``, ``samples``: (B, D); ``available``, ``valid``: (B,) bool
        - Output: (B,), float32 or better

    Raises:
        ValueError: If a shape or an option does not fit.
        TypeError: If ``features`` is not floating or a mask not bool.

    Example:
        >>> mixing = torch.randn(4, 32)
        >>> real = torch.randn(1000, 4) @ mixing
        >>> estimator = NeighborQualityEstimator(dim=32).fit(real)
        >>> seen, noise = torch.randn(100, 4) @ mixing, torch.randn(100, 32)
        >>> bool(estimator(seen).mean() > estimator(noise).mean() + 1)
        True

    Reference:
        Neighbours as a score: Sun et al., ICML 2022, https://arxiv.org/abs/2204.06507. Local
        outlier factor: Breunig et al., SIGMOD 2000. The curve: Platt, 1999.
    """

    mean: Tensor
    scale: Tensor
    origin: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(
        self, dim: int, *, capacity: int = 2048, neighbors: int = 10, prior: float = 0.5
    ) -> None:
        super().__init__()
        check_positive(neighbors, "neighbors")
        check_between(prior, 0.001, 0.999, "prior")
        self.dim = dim
        self.capacity = capacity
        self.neighbors = neighbors
        self.prior = prior
        self.queue = FeatureQueue(dim, capacity, track_moments=True)
        # In step with the queue, of each row when it entered: one over its length, and its gap.
        self.known = FeatureQueue(2, capacity)
        # Recent scores: of real features, and of the same with coordinates replaced.
        self.scores = FeatureQueue(2, _RECENT_SCORES)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("origin", torch.zeros(dim))
        self.register_buffer("slope", torch.zeros(()))
        self.register_buffer("offset", torch.zeros(()))

    def look(self, features: Tensor) -> Look:
        """Compare features with the queue; no gradient."""
        check_vectors(features, self.dim, "features", batched=True)
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            scale, origin = at_least_float32(self.scale), at_least_float32(self.origin)
            seen = (at_least_float32(features) - origin) / scale
            direction = F.normalize(seen, dim=-1) / scale
            similarity, place = nearest_rows(
                direction,
                self.queue.storage,
                self.known.storage[:, 0],
                direction @ origin.to(direction.dtype),
                neighbors=self.neighbors,
            )
            found = similarity.isfinite()
            number = found.sum(-1).clamp_min(1)
            # Without any neighbour it is as far as a right angle.
            gap = (1 - similarity.where(found, 0.0).sum(-1) / number).log()
            # What the neighbours' own gaps were; a row that came first had no neighbour to tell.
            theirs = at_least_float32(self.known.storage[:, 1])[place]
            told = found & (theirs < 0)
            usual = theirs.where(told, 0.0).sum(-1) / told.sum(-1).clamp_min(1)
            return Look(_LOCAL * usual.where(told.any(-1), gap) - gap, gap)

    def log_odds(self, score: Tensor) -> Tensor:
        """Log-odds that a feature with this score is intact, (B,) -> (B,)."""
        prior = math.log(self.prior / (1 - self.prior))
        return self.slope * score + self.offset + prior

    def forward(self, features: Tensor) -> Tensor:
        """Log-quality: the log-probability that each feature is intact, at most 0."""
        return F.logsigmoid(self.log_odds(self.look(features).score))

    @torch.no_grad()
    def observe(
        self, features: Tensor, available: Tensor | None = None, *, look: Look | None = None
    ) -> None:
        """Recalibrate with these features and their broken twins, then store them.

        ``look`` saves computing ``look(features)`` once more.
        """
        check_vectors(features, self.dim, "features", batched=True)
        if available is None:
            available = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
        check_mask(available, (features.shape[0],), "available")
        features = keep_rows(features.detach(), available)
        order = available.cumsum(0) + self.queue.cursor
        broken = replace_coordinates(
            features, self.queue.storage, self.queue.count, order, shares=_SHARES
        )
        look = self.look(features) if look is None else look
        pairs = torch.stack([look.score, self.look(broken).score], dim=1)
        # Neighbours say nothing until there are more of them than are averaged.
        self.scores.enqueue(pairs, available & (self.queue.count > self.neighbors))
        # From the last curve one step of Newton's method follows the scores as they drift.
        slope, offset = fit_logistic(
            self.scores.storage, self.scores.valid, (self.slope, self.offset), steps=1
        )
        # Through a view: compiled, torch can lose a `copy_` into a 0-dimensional CPU buffer.
        self.slope[...], self.offset[...] = slope, offset
        self.queue.enqueue(features, available)
        moments = cast("RunningMoments", self.queue.moments)
        mean, scale = moments.gaussian("diag")
        self.mean.copy_(mean)
        # A floor for coordinates that never vary; one row alone does not vary at all.
        floored = scale + 0.01 * scale.mean()
        self.scale.copy_(torch.where(self.queue.count > 1, floored, self.scale))
        self.origin.copy_(mean - _ORIGIN * moments.third_central_moment().sign() * self.scale)
        seen = (at_least_float32(features) - self.origin) / self.scale
        lengths = torch.linalg.vector_norm(seen, dim=-1)
        known = torch.stack([1 / lengths.clamp_min(1e-6), look.gap], dim=1)
        self.known.enqueue(known, available)

    @torch.no_grad()
    def fit(self, samples: Tensor, valid: Tensor | None = None) -> Self:
        """Forget everything and observe the samples, in their order, twice.

        The second time each sample is compared with all that the queue holds.
        """
        check_vectors(samples, self.dim, "samples", batched=True)
        self.reset()
        for _ in range(2):
            for start in range(0, samples.shape[0], _RECENT_SCORES):
                stop = start + _RECENT_SCORES
                self.observe(samples[start:stop], None if valid is None else valid[start:stop])
        slope, offset = fit_logistic(self.scores.storage, self.scores.valid)
        self.slope[...], self.offset[...] = slope, offset
        return self

    def reset(self) -> None:
        """Forget everything."""
        for ring in (self.queue, self.known, self.scores):
            ring.reset()
        for buffer in (self.mean, self.origin, self.slope, self.offset):
            buffer.zero_()
        self.scale.fill_(1)

    def standardize(self, features: Tensor) -> Tensor:
        """Subtract the queue's mean and divide by its standard deviation, per coordinate."""
        with torch.autocast(features.device.type, enabled=False):
            mean, scale = at_least_float32(self.mean), at_least_float32(self.scale)
            if self.training:  # a backward may be pending when `observe` writes them
                mean, scale = snapshot(mean, training=True), snapshot(scale, training=True)
            return (at_least_float32(features) - mean) / scale

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return (
            f"dim={self.dim}, capacity={self.capacity}, neighbors={self.neighbors}, "
            f"prior={self.prior}"
        )
