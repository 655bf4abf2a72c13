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

_MAX_EXPONENT = 30.0  # an outlier beyond this would overflow the loss
# Two rows count as copies if the projection of one onto the other agrees to this relative error.
_COPY_TOLERANCE = 1e-3


class Gaussian(NamedTuple):
    """A Gaussian in D dimensions; the shape of ``scale`` tells its covariance type.

    ``mean`` has shape (D,). ``scale`` is () for "spherical": the root mean square *distance* from
    the mean, the paper's σ (2); (D,) for "diag": standard deviations; (D, D) for "full": the lower
    Cholesky factor of the covariance.

    Example:
        >>> import torch
        >>> from robustfusion.functional import Gaussian
        >>> Gaussian(torch.zeros(2), torch.tensor(1.0)).mean.shape
        torch.Size([2])
    """

    mean: Tensor
    scale: Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if it already is float32 or float64.

    Example:
        >>> import torch
        >>> from robustfusion.functional import at_least_float32
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
        >>> import torch
        >>> from robustfusion.functional import fit_gaussian
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
        centered = (x - mean).where(valid[:, None], 0.0)
        if covariance_type == "spherical":
            variance = centered.square().sum() / count
            return Gaussian(mean, variance.clamp_min(eps).sqrt())
        if covariance_type == "diag":
            variance = centered.square().sum(0) / count
            variance = torch.lerp(variance, variance.mean(), shrinkage)
            return Gaussian(mean, variance.clamp_min(eps).sqrt())
        if covariance_type != "full":
            raise ValueError(
                f'covariance_type must be "spherical", "diag" or "full", got {covariance_type!r}'
            )
        covariance = centered.T @ centered / count
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
        >>> import torch
        >>> from robustfusion.functional import Gaussian, mahalanobis_sq
        >>> mahalanobis_sq(torch.tensor([3.0, 4.0]), Gaussian(torch.zeros(2), torch.tensor(5.0)))
        tensor(1.)
    """
    with torch.autocast(features.device.type, enabled=False):
        mean, scale = (at_least_float32(moment) for moment in gaussian)
        centered = at_least_float32(features) - mean
        if scale.ndim < 2:
            distance: Tensor = (centered / scale).square().sum(-1)
            return distance
        flat = centered.reshape(-1, centered.shape[-1])
        # One solve with a (D, B) right-hand side; a batch of (D, 1) solves is 200 times slower.
        whitened = torch.linalg.solve_triangular(scale.to(flat.dtype), flat.T, upper=False)
        distance = whitened.square().sum(0)
        return distance.reshape(centered.shape[:-1])


def gaussian_log_prob(features: Tensor, gaussian: Gaussian) -> Tensor:
    r"""Log-density, (..., D) -> (...).

    "spherical" is the log of the paper's (9),
    :math:`-\tfrac12 \lVert f-\mu \rVert^2 / \sigma^2 - \log \sigma - \tfrac12 \log 2\pi`,
    which is no density in D dimensions; "diag" and "full" are the multivariate log-density.

    Example:
        >>> import torch
        >>> from robustfusion.functional import Gaussian, gaussian_log_prob
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
        >>> import torch
        >>> from robustfusion.functional import masked_softmax
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
        >>> import torch
        >>> from robustfusion.functional import masked_mean
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
        >>> import torch
        >>> from robustfusion.functional import sample_recovery_loss
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
        >>> import torch
        >>> from robustfusion.functional import Gaussian, moment_matching_loss
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
    scale_gap: Tensor = torch.linalg.vector_norm(generated.scale - reference.scale)
    return loss + scale_gap


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
        >>> import torch
        >>> from robustfusion.functional import distribution_constraint_loss
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


def standardize(features: Tensor, gaussian: Gaussian, *, target_std: float = 1.0) -> Tensor:
    r"""Shift and scale features by their Gaussian, (..., D) -> (..., D).

    :math:`s\,(f - \mu) / \sigma` with the target :math:`s`. A "diag" Gaussian gives each
    coordinate the standard deviation :math:`s`. A "spherical" one multiplies all coordinates by
    one number, so that the root mean square distance from the mean becomes :math:`s`.

    Example:
        >>> import torch
        >>> from robustfusion.functional import Gaussian, standardize
        >>> standardize(
        ...     torch.tensor([[0.0], [4.0]]), Gaussian(torch.tensor([2.0]), torch.tensor(2.0))
        ... )
        tensor([[-1.],
                [ 1.]])
    """
    with torch.autocast(features.device.type, enabled=False):
        mean, scale = (at_least_float32(moment) for moment in gaussian)
        z = (at_least_float32(features) - mean) / scale
        return z if target_std == 1 else target_std * z


def destandardize(features: Tensor, gaussian: Gaussian) -> Tensor:
    """Undo :func:`standardize` with a target of 1, (..., D) -> (..., D).

    Example:
        >>> import torch
        >>> from robustfusion.functional import Gaussian, destandardize
        >>> gaussian = Gaussian(torch.tensor([2.0]), torch.tensor(2.0))
        >>> destandardize(torch.tensor([[-1.0], [1.0]]), gaussian)
        tensor([[0.],
                [4.]])
    """
    with torch.autocast(features.device.type, enabled=False):
        mean, scale = (at_least_float32(moment) for moment in gaussian)
        return torch.addcmul(mean, at_least_float32(features), scale)


def conformal_p_value(scores: Tensor, references: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""P-value of each outlier score among reference scores, (B,) and (N,) -> (B,).

    :math:`p = (1 + \#\{j : r_j \ge s\}) / (n + 1)` over the n valid references. If a score and the
    references are exchangeable, :math:`P(p \le \alpha) \le \alpha` for every :math:`\alpha`.

    Args:
        scores: (B,), higher is less usual.
        references: (N,), the scores of intact samples that nothing was fitted to.
        valid: (N,) bool, True where a reference counts; ``None`` means all.

    Example:
        >>> import torch
        >>> from robustfusion.functional import conformal_p_value
        >>> conformal_p_value(torch.tensor([2.5, 9.0]), torch.tensor([1.0, 2.0, 3.0]))
        tensor([0.5000, 0.2500])

    Reference:
        Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    if valid is None:
        valid = torch.ones_like(references, dtype=torch.bool)
    at_least = references[None] >= scores[:, None]
    return (1 + (at_least & valid).sum(1)) / (1 + valid.sum())


def expected_calibration_error(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Tensor:
    r"""Mean gap between confidence and accuracy over equally wide bins of confidence, a scalar.

    :math:`\sum_b \tfrac{n_b}{n} \lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert`; 0 is calibrated.

    Args:
        confidence: (B,), between 0 and 1.
        correct: (B,) bool, or a share between 0 and 1.
        bins: Number of bins.

    Example:
        >>> import torch
        >>> from robustfusion.functional import expected_calibration_error
        >>> confidence, correct = torch.tensor([0.9, 0.9]), torch.tensor([True, False])
        >>> expected_calibration_error(confidence, correct)
        tensor(0.4000)

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    index = (confidence * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, device=confidence.device, dtype=confidence.dtype)
    gap.index_add_(0, index, correct.to(confidence.dtype) - confidence)
    return gap.abs().sum() / max(len(confidence), 1)


def nearest_similarity(
    features: Tensor,
    rows: Tensor,
    inverse_lengths: Tensor,
    *,
    origin: Tensor,
    scale: Tensor,
    neighbors: int = 10,
    chunk: int = 4096,
) -> Tensor:
    r"""Mean cosine of each feature to the rows most similar to it, all standardized.

    With :math:`x' = (x - o) / s` the cosine to row j is :math:`\langle x', r'_j \rangle /
    (\lVert x' \rVert \ell_j)`, from one matrix product a chunk with the rows as they are:
    the N rows are not standardized and their lengths are not computed again. A row onto which a
    feature projects exactly, :math:`\langle x', r'_j \rangle = \lVert x' \rVert^2`, is a copy of
    the feature from an earlier epoch and no neighbor. It counts as a cosine of 0, like a slot
    without a row.

    Args:
        features: (B, D).
        rows: (N, D).
        inverse_lengths: (N,), :math:`1 / \ell`; 0 where a row holds no data.
        origin: (D,), :math:`o`.
        scale: (D,), :math:`s`.
        neighbors: Number of most similar rows that are averaged.
        chunk: Rows per matrix product; its result should fit a CPU's cache.

    Returns:
        (B,), 0 without a neighbor.

    Example:
        >>> import torch
        >>> from robustfusion.functional import nearest_similarity
        >>> features, rows = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
        >>> zero, one = torch.zeros(2), torch.ones(2)
        >>> nearest_similarity(features, rows, one, origin=zero, scale=one, neighbors=1)
        tensor([0.6000])
    """
    with torch.autocast(features.device.type, enabled=False):
        x = (at_least_float32(features) - origin) / scale
        origin, scale = origin.to(x.dtype), scale.to(x.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        direction = x / (length * scale)
        offset = (direction @ origin)[:, None]
        best: list[Tensor] = []
        for start in range(0, rows.shape[0], chunk):
            block = at_least_float32(rows[start : start + chunk]).to(x.dtype)
            inverse = inverse_lengths[start : start + chunk].to(x.dtype)
            projection = torch.addmm(offset, direction, block.T, beta=-1)
            copied = (projection - length).abs_() < _COPY_TOLERANCE * length
            cosine = (projection * inverse).masked_fill_(copied, 0.0)
            best.append(cosine.topk(min(neighbors, cosine.shape[1]), dim=-1).values)
        top = best[0] if len(best) == 1 else torch.cat(best, -1).topk(neighbors, dim=-1).values
        return top.mean(-1)
