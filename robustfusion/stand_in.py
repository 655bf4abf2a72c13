"""Stand-ins replace the modalities that a candidate does not trust."""

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
from robustfusion.functional import at_least_float32, fit_gaussian, moment_matching_loss


class StandInOutput(NamedTuple):
    """The output of a stand-in for B samples of M modalities.

    Attributes:
        hidden: (B or 1, M, M - 1, F). Entry [b, t, s] is what the stand-in of target t adds to
            the fused vector, made from its s-th source; each candidate averages it over the
            sources that it trusts. The sources of a target are the other modalities in order.
        recovered: (B, M - 1, D_target) for each target, standardized features recovered from each
            of its sources; empty if the stand-in recovers nothing.
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
        ...         hidden = torch.zeros(1, 2, 1, self.out_features)
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
        hidden = self.tokens[None, :, None].expand(1, -1, len(self.dims) - 1, -1)
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

    loss_scale: Tensor

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
        self.hidden_features = hidden_features
        self.distribution_weight = distribution_weight
        scale = torch.tensor([(len(self.dims) - 1) / math.sqrt(dim) for dim in self.dims.values()])
        self.register_buffer("loss_scale", scale)

    def forward(
        self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, nn.Module]
    ) -> StandInOutput:
        """Recover every modality from every other."""
        z = {name: values.detach() for name, values in features.items()}
        codes = {name: c.encode(z[name]) for name, c in self.converters.items()}
        hidden, recovered = [], {}
        for token, (target, converter) in zip(self.tokens, self.converters.items(), strict=True):
            sources = [code for source, code in codes.items() if source != target]
            recovered[target] = converter.decode(torch.stack(sources, dim=1))
            weight = cast("Tensor", embed[target].weight)  # the token takes the place of its bias
            hidden.append(F.linear(recovered[target].detach(), weight.detach(), token))
        loss = self._loss(recovered, z, available) if self.training else self.tokens.new_zeros(())
        return StandInOutput(torch.stack(hidden, dim=1), recovered, loss)

    def _loss(
        self, recovered: Mapping[str, Tensor], z: Mapping[str, Tensor], available: Tensor
    ) -> Tensor:
        """Return (4) and (7), summed over all targets and their sources."""
        paired = off_diagonal(available[:, :, None] & available[:, None])  # (B, M, M - 1)
        with torch.autocast(available.device.type, enabled=False):
            difference = {
                target: at_least_float32(rows) - at_least_float32(z[target])[:, None]
                for target, rows in recovered.items()
            }
            distance = torch.stack(
                [torch.linalg.vector_norm(rows, dim=-1) for rows in difference.values()], dim=1
            )
            total = (distance * paired).sum((0, 2)) / paired.sum((0, 2)).clamp_min(1)
            if self.distribution_weight:
                total = total + self.distribution_weight * self._moment_gaps(recovered, z, paired)
            return total @ self.loss_scale.to(total.dtype)

    def _moment_gaps(
        self, recovered: Mapping[str, Tensor], z: Mapping[str, Tensor], paired: Tensor
    ) -> Tensor:
        """Return (7) of each target over this batch, (M,)."""
        gaps = []
        for (target, by_source), mask in zip(recovered.items(), paired.unbind(1), strict=True):
            observed = z[target][:, None].expand_as(by_source)
            generated, reference = (
                fit_gaussian(rows.flatten(0, 1), mask.flatten(), covariance_type="diag")
                for rows in (by_source, observed)
            )
            gaps.append(moment_matching_loss(generated, reference))
        return torch.stack(gaps)


def off_diagonal(pairs: Tensor) -> Tensor:
    """Drop the entries [..., m, m], (..., M, M) -> (..., M, M - 1).

    >>> off_diagonal(torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]]))
    tensor([[1, 2],
            [3, 5],
            [6, 7]])
    """
    *batch, size, _ = pairs.shape
    # Without its first entry, each row of M + 1 entries ends in an entry of the diagonal.
    rows = pairs.flatten(-2)[..., 1:].reshape(*batch, size - 1, size + 1)
    return rows[..., :-1].reshape(*batch, size, size - 1)
