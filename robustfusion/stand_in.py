"""What takes the place of a modality that a candidate does not trust."""

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
from robustfusion.functional import Gaussian, fit_gaussian
from robustfusion.losses import DistributionRecoveryLoss

_DOUBT = 0.2  # of a sample, that a modality of it is poor; 0.01 to 0.4 were tried


class StandInOutput(NamedTuple):
    """What a stand-in gives for B samples of M modalities.

    Attributes:
        hidden: (B or 1, M, M, F), for each target and source what the target's stand-in adds to
            the fused vector, made from that source; candidates average it over what they trust.
        recovered: (B, M, D_target) for each target, standardized features recovered from each
            source; empty where none are.
        loss: Scalar, needs no labels; 0 in evaluation.
    """

    hidden: Tensor
    recovered: dict[str, Tensor]
    loss: Tensor


class StandIn(nn.Module, ABC):
    """Fill in for modalities that a candidate does not trust, in the space of the fused vector.

    :class:`~robustfusion.DRFHead` calls it with standardized features, where rows that are not
    available hold a placeholder. It must leave no trace of those in what it returns for other
    sources, nor in its loss.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.

    Attributes:
        log_quality: (M,), what fusion takes the log-quality of each stand-in for, beside that of
            a feature which is there. At first log(0.2 / M), so that at M = 2 a feature weighs as
            much as its stand-in when one in ten intact features looks as odd, and with more
            modalities the complete sample keeps its weight; :func:`~robustfusion.calibrate` fits
            it to held-out samples. Less trusts the features more.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, StandIn
        >>> from robustfusion.stand_in import StandInOutput
        >>> class Nothing(StandIn):  # a stand-in of your own: what is not trusted adds nothing
        ...     def forward(self, features, available, embed):
        ...         hidden = torch.zeros(1, len(self.dims), len(self.dims), self.out_features)
        ...         return StandInOutput(hidden, {}, torch.zeros(()))
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3, stand_in=Nothing)
        >>> head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)}).logits.shape
        torch.Size([5, 3])
    """

    log_quality: Tensor

    def __init__(self, dims: Mapping[str, int], out_features: int) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        check_positive(out_features, "out_features")
        self.out_features = out_features
        self.register_buffer("log_quality", torch.zeros(len(self.dims)))
        self.reset_log_quality()

    def reset_log_quality(self) -> None:
        """Forget what was fitted to held-out samples."""
        self.log_quality.fill_(math.log(_DOUBT / len(self.dims)))

    @abstractmethod
    def forward(
        self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, nn.Module]
    ) -> StandInOutput:
        """Return what stands in for each modality.

        Args:
            features: (B, D_m) for each modality, standardized.
            available: (B, M) bool.
            embed: The head's linear layer of each modality, (B, D_m) -> (B, F).
        """

    extra_repr = arguments_of


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

    def forward(
        self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, nn.Module]
    ) -> StandInOutput:
        """Return the tokens, the same for every sample and source."""
        hidden = self.tokens[None, :, None].expand(1, -1, len(self.dims), -1)
        return StandInOutput(hidden, {}, self.tokens.new_zeros(()))


class RecoveredFeatures(LearnedTokens):
    r"""A learned vector plus what the other modalities tell of the missing one.

    .. math:: t_m + W_m \hat z_m, \qquad
              \hat z_{s \to m} = D_m \operatorname{ReLU}(E_s z_s), \qquad
              L = \sum_{s \ne m} \big( L^s_{s \to m} + \omega L^d_{s \to m} \big) / \sqrt{d_m}

    with standardized features :math:`z`, the head's :math:`W_m`, the terms (4) and (7), the width
    :math:`d_m` and a weight :math:`\omega`. Each modality has one
    :class:`~robustfusion.ModalityConverter`; the first layer of the source's and the second of the
    target's together convert the one into the other, so that their number grows with that of the
    modalities and not with its square. For two modalities that is the paper's two-layer network a
    direction.

    The converters see features without gradient, and the classifier's gradient ends at what they
    made: to recover is their only aim, so that they need no labels and cannot pull encoders
    towards each other. Where one modality tells nothing of another, :math:`\hat z` stays near zero
    by itself and the token remains.

    Args:
        dims: Feature width of each modality.
        out_features: Width F of the fused vector.
        hidden_features: Width between the two layers of a converter.
        distribution_weight: The weight :math:`\omega` of (7), over the batch, beside (4). Out of
            fold it helped on no data; see the results on choosing parts.

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
            made = converter.decode(codes)  # (B, M, D_target), from each source
            weight = cast("Tensor", embed[target].weight)  # its bias is the token's
            hidden.append(F.linear(made.detach(), weight, token))
            recovered[target] = made
        loss = self._loss(recovered, z, available) if self.training else self.tokens.new_zeros(())
        return StandInOutput(torch.stack(hidden, dim=1), recovered, loss)

    def _loss(
        self, recovered: Mapping[str, Tensor], z: Mapping[str, Tensor], available: Tensor
    ) -> Tensor:
        """(4) and (7) of all targets, from all sources of each at once."""
        sources = available.shape[1]
        others = ~torch.eye(sources, dtype=torch.bool, device=available.device)
        pairs = available.T[:, :, None] & available & others[:, None]  # target, row, source
        losses = []
        for paired, (target, made) in zip(pairs.flatten(1), recovered.items(), strict=True):
            rows = made.flatten(0, 1)
            wanted = z[target][:, None].expand_as(made).flatten(0, 1)
            generated = reference = Gaussian(self.tokens, self.tokens)  # not looked at
            if self.recovery_loss.distribution_weight:
                generated = fit_gaussian(rows, paired, covariance_type="diag")
                reference = fit_gaussian(wanted, paired, covariance_type="diag")
            loss = self.recovery_loss(rows, wanted, generated, reference, paired=paired)
            losses.append(loss * ((sources - 1) / math.sqrt(made.shape[-1])))
        return torch.stack(losses).sum()
