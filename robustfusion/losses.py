"""Losses that shape recovery and the feature distributions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._validation import check_mask, check_vectors
from robustfusion.functional import (
    Gaussian,
    distribution_constraint_loss,
    fit_gaussian,
    moment_matching_loss,
    sample_recovery_loss,
)


class DistributionRecoveryLoss(nn.Module):
    r"""Supervise a converter by samples and by distributions, one direction of the paper's (8).

    .. math::
        \frac{w_s}{B} \sum_{i=1}^{B} \lVert C(f^v_i) - f^t_i \rVert_2
        + w_d \left( \lVert \mu_{v \to t} - \mu_t \rVert_2 + |\sigma_{v \to t} - \sigma_t| \right)

    The first term (4) runs over the B paired rows and is misled by mismatched pairs. The second
    (7) compares the moments of converted features (5), (6) with those of the target modality and
    needs no pairs. A weight of 0 switches its term off.

    Args:
        sample_weight: Weight :math:`w_s` of the sample-based term.
        distribution_weight: Weight :math:`w_d` of the distribution-based term.

    Shape:
        - ``recovered``, ``target``: (B, D); ``paired``: (B,) bool
        - ``generated``: the Gaussian of converted features; ``reference``: that of the target
          modality; both of one covariance type. ``None`` fits a spherical Gaussian to the paired
          rows of this batch
        - Output: scalar, zero where no row is paired and the moments agree

    Raises:
        ValueError: If a weight is negative or shapes do not fit.
        TypeError: If features are not floating or ``paired`` is not bool.

    Example:
        >>> import torch
        >>> from robustfusion import DistributionRecoveryLoss
        >>> convert = torch.nn.Linear(8, 4)
        >>> image, text = torch.randn(32, 8), torch.randn(32, 4)
        >>> loss = DistributionRecoveryLoss()(convert(image), text)
        >>> loss.backward()

    Reference:
        Equations (4) to (8) of https://arxiv.org/abs/2511.18751.
    """

    def __init__(self, *, sample_weight: float = 1.0, distribution_weight: float = 1.0) -> None:
        super().__init__()
        if sample_weight < 0:
            raise ValueError(f"sample_weight must not be negative, got {sample_weight}")
        if distribution_weight < 0:
            raise ValueError(
                f"distribution_weight must not be negative, got {distribution_weight}"
            )
        self.sample_weight = sample_weight
        self.distribution_weight = distribution_weight

    def forward(
        self,
        recovered: Tensor,
        target: Tensor,
        generated: Gaussian | None = None,
        reference: Gaussian | None = None,
        *,
        paired: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted sum of both terms."""
        check_vectors(target, target.shape[-1], "target", batched=True)
        check_vectors(recovered, target.shape[-1], "recovered", batched=True)
        if recovered.shape != target.shape:
            raise ValueError(
                f"recovered must have the shape of target, {tuple(target.shape)}, "
                f"got {tuple(recovered.shape)}"
            )
        if paired is not None:
            check_mask(paired, (target.shape[0],), "paired")
        if self.sample_weight:
            loss = self.sample_weight * sample_recovery_loss(recovered, target, paired)
        else:
            loss = torch.zeros((), device=recovered.device)
        if self.distribution_weight:
            generated = fit_gaussian(recovered, paired) if generated is None else generated
            reference = fit_gaussian(target, paired) if reference is None else reference
            loss = loss + self.distribution_weight * moment_matching_loss(generated, reference)
        return loss

    extra_repr = arguments_of


class DistributionConstraintLoss(nn.Module):
    r"""Pull features to the mean of their own modality and away from the others': the paper's (3).

    :math:`\exp(\lVert f-\mu \rVert_2 - \lVert f-\mu' \rVert_2)`, averaged over available rows and
    other modalities. Where widths differ, the narrower vectors are padded with zeros; see
    :func:`~robustfusion.functional.distribution_constraint_loss`.

    Shape:
        - ``features``: (B, D); ``own_mean``: (D,); ``other_means``: any number of (D',)
        - ``available``: (B,) bool
        - Output: scalar, zero where nothing is available

    Raises:
        ValueError: If shapes do not fit or there is no other mean.
        TypeError: If features are not floating or ``available`` is not bool.

    Example:
        >>> import torch
        >>> from robustfusion import DistributionConstraintLoss
        >>> features = torch.randn(16, 8, requires_grad=True)
        >>> loss = DistributionConstraintLoss()(features, torch.zeros(8), [torch.ones(8)])
        >>> loss.backward()

    Reference:
        Equation (3) of https://arxiv.org/abs/2511.18751.
    """

    def forward(
        self,
        features: Tensor,
        own_mean: Tensor,
        other_means: Sequence[Tensor],
        available: Tensor | None = None,
    ) -> Tensor:
        """Return the constraint of one modality."""
        check_vectors(own_mean, own_mean.shape[-1], "own_mean")
        check_vectors(features, own_mean.shape[-1], "features", batched=True)
        if available is not None:
            check_mask(available, (features.shape[0],), "available")
        return distribution_constraint_loss(features, own_mean, other_means, available)
