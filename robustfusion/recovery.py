"""Recover every modality from every other one."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from robustfusion._modules import ModuleDict, arguments_of
from robustfusion._validation import check_dims, check_features
from robustfusion.conversion import ModalityConverter


class CrossModalRecovery(nn.Module):
    r"""One converter per ordered pair of modalities: ``recovered[target][source]``.

    With ``detach`` a converter's input carries no gradient, so that recovery cannot pull the
    encoders of two modalities towards each other or shrink their features, which it otherwise
    does: that is the easiest way to make one predict the other.

    Args:
        dims: Feature width of each modality, at least two.
        converter: Factory of a converter, called with (in_features, out_features).
        detach: Whether converters see their input without gradient. The paper does not detach.

    Shape:
        - ``features[name]``: (B, dims[name])
        - Output: ``recovered[target][source]``, (B, dims[target])

    Raises:
        ValueError: If a modality is missing, unknown or of the wrong shape.

    Example:
        >>> import torch
        >>> from robustfusion import CrossModalRecovery
        >>> recovery = CrossModalRecovery({"image": 8, "text": 4})
        >>> features = {"image": torch.randn(16, 8), "text": torch.randn(16, 4)}
        >>> recovery(features)["text"]["image"].shape
        torch.Size([16, 4])

    Reference:
        Section 3.3 of https://arxiv.org/abs/2511.18751.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        converter: Callable[[int, int], nn.Module] = ModalityConverter,
        detach: bool = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        self.detach = detach
        self.converters = ModuleDict[ModuleDict[nn.Module]](
            {
                target: ModuleDict(
                    {
                        source: converter(self.dims[source], self.dims[target])
                        for source in self.dims
                        if source != target
                    }
                )
                for target in self.dims
            }
        )

    def convert(self, source: str, target: str, features: Tensor) -> Tensor:
        """Convert features of one modality into another, with gradient to the converter."""
        converted: Tensor = self.converters[target][source](
            features.detach() if self.detach else features
        )
        return converted

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return every recovery; rows of a missing source must hold a finite placeholder."""
        check_features(features, self.dims)
        return {
            target: {source: self.convert(source, target, features[source]) for source in sources}
            for target, sources in self.converters.items()
        }

    extra_repr = arguments_of
