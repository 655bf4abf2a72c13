"""What takes the place of a modality that a candidate does not trust."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict
from robustfusion._validation import check_dims, check_positive
from robustfusion.conversion import ModalityConverter
from robustfusion.functional import Gaussian
from robustfusion.losses import DistributionRecoveryLoss


class StandInOutput(NamedTuple):
    """What a stand-in gives for B samples of M modalities.

    Attributes:
        hidden: (B or 1, M, M, F), for each target and source what the target's stand-in adds to
            the fused vector, made from that source; candidates average it over what they trust.
        recovered: ``recovered[target][source]``, (B, D_target) standardized features; empty where
            none are.
        loss: Scalar, needs no labels.
    """

    hidden: Tensor
    recovered: dict[str, dict[str, Tensor]]
    loss: Tensor


class StandIn(nn.Module, ABC):
    """Fill in for modalities that a candidate does not trust, in the space of the fused vector.

    :class:`~robustfusion.DRFHead` calls it with standardized features, of which the rows that are
    not available are zero. It must leave no trace of those in what it returns for other sources,
    nor in its loss.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.

    Attributes:
        log_quality: What fusion takes a stand-in's log-quality for, beside that of a feature which
            is there. At the default of log 0.2 a feature weighs as much as its stand-in when one
            in five intact features looks as odd.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, StandIn
        >>> from robustfusion.stand_in import StandInOutput
        >>> class Nothing(StandIn):  # a stand-in of your own: what is not trusted adds nothing
        ...     def forward(self, features, available):
        ...         hidden = torch.zeros(1, len(self.dims), len(self.dims), self.out_features)
        ...         return StandInOutput(hidden, {}, torch.zeros(()))
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3, stand_in=Nothing)
        >>> head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)}).logits.shape
        torch.Size([5, 3])
    """

    log_quality = math.log(0.2)

    def __init__(self, dims: Mapping[str, int], out_features: int) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        check_positive(out_features, "out_features")
        self.out_features = out_features

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor], available: Tensor) -> StandInOutput:
        """Return what stands in; ``features[name]``: (B, D_m), ``available``: (B, M) bool."""

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return f"dims={self.dims}, out_features={self.out_features}"


class LearnedTokens(StandIn):
    r"""A learned vector :math:`t_m` for each modality, whatever the others say.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, LearnedTokens
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3, stand_in=LearnedTokens)
        >>> head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)}).recovered
        {}

    Reference:
        Learned vectors for what is missing: Lee et al., CVPR 2023,
        https://arxiv.org/abs/2303.03369.
    """

    def __init__(self, dims: Mapping[str, int], out_features: int) -> None:
        super().__init__(dims, out_features)
        self.tokens = nn.Parameter(torch.zeros(len(self.dims), out_features))

    def forward(self, features: Mapping[str, Tensor], available: Tensor) -> StandInOutput:
        """Return the tokens, the same for every sample and source."""
        hidden = self.tokens[None, :, None].expand(1, -1, len(self.dims), -1)
        return StandInOutput(hidden, {}, self.tokens.new_zeros(()))


class RecoveredFeatures(StandIn):
    r"""A learned vector plus what the other modalities tell of the missing one.

    .. math:: t_m + V_m \hat z_m, \qquad
              \hat z_{s \to m} = D_m \operatorname{ReLU}(E_s z_s), \qquad
              L = \sum_{s \ne m} L^s_{s \to m} + \omega L^d_{s \to m}

    with standardized features :math:`z`, the terms (4) and (7) and a weight :math:`\omega`. Each
    modality has one :class:`~robustfusion.ModalityConverter`; the first layer of the source's and
    the second of the target's are a converter from one to the other, so that their number grows
    with that of the modalities and not with its square. For two modalities that is the paper's
    two-layer network a direction.

    The converters see features without gradient, and the classifier's gradient ends at what they
    made: to recover is their only aim, so that they need no labels, cannot pull encoders towards
    each other, and where one modality tells nothing of another :math:`\hat z` stays near zero by
    itself and the token remains.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.
        hidden_features: Width between the two layers of a converter.
        distribution_weight: The weight :math:`\omega` of (7) beside (4).

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> out = head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)})
        >>> out.recovered["text"]["image"].shape  # recovered text, from the image
        torch.Size([5, 4])
        >>> out.aux_loss.backward()  # trains the recovery, without labels

    Reference:
        Section 3.3 of https://arxiv.org/abs/2511.18751.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        out_features: int,
        *,
        hidden_features: int = 128,
        distribution_weight: float = 0.1,
    ) -> None:
        super().__init__(dims, out_features)
        self.tokens = nn.Parameter(torch.zeros(len(self.dims), out_features))
        self.project = ModuleDict(
            {m: nn.Linear(dim, out_features, bias=False) for m, dim in self.dims.items()}
        )
        self.converters = ModuleDict(
            {
                m: ModalityConverter(dim, dim, hidden_features=hidden_features)
                for m, dim in self.dims.items()
            }
        )
        self.recovery_loss = DistributionRecoveryLoss(distribution_weight=distribution_weight)

    def forward(self, features: Mapping[str, Tensor], available: Tensor) -> StandInOutput:
        """Recover every modality from every other."""
        codes = torch.stack(
            [c.encode(features[m].detach()) for m, c in self.converters.items()], dim=1
        )
        names = tuple(self.dims)
        hidden, recovered = [], {}
        loss = self.tokens.new_zeros(())
        for place, (target, converter) in enumerate(self.converters.items()):
            made = converter.decode(codes)  # (B, M, D_target), from each source
            hidden.append(self.tokens[place] + self.project[target](made.detach()))
            recovered[target] = {
                source: made[:, i] for i, source in enumerate(names) if source != target
            }
            loss = loss + self._loss(made, features[target].detach(), place, available)
        return StandInOutput(torch.stack(hidden, dim=1), recovered, loss)

    def _loss(self, made: Tensor, target: Tensor, place: int, available: Tensor) -> Tensor:
        """(4) and (7) of one target, all sources at once: (B, M, D), (B, D) -> ()."""
        others = torch.arange(made.shape[1], device=made.device) != place
        paired = available & available[:, place, None] & others
        reference = Gaussian(target.new_zeros(target.shape[1]), target.new_ones(target.shape[1]))
        rows = made.flatten(0, 1)
        return self.recovery_loss(
            rows,
            target[:, None].expand_as(made).flatten(0, 1),
            reference,
            reference,
            paired=paired.flatten(),
        )
