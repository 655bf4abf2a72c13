"""What replaces a modality that a candidate does not trust."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._modules import ModuleDict, arguments_of
from robustfusion._validation import check_dims, check_positive
from robustfusion.conversion import ModalityConverter
from robustfusion.functional import fit_gaussian
from robustfusion.losses import DistributionRecoveryLoss


class StandInOutput(NamedTuple):
    """What a stand-in returns for B samples of M modalities.

    Attributes:
        hidden: (B or 1, M, M, F). Entry [b, t, s] is what the stand-in of target t adds to the
            fused vector, made from source s; each candidate averages it over the sources it
            trusts.
        recovered: (B, M, D_target) for each target, standardized features recovered from each
            source; empty if the stand-in recovers nothing.
        loss: (), a training loss that needs no labels; 0 in evaluation.
    """

    hidden: Tensor
    recovered: dict[str, Tensor]
    loss: Tensor


class StandIn(nn.Module, ABC):
    """Replace the modalities that a candidate does not trust, in the space of the fused vector.

    :class:`~robustfusion.DRFHead` calls it with standardized features, in which unavailable rows
    hold a placeholder. A placeholder must not influence what is made from other sources, nor the
    loss.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, StandIn
        >>> from robustfusion.stand_in import StandInOutput
        >>> class Nothing(StandIn):  # a stand-in of your own: an untrusted modality adds nothing
        ...     def forward(self, features, available, embed):
        ...         hidden = torch.zeros(1, len(self.dims), len(self.dims), self.out_features)
        ...         return StandInOutput(hidden, {}, torch.zeros(()))
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3, stand_in=Nothing)
        >>> head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)}).logits.shape
        torch.Size([5, 3])
    """

    def __init__(self, dims: Mapping[str, int], out_features: int) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        check_positive(out_features, "out_features")
        self.out_features = out_features

    @abstractmethod
    def forward(
        self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, nn.Module]
    ) -> StandInOutput:
        """Return a replacement for each modality.

        Args:
            features: (B, D_m) for each modality, standardized.
            available: (B, M) bool.
            embed: The head's linear layer of each modality, (B, D_m) -> (B, F).
        """

    extra_repr = arguments_of


class LearnedTokens(StandIn):
    r"""Replace each modality by a learned vector :math:`t_m`, the same for every sample.

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
        Learned vectors for missing modalities: Lee et al., CVPR 2023,
        https://arxiv.org/abs/2303.03369.
    """

    def __init__(self, dims: Mapping[str, int], out_features: int) -> None:
        super().__init__(dims, out_features)
        self.tokens = nn.Parameter(torch.zeros(len(self.dims), out_features))

    def forward(
        self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, nn.Module]
    ) -> StandInOutput:
        """Return the tokens, the same for every sample and source."""
        hidden = self.tokens[None, :, None].expand(1, -1, len(self.dims), -1)
        return StandInOutput(hidden, {}, self.tokens.new_zeros(()))


class RecoveredFeatures(LearnedTokens):
    r"""Replace a modality by a learned vector plus features recovered from the other modalities.

    Each modality has one :class:`~robustfusion.ModalityConverter`. The first layer of the source's
    converter and the second layer of the target's together convert one modality into the other, so
    the number of layers grows with the number of modalities, not with its square. For two
    modalities this is the paper's two-layer network in each direction.

    Recovery is trained without labels and changes nothing else: the converters see features
    without gradient, and the classifier's gradient stops at the recovered features, so that
    recovery cannot pull the encoders of two modalities towards each other. If one modality does
    not predict another, the recovered features stay near zero and the learned vector remains.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.
        hidden_features: Width between the two layers of a converter.
        distribution_weight: Weight :math:`\omega` of the distribution term (7), which compares the
            moments of a batch, relative to the sample term (4). Cross-validated, it helped on no
            data set; see the results on choosing parts.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> out = head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)})
        >>> out.recovered["text"]["image"].shape  # text features recovered from the image
        torch.Size([5, 4])
        >>> out.aux_loss.backward()  # trains the recovery, without labels

    Note:
        .. math:: t_m + W_m \hat z_m, \qquad
                  \hat z_{s \to m} = D_m \operatorname{ReLU}(E_s z_s), \qquad
                  L = \sum_{s \ne m} \big( L^s_{s \to m} + \omega L^d_{s \to m} \big) / \sqrt{d_m}

        with standardized features :math:`z`, the head's layer :math:`W_m`, the terms (4) and (7)
        and the width :math:`d_m`.

    Reference:
        Section 3.3 of https://arxiv.org/abs/2511.18751.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        out_features: int,
        *,
        hidden_features: int = 128,
        distribution_weight: float = 0.0,
    ) -> None:
        super().__init__(dims, out_features)
        self.converters = ModuleDict(
            {
                name: ModalityConverter(dim, dim, hidden_features=hidden_features)
                for name, dim in self.dims.items()
            }
        )
        self.recovery_loss = DistributionRecoveryLoss(distribution_weight=distribution_weight)

    def forward(
        self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, nn.Module]
    ) -> StandInOutput:
        """Recover every modality from every other."""
        z = {name: values.detach() for name, values in features.items()}
        codes = torch.stack([c.encode(z[name]) for name, c in self.converters.items()], dim=1)
        hidden, recovered = [], {}
        for token, (target, converter) in zip(self.tokens, self.converters.items(), strict=True):
            recovered[target] = converter.decode(codes)  # (B, M, D_target), one per source
            weight = cast("Tensor", embed[target].weight)  # the token takes the place of its bias
            hidden.append(F.linear(recovered[target].detach(), weight, token))
        loss = self._loss(recovered, z, available) if self.training else self.tokens.new_zeros(())
        return StandInOutput(torch.stack(hidden, dim=1), recovered, loss)

    def _loss(
        self, recovered: Mapping[str, Tensor], z: Mapping[str, Tensor], available: Tensor
    ) -> Tensor:
        """Return (4) and (7), summed over all targets and their sources."""
        sources = available.shape[1]
        others = ~torch.eye(sources, dtype=torch.bool, device=available.device)
        pairs = available.T[:, :, None] & available & others[:, None]  # target, row, source
        losses = []
        for paired, (target, by_source) in zip(pairs.flatten(1), recovered.items(), strict=True):
            rows = by_source.flatten(0, 1)
            wanted = z[target][:, None].expand_as(by_source).flatten(0, 1)
            moments = []
            if self.recovery_loss.distribution_weight:
                moments = [
                    fit_gaussian(part, paired, covariance_type="diag") for part in (rows, wanted)
                ]
            loss = self.recovery_loss(rows, wanted, *moments, paired=paired)
            losses.append(loss * ((sources - 1) / math.sqrt(by_source.shape[-1])))
        return torch.stack(losses).sum()
