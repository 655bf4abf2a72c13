"""Do two modalities of a row belong together? A score of the pair, and its p-value."""

from typing import Self

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._validation import check_between, check_mask, check_positive, check_vectors
from robustfusion.functional import at_least_float32

_LEAST = 1e-12  # of a scale: nothing is divided by 0


class PairingScore(nn.Module):
    r"""Tell a row's own text from that of another row, by what the two features share.

    Each feature may be intact and the two still not belong together: an index that is off by one,
    a cache that mixes its keys. Canonical correlation finds directions of the two modalities,
    :math:`u_k` and :math:`v_k` of unit variance, that go together with correlation
    :math:`\rho_k`. The score is the log-likelihood ratio of a pair against two strangers, under a
    Gaussian:

    .. math:: \sum_k -\tfrac12 \log(1 - \rho_k^2)
        - \frac{\rho_k^2 (u_k^2 + v_k^2) - 2 \rho_k u_k v_k}{2 (1 - \rho_k^2)}.

    Directions come from three quarters of the samples, scales and correlations from the last
    quarter: those of the rows they were found on are far too high. The covariances are shrunk to
    the identity.

    One row says little where modalities share little; a stream of rows says it surely (see
    :class:`robustfusion.monitor.DriftMonitor`).

    Args:
        first_dim: Width of the first modality's features.
        second_dim: Width of the second's.
        components: Number of directions, at most the smaller width.
        shrinkage: Between 0 and 1: of the covariances.
        capacity: Number of held-out scores kept for p-values.

    Shape:
        - ``first``: (B, first_dim); ``second``: (B, second_dim); ``valid``: (B,) bool
        - Output: (B,), float32 or better; higher for pairs

    Raises:
        ValueError: If a shape or an option does not fit, or there are fewer than 8 valid samples.
        TypeError: If features are not floating or a mask not bool.

    Example:
        >>> import torch
        >>> from robustfusion.pairing import PairingScore
        >>> _ = torch.manual_seed(0)
        >>> shared = torch.randn(1200, 3)
        >>> image, text = shared @ torch.randn(3, 8), shared @ torch.randn(3, 5)
        >>> image, text = image + torch.randn(1200, 8), text + torch.randn(1200, 5)
        >>> score = PairingScore(8, 5).fit(image[:800], text[:800])
        >>> score = score.calibrate(image[800:1000], text[800:1000])
        >>> p = score.p_value(image[1000:], text[1000:].roll(1, 0))
        >>> bool((p <= 0.05).float().mean() > 0.3)
        True

    Reference:
        Hotelling, Relations between two sets of variates, Biometrika 1936.
    """

    first_mean: Tensor
    second_mean: Tensor
    first_directions: Tensor
    second_directions: Tensor
    correlation: Tensor
    held_out: Tensor

    def __init__(
        self,
        first_dim: int,
        second_dim: int,
        *,
        components: int = 32,
        shrinkage: float = 0.8,
        capacity: int = 2048,
    ) -> None:
        super().__init__()
        options = {"first_dim": first_dim, "second_dim": second_dim, "components": components}
        for name, value in {**options, "capacity": capacity}.items():
            check_positive(value, name)
        check_between(shrinkage, 0.0, 1.0, "shrinkage")
        self.first_dim, self.second_dim, self.components = first_dim, second_dim, components
        self.shrinkage, self.capacity = shrinkage, capacity
        kept = min(components, first_dim, second_dim)
        for part, width in (("mean", ()), ("directions", (kept,))):
            self.register_buffer(f"first_{part}", torch.zeros(first_dim, *width))
            self.register_buffer(f"second_{part}", torch.zeros(second_dim, *width))
        self.register_buffer("correlation", torch.zeros(kept))
        # Scores of held-out pairs; NaN where there is none.
        self.register_buffer("held_out", torch.full((capacity,), torch.nan))

    @torch.no_grad()
    def fit(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Self:
        """Learn the directions from pairs, each row of ``first`` with the same of ``second``."""
        self._check(first, second)
        if valid is not None:
            check_mask(valid, (first.shape[0],), "valid")
            first, second = first[valid], second[valid]
        if len(first) < 8:  # of which two are in the last quarter
            raise ValueError(f"first and second must have 8 valid rows or more, got {len(first)}")
        whitened, fit = [], torch.arange(len(first), device=first.device) % 4 > 0
        for x in (first.double(), second.double()):
            mean, scale = x[fit].mean(0), x[fit].std(0)
            scale = scale + 0.01 * scale.mean() + _LEAST  # some coordinates hardly ever vary
            z = (x - mean) / scale
            covariance = z[fit].T @ z[fit] / fit.sum()
            target = torch.eye(len(covariance), dtype=z.dtype, device=z.device)
            # Without any shrinkage, that of fewer rows than columns has no Cholesky factor.
            shrunk = torch.lerp(covariance, target, max(self.shrinkage, 1e-6))
            whitened.append((mean, scale, z, torch.linalg.cholesky(shrunk)))
        (mean, scale, z, factor), (mean_2, scale_2, z_2, factor_2) = whitened
        cross = torch.linalg.solve_triangular(factor, z[fit].T @ z_2[fit] / fit.sum(), upper=False)
        cross = torch.linalg.solve_triangular(factor_2, cross.T, upper=False).T
        left, _, right = torch.linalg.svd(cross, full_matrices=False)
        kept = len(self.correlation)
        u_of = torch.linalg.solve_triangular(factor.T, left[:, :kept], upper=True)
        v_of = torch.linalg.solve_triangular(factor_2.T, right[:kept].T, upper=True)
        u, v = z[~fit] @ u_of, z_2[~fit] @ v_of
        u_scale, v_scale = (x.square().mean(0).sqrt() + _LEAST for x in (u, v))
        self.first_mean.copy_(mean)
        self.second_mean.copy_(mean_2)
        self.first_directions.copy_(u_of / u_scale / scale[:, None])
        self.second_directions.copy_(v_of / v_scale / scale_2[:, None])
        correlation = (u * v).mean(0) / (u_scale * v_scale)
        self.correlation.copy_(correlation.clamp(0, 0.99))  # at 1 no pair would be good enough
        self.held_out.fill_(torch.nan)
        return self

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Log-likelihood ratio of each pair, (B,): above 0 speaks for a pair."""
        self._check(first, second)
        with torch.autocast(first.device.type, enabled=False):
            u_of, v_of = map(at_least_float32, (self.first_directions, self.second_directions))
            u = (at_least_float32(first) - self.first_mean) @ u_of
            v = (at_least_float32(second) - self.second_mean) @ v_of
            rho = at_least_float32(self.correlation)
            square = rho.square()
            distance = square * (u.square() + v.square()) - 2 * rho * u * v
            return (-0.5 * torch.log1p(-square) - distance / (2 * (1 - square))).sum(-1)

    @torch.no_grad()
    def calibrate(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Self:
        """Keep the scores of pairs that ``fit`` has not seen: what p-values are ranked among."""
        scores = self(first, second)
        if valid is not None:
            check_mask(valid, tuple(scores.shape), "valid")
            scores = scores[valid]
        scores = scores[: self.capacity]
        self.held_out.fill_(torch.nan)
        self.held_out[: len(scores)] = scores.to(self.held_out.dtype)
        return self

    def p_value(self, first: Tensor, second: Tensor) -> Tensor:
        """Share of true pairs that look at least as odd, (B,); 1 before ``calibrate``."""
        scores: Tensor = self(first, second).to(self.held_out.dtype)
        # A score that is not finite is as odd as can be.
        scores = scores.where(scores.isfinite(), -torch.inf)
        as_odd = (self.held_out[:, None] <= scores).sum(0)
        p: Tensor = (1 + as_odd) / (1 + (~self.held_out.isnan()).sum())
        return p

    def _check(self, first: Tensor, second: Tensor) -> None:
        check_vectors(first, self.first_dim, "first", batched=True)
        check_vectors(second, self.second_dim, "second", batched=True)
        if first.shape[0] != second.shape[0]:
            raise ValueError(
                f"second must have as many rows as first, {first.shape[0]}, got {second.shape[0]}"
            )

    extra_repr = arguments_of
