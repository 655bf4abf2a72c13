"""Concatenation with modality dropout and learned missing tokens: the baseline to beat."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


class ConcatenationHead(BaselineHead):
    r"""Concatenate all modalities and classify with a three-layer network.

    .. math:: \tilde f_m = a_m f_m + (1 - a_m)\, t_m, \qquad
              z = W_3\, h_2(h_1([\tilde f_1; \dots; \tilde f_M])) + b

    with :math:`h_i` = Linear, ReLU, Dropout and :math:`t_m` a learned token. With
    ``modality_dropout`` it is the strong baseline that robustness papers rarely report. Trained
    without it on complete data, the tokens stay zero and the head is the same model as
    :class:`ImputationHead` with zeros: count the two as one in a ranking.

    - Kept: early fusion as every paper runs it; modality dropout never restores a modality that
      is missing and never hides the last one.
    - Replaced: zeros for missing modalities become learned tokens, initialized to zero, which is
      the mean of standardized features.
    - Missing rule: the learned token of the modality. With everything missing, the tokens alone.
    - Unverified: networks and schedule of the paper, whose modalities are video and audio.

    Arguments and errors are those of :class:`BaselineHead`; ``fused`` is the last hidden layer.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> head = ConcatenationHead({"text": 3, "image": 4}, 2, modality_dropout=0.3)
        >>> features = {"text": torch.randn(5, 3), "image": torch.full((5, 4), torch.nan)}
        >>> available = {"text": torch.ones(5).bool(), "image": torch.zeros(5).bool()}
        >>> output = head(features, available)
        >>> output.logits.isfinite().all().item()
        True

    Reference:
        Modality dropout: Neverova et al., "ModDrop: Adaptive Multi-Modal Gesture Recognition",
        TPAMI 38, 2016.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        hidden_features: int = 256,
        dropout: float = 0.1,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(dims, num_classes, task=task, modality_dropout=modality_dropout)
        self.tokens = nn.ParameterDict({n: torch.zeros(dim) for n, dim in self.dims.items()})
        width = sum(self.dims.values())
        self.network = mlp(
            width, hidden_features, hidden_features, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Replace missing features by their tokens, concatenate, classify."""
        if self.modality_dropout > 0:  # A draw would change the masks of dropout that follow.
            mask = self.apply_modality_dropout(mask)
        filled = [
            torch.where(mask[:, index, None], inputs[name], self.tokens[name])
            for index, name in enumerate(self.dims)
        ]
        fused: Tensor = self.network(torch.cat(filled, dim=1))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))
