"""The mathematics of the library as pure functions; numbers in brackets are the paper's equations.

Statistics are computed in float32 or better, whatever the input's dtype and under autocast.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustfusion._validation import check_between

CovarianceType = Literal["spherical", "diag", "full"]

_MAX_EXPONENT = 30.0
_OWN_COPY = 0.9999


class Gaussian(NamedTuple):
    """A Gaussian in D dimensions; the shape of ``scale`` tells its covariance type.

    ``mean`` has shape (D,). ``scale`` is () for "spherical": the root mean square *distance* from
    the mean, the paper's σ (2); (D,) for "diag": standard deviations; (D, D) for "full": the lower
    Cholesky factor of the covariance.

    Example:
        >>> Gaussian(torch.zeros(2), torch.tensor(1.0)).mean.shape
        torch.Size([2])
    """

    mean: Tensor
    scale: Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if it already is float32 or float64.

    Example:
        >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def fit_gaussian(
    samples: Tensor,
    valid: Tensor | None = None,
    *,
    covariance_type: CovarianceType = "spherical",
    shrinkage: float = 0.0,
    eps: float = 1e-6,
) -> Gaussian:
    r"""Fit a Gaussian to the valid rows, (1) and (2); differentiable in ``samples``.

    With ``shrinkage`` :math:`s`, variances become :math:`(1-s)\,\Sigma + s\,\bar\sigma^2 I` with
    :math:`\bar\sigma^2 = \operatorname{tr}\Sigma / D`; it has no effect on "spherical". No
    variance is smaller than ``eps``. Without a valid row the mean is zero.

    Args:
        samples: (N, D).
        valid: (N,) bool, True where a row holds data.
        covariance_type: "spherical" is the paper's scalar (2), "diag" has one standard deviation
            per dimension, "full" a Cholesky factor.
        shrinkage: Between 0 and 1.
        eps: Smallest variance.

    Example:
        >>> fit_gaussian(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        Gaussian(mean=tensor([1., 0.]), scale=tensor(1.))
    """
    check_between(shrinkage, 0.0, 1.0, "shrinkage")
    with torch.autocast(samples.device.type, enabled=False):
        x = at_least_float32(samples)
        dim = x.shape[-1]
        if valid is None:
            valid = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        x = x.where(valid[:, None], 0.0)
        count = valid.sum().clamp_min(1)
        mean = x.sum(0) / count
        centred = (x - mean).where(valid[:, None], 0.0)
        if covariance_type == "spherical":
            variance = centred.square().sum() / count
            return Gaussian(mean, variance.clamp_min(eps).sqrt())
        if covariance_type == "diag":
            variance = centred.square().sum(0) / count
            variance = torch.lerp(variance, variance.mean(), shrinkage)
            return Gaussian(mean, variance.clamp_min(eps).sqrt())
        if covariance_type != "full":
            raise ValueError(
                f'covariance_type must be "spherical", "diag" or "full", got {covariance_type!r}'
            )
        covariance = centred.T @ centred / count
        average = covariance.diagonal().mean()
        identity = torch.eye(dim, dtype=x.dtype, device=x.device)
        covariance = (1 - shrinkage) * covariance + (shrinkage * average + eps) * identity
        factor, failed = torch.linalg.cholesky_ex(covariance)
        # Rounding can leave a singular covariance indefinite; its diagonal always has a root.
        diagonal = covariance.diagonal().clamp_min(eps).sqrt().diag()
        return Gaussian(mean, torch.where(failed > 0, diagonal, factor))


def mahalanobis_sq(features: Tensor, gaussian: Gaussian) -> Tensor:
    r"""Squared Mahalanobis distance :math:`\lVert L^{-1}(f - \mu) \rVert_2^2`, (..., D) -> (...).

    For a spherical Gaussian :math:`L` is the scalar σ, a root mean square distance, so the
    expectation over the fitted samples is 1; for the other types it is D.

    Example:
        >>> mahalanobis_sq(torch.tensor([3.0, 4.0]), Gaussian(torch.zeros(2), torch.tensor(5.0)))
        tensor(1.)
    """
    with torch.autocast(features.device.type, enabled=False):
        mean, scale = (at_least_float32(moment) for moment in gaussian)
        centred = at_least_float32(features) - mean
        if scale.ndim < 2:
            distance: Tensor = (centred / scale).square().sum(-1)
            return distance
        flat = centred.reshape(-1, centred.shape[-1])
        # One solve with a (D, B) right-hand side; a batch of (D, 1) solves is 200 times slower.
        whitened = torch.linalg.solve_triangular(scale.to(flat.dtype), flat.T, upper=False)
        distance = whitened.square().sum(0)
        return distance.reshape(centred.shape[:-1])


def gaussian_log_prob(features: Tensor, gaussian: Gaussian) -> Tensor:
    r"""Log-density, (..., D) -> (...).

    "spherical" is the log of the paper's (9),
    :math:`-\tfrac12 \lVert f-\mu \rVert^2 / \sigma^2 - \log \sigma - \tfrac12 \log 2\pi`,
    which is no density in D dimensions; "diag" and "full" are the multivariate log-density.

    Example:
        >>> gaussian_log_prob(torch.zeros(4), Gaussian(torch.zeros(4), torch.tensor(1.0)))
        tensor(-0.9189)
    """
    with torch.autocast(features.device.type, enabled=False):
        distance = mahalanobis_sq(features, gaussian)
        scale = at_least_float32(gaussian.scale)
        if scale.ndim == 0:
            return -0.5 * distance - scale.log() - 0.5 * math.log(2 * math.pi)
        log_det = (scale if scale.ndim == 1 else scale.diagonal()).log().sum()
        return -0.5 * distance - log_det - 0.5 * features.shape[-1] * math.log(2 * math.pi)


def masked_softmax(scores: Tensor, available: Tensor | None = None, dim: int = -1) -> Tensor:
    """Softmax over the available entries; all zeros where nothing is available, never NaN.

    Example:
        >>> masked_softmax(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
        tensor([[1., 0.],
                [0., 0.]])
    """
    lowest = torch.finfo(scores.dtype).min
    if available is None:
        return scores.clamp_min(lowest).softmax(dim)
    filled = scores.where(available, lowest).clamp_min(lowest)
    return filled.softmax(dim).where(available, 0.0)


def masked_mean(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Mean of the kept entries, zero where there are none.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    if keep is None:
        return values.sum() / max(values.numel(), 1)
    return values.where(keep, 0.0).sum() / keep.sum().clamp_min(1)


def sample_recovery_loss(
    recovered: Tensor, target: Tensor, paired: Tensor | None = None
) -> Tensor:
    r"""Sample-based recovery (4): mean of :math:`\lVert C(f^v) - f^t \rVert_2` over paired rows.

    Args:
        recovered: (B, D).
        target: (B, D).
        paired: (B,) bool, True where source and target are both observed.

    Example:
        >>> recovered, target = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [9.0, 9.0]])
        >>> sample_recovery_loss(recovered, target, torch.tensor([True, False]))
        tensor(5.)
    """
    with torch.autocast(recovered.device.type, enabled=False):
        difference = at_least_float32(recovered) - at_least_float32(target)
        if paired is not None:
            difference = difference.where(paired[:, None], 0.0)
        return masked_mean(torch.linalg.vector_norm(difference, dim=-1), paired)


def moment_matching_loss(generated: Gaussian, reference: Gaussian) -> Tensor:
    r"""Distribution-based recovery (7): distance of the means plus distance of the scales.

    :math:`\lVert \mu - \mu' \rVert_2 + \lVert \sigma - \sigma' \rVert_2`. The scales must be of
    one type; of two Cholesky factors it takes the Frobenius norm.

    Example:
        >>> narrow = Gaussian(torch.zeros(2), torch.tensor(1.0))
        >>> moment_matching_loss(narrow, Gaussian(torch.ones(2), torch.tensor(3.0)))
        tensor(3.4142)
    """
    if generated.scale.ndim != reference.scale.ndim:
        raise ValueError(
            "generated.scale and reference.scale must be of one covariance type, got shapes "
            f"{tuple(generated.scale.shape)} and {tuple(reference.scale.shape)}"
        )
    loss: Tensor = torch.linalg.vector_norm(generated.mean - reference.mean)
    spread: Tensor = torch.linalg.vector_norm(generated.scale - reference.scale)
    return loss + spread


def distribution_constraint_loss(
    features: Tensor,
    own_mean: Tensor,
    other_means: Sequence[Tensor],
    available: Tensor | None = None,
) -> Tensor:
    r"""Distribution constraint (3) of one modality, averaged over available rows.

    :math:`\exp(\lVert f-\mu \rVert_2 - \lVert f-\mu' \rVert_2)`, where :math:`\mu` is the mean of
    the features' own modality and :math:`\mu'` that of another; several others are averaged. The
    exponent is capped at 30, so that an outlier cannot overflow.

    The paper's modalities are equally wide. Where widths differ, the narrower vectors are padded
    with zeros, which embeds them in the wider space and adds no parameter.

    Example:
        >>> features = torch.tensor([[1.0, 0.0]])
        >>> distribution_constraint_loss(features, torch.tensor([1.0, 0.0]), [torch.zeros(2)])
        tensor(0.3679)
    """
    if not other_means:
        raise ValueError("other_means must hold the mean of at least one other modality, got none")
    with torch.autocast(features.device.type, enabled=False):
        x = at_least_float32(features)
        if available is not None:
            x = x.where(available[:, None], 0.0)
        own = torch.linalg.vector_norm(x - own_mean, dim=-1)
        terms = []
        for other_mean in other_means:
            other = torch.linalg.vector_norm(_difference(x, other_mean), dim=-1)
            terms.append((own - other).clamp_max(_MAX_EXPONENT).exp())
        return masked_mean(torch.stack(terms).mean(0), available)


def _difference(x: Tensor, y: Tensor) -> Tensor:
    width = max(x.shape[-1], y.shape[-1])
    pad = torch.nn.functional.pad
    return pad(x, (0, width - x.shape[-1])) - pad(y, (0, width - y.shape[-1]))


def nearest_rows(
    queries: Tensor,
    rows: Tensor,
    inverse_lengths: Tensor,
    offset: Tensor,
    *,
    neighbors: int = 10,
    chunk: int = 16384,
) -> tuple[Tensor, Tensor]:
    r"""Find the largest :math:`(\langle q, r_j \rangle - o) / \ell_j` over the rows, exactly.

    One matrix product per chunk of rows, so memory is bounded by ``B × chunk``. Similarities above
    0.9999 do not count: a feature must not vouch for itself by the copy it left last epoch.

    Args:
        queries: (B, D).
        rows: (N, D).
        inverse_lengths: (N,), :math:`1 / \ell`; 0 where a row holds no data.
        offset: (B,), :math:`o`, what the origin contributes to the product.
        neighbors: How many are looked for.
        chunk: Rows per matrix product.

    Returns:
        (B, k) similarities, −inf where fewer rows count, and (B, k) their rows.

    Example:
        >>> query, rows = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
        >>> nearest_rows(query, rows, torch.ones(2), torch.zeros(1), neighbors=1)
        (tensor([[0.6000]]), tensor([[1]]))
    """
    values, places = [], []
    for start in range(0, rows.shape[0], chunk):
        block = slice(start, start + chunk)
        inverse = at_least_float32(inverse_lengths[block])
        product = queries @ at_least_float32(rows[block]).to(queries.dtype).T
        similarity = (product - offset[:, None]) * inverse
        counts = (inverse > 0) & (similarity < _OWN_COPY)
        similarity = similarity.where(counts, -torch.inf)
        value, place = similarity.topk(min(neighbors, similarity.shape[1]), dim=-1)
        values.append(value)
        places.append(place + start)
    if len(values) == 1:
        return values[0], places[0]
    merged = torch.cat(values, dim=-1)
    value, order = merged.topk(min(neighbors, merged.shape[1]), dim=-1)
    return value, torch.cat(places, dim=-1).gather(-1, order)


def replace_coordinates(
    features: Tensor,
    donors: Tensor,
    count: Tensor,
    order: Tensor,
    *,
    shares: tuple[float, float] = (0.1, 0.6),
) -> Tensor:
    """Replace a share of each feature's coordinates by those of other rows.

    Every coordinate keeps its marginal distribution, but no longer belongs with the rest. Which
    ones are replaced, and by which donor, follows from ``order`` and not from random numbers, so
    all ranks of a distributed run break the same row alike.

    Args:
        features: (B, D).
        donors: (N, D), of which the first ``count`` rows are used.
        count: ().
        order: (B,) long, a running number of each row.
        shares: Smallest and largest share of coordinates replaced.

    Example:
        >>> features, donors = torch.zeros(1, 1000), torch.ones(4, 1000)
        >>> broken = replace_coordinates(features, donors, torch.tensor(4), torch.tensor([7]))
        >>> 0.1 <= broken.mean().item() <= 0.6
        True
    """
    row = order[:, None]
    column = torch.arange(features.shape[1], device=features.device)[None]
    # Multiples of irrational numbers modulo 1 spread evenly over [0, 1).
    place = (row * 0.7548776662466927 % 1 + column * 0.6180339887498949 % 1) % 1
    share = shares[0] + (shares[1] - shares[0]) * (row * 0.5698402909980532 % 1)
    donor = (row * 7919 + column * 104729 + 1) % count.clamp_min(1)
    return torch.where(place < share, donors.gather(0, donor).to(features.dtype), features)


def fit_logistic(
    scores: Tensor,
    valid: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    *,
    ridge: float = 0.01,
    steps: int = 6,
) -> tuple[Tensor, Tensor]:
    r"""Fit :math:`\sigma(a s + b)` to tell the first column of scores (N, 2) from the second.

    Newton's method on standardised scores, from ``start`` or from 0, with a ridge on the
    standardised slope so that separable scores give a finite curve; the slope is never negative.
    Without a valid row both numbers are 0.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0], [3.0, 1.0], [1.0, -1.0]])
        >>> a, b = fit_logistic(scores, torch.ones(3, dtype=torch.bool))
        >>> a > 0, torch.allclose(-b / a, torch.tensor(1.0), atol=1e-3)
        (tensor(True), True)

    Reference:
        Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    x = at_least_float32(scores).where(valid[:, None], 0.0)
    share = valid.to(x.dtype) / (2 * valid.sum()).clamp_min(1)
    centre = (share @ x).sum()
    spread = (share @ (x - centre).square()).sum().sqrt().clamp_min(1e-6)
    u = (x - centre) / spread
    design = torch.stack([u.flatten(), torch.ones_like(u).flatten()])  # (2, 2 N)
    weight = share[:, None].expand_as(u).flatten()
    label = weight * torch.tensor([1.0, 0.0], device=x.device).repeat(x.shape[0])
    penalty = torch.tensor([ridge, 1e-6], dtype=x.dtype, device=x.device)
    lowest = torch.tensor([0.0, -torch.inf], dtype=x.dtype, device=x.device)
    a, b = (x.new_zeros(()), x.new_zeros(())) if start is None else start
    beta = torch.stack([a * spread, b + a * centre]).to(x.dtype)
    for _ in range(steps):
        p = torch.sigmoid(beta @ design)
        weighted = p * weight
        gradient = design @ (weighted - label) + penalty * beta
        hessian = (design * (weighted * (1 - p))) @ design.T + penalty.diag()
        newton, _ = torch.linalg.solve_ex(hessian, gradient)
        # Far from the solution the curvature vanishes; a bounded step cannot overshoot for ever.
        beta = (beta - newton.clamp(-2, 2)).maximum(lowest)
    slope = (beta[0] / spread).where(valid.any(), 0.0)
    return slope, (beta[1] - slope * centre).where(valid.any(), 0.0)
