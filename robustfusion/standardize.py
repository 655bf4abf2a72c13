"""Features on a scale that what comes next expects."""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of, keep_rows
from robustfusion._state import inside_backward
from robustfusion._validation import check_mask, check_positive, check_vectors
from robustfusion.functional import standardize
from robustfusion.moments import RunningMoments


class Standardize(nn.Module):
    r"""Center the features of one modality and scale them to a given spread.

    :math:`s\,(f - \mu) / \sigma`. "diag" gives each coordinate the deviation :math:`s`;
    "spherical" multiplies all of them by one number, so that the root mean square distance
    from the mean, the paper's σ (2), becomes :math:`s`. It has no parameters. For frozen
    encoders ``fit`` it to the training features; else it follows them in training mode, about
    the last ``window`` rows, and what it did not see yet passes as it is.

    Args:
        dim: Width D of one feature vector.
        covariance_type: "diag" or "spherical".
        spread: The spread :math:`s`. For :class:`~robustfusion.PaperDRFHead` take "spherical" and
            0.4, at which the peak of (9) is 1.
        window: Number of rows that the moments are taken over in training mode.

    Shape:
        - ``features``, ``samples``: (B, D); ``available``, ``valid``: (B,) bool
        - Output: (B, D), float32 or better

    Raises:
        ValueError: If a shape or an option does not fit.
        TypeError: If ``features`` is not floating or a mask not bool.

    Example:
        >>> import torch
        >>> from robustfusion import Standardize
        >>> features = 14 + 3 * torch.randn(500, 64)
        >>> scale = Standardize(64, covariance_type="spherical", spread=0.4).fit(features)
        >>> distance = scale(features).norm(dim=1)
        >>> torch.allclose(distance.square().mean().sqrt(), torch.tensor(0.4))
        True

    Reference:
        Equations (2) and (9) of https://arxiv.org/abs/2511.18751.
    """

    def __init__(
        self,
        dim: int,
        *,
        covariance_type: Literal["diag", "spherical"] = "diag",
        spread: float = 1.0,
        window: int = 2048,
    ) -> None:
        super().__init__()
        check_positive(dim, "dim")
        if covariance_type not in ("diag", "spherical"):
            raise ValueError(
                f'covariance_type must be "diag" or "spherical", got {covariance_type!r}'
            )
        if spread <= 0:
            raise ValueError(f"spread must be positive, got {spread}")
        self.dim = dim
        self.covariance_type: Literal["diag", "spherical"] = covariance_type
        self.spread = spread
        self.window = window
        self.moments = RunningMoments(dim, window)

    @torch.no_grad()
    def fit(self, samples: Tensor, valid: Tensor | None = None) -> Self:
        """Take the moments of the valid samples, and forget what was seen before."""
        self.moments.reset()
        self.moments.observe(samples.detach(), self._mask(samples, valid, "samples", "valid"))
        return self

    def forward(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Shift and scale; in training mode first take in the available rows."""
        mask = self._mask(features, available, "features", "available")
        if self.training and not inside_backward():
            self.moments.observe(features.detach(), mask)
        gaussian = self.moments.gaussian(self.covariance_type)
        return standardize(keep_rows(features, mask), gaussian, spread=self.spread)

    def _mask(self, rows: Tensor, mask: Tensor | None, name: str, mask_name: str) -> Tensor:
        check_vectors(rows, self.dim, name, batched=True)
        if mask is None:
            return torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
        check_mask(mask, (rows.shape[0],), mask_name)
        return mask

    extra_repr = arguments_of
