"""Shift and scale the features of one modality."""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of, keep_rows
from robustfusion._state import inside_backward
from robustfusion._validation import check_mask, check_positive, check_vectors
from robustfusion.functional import standardize
from robustfusion.moments import RunningMoments


class Standardize(nn.Module):
    r"""Center the features of one modality and scale them to a given standard deviation.

    "diag" gives each coordinate the standard deviation :math:`s`. "spherical" multiplies all
    coordinates by one number, so that the root mean square distance from the mean, the paper's σ
    (2), becomes :math:`s`. There are no parameters. For frozen encoders, ``fit`` it to the
    training
    features: then it stays as it is in every mode. Without ``fit`` it follows the features in
    training mode, over about the last ``window`` rows; features that come before any update pass
    unchanged.

    Args:
        dim: Width D of one feature vector.
        covariance_type: "diag" or "spherical".
        target_std: The target :math:`s`. For :class:`~robustfusion.PaperDRFHead` use "spherical"
            and 0.4, at which the peak of (9) is 1.
        window: Number of rows that the moments cover in training mode.

    Shape:
        - ``features``: (B, D); ``available``: (B,) bool
        - Output: (B, D), float32 or better

    Raises:
        ValueError: If a shape or an option does not fit.
        TypeError: If ``features`` is not floating or a mask not bool.

    Example:
        >>> import torch
        >>> from robustfusion import Standardize
        >>> features = 14 + 3 * torch.randn(500, 64)
        >>> scale = Standardize(64, covariance_type="spherical", target_std=0.4).fit(features)
        >>> distance = scale(features).norm(dim=1)
        >>> torch.allclose(distance.square().mean().sqrt(), torch.tensor(0.4))
        True

    Note:
        The output is :math:`s\,(f - \mu) / \sigma`.

    Reference:
        Equations (2) and (9) of https://arxiv.org/abs/2511.18751.
    """

    fitted: Tensor

    def __init__(
        self,
        dim: int,
        *,
        covariance_type: Literal["diag", "spherical"] = "diag",
        target_std: float = 1.0,
        window: int = 2048,
    ) -> None:
        super().__init__()
        check_positive(dim, "dim")
        if covariance_type not in ("diag", "spherical"):
            raise ValueError(
                f'covariance_type must be "diag" or "spherical", got {covariance_type!r}'
            )
        if target_std <= 0:
            raise ValueError(f"target_std must be positive, got {target_std}")
        self.dim = dim
        self.covariance_type: Literal["diag", "spherical"] = covariance_type
        self.target_std = target_std
        self.window = window
        self.moments = RunningMoments(dim, window)
        self.register_buffer("fitted", torch.zeros(()))  # 1 after `fit`

    @torch.no_grad()
    def fit(self, features: Tensor, available: Tensor | None = None) -> Self:
        """Take the moments of the available features, forget earlier ones, and keep these.

        A row with NaN or inf counts as missing.

        Raises:
            ValueError: If no row is available.
        """
        mask = self._mask(features, available) & features.isfinite().all(-1)
        if not bool(mask.any()):
            raise ValueError("features must have at least one available row without NaN, got none")
        self.moments.reset()
        self.moments.observe(features.detach(), mask)
        self.fitted.fill_(1)
        return self

    def reset(self) -> None:
        """Forget everything, so that it follows the features in training mode again."""
        self.moments.reset()
        self.fitted.zero_()

    def forward(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Shift and scale; before ``fit``, training mode first updates the moments."""
        mask = self._mask(features, available)
        if self.training and not inside_backward():
            self.moments.observe(features.detach(), mask & (self.fitted == 0))
        gaussian = self.moments.gaussian(self.covariance_type)
        return standardize(keep_rows(features, mask), gaussian, target_std=self.target_std)

    def _mask(self, features: Tensor, available: Tensor | None) -> Tensor:
        check_vectors(features, self.dim, "features", batched=True)
        if available is None:
            return torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
        check_mask(available, (features.shape[0],), "available")
        return available

    extra_repr = arguments_of
