"""Stacking: a second learner over the predictions of one classifier per modality."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion.baselines._branches import Branches, column_means, unimodal_losses
from robustfusion.baselines.head import BaselineHead, cross_entropy, zero_loss
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput


class StackingHead(BaselineHead):
    r"""Classify from the predictions of the modalities and flags of which are available.

    .. math:: p_m = \mathrm{softmax}(z_m), \qquad
              z = \mathrm{MLP}([a_1 p_1; \dots; a_M p_M; a_1; \dots; a_M]), \qquad
              L = \mathrm{CE}(z) + \sum_m \mathrm{CE}(z_m)

    - Kept: one base learner per modality, trained on every sample that has it; its probabilities
      and the availability flags are the only inputs of the second learner.
    - Replaced: cross-validated predictions become detached predictions of the base learners as
      they train, with dropout; so the second learner may trust an over-fitted base too much.
      Hiding modalities from the second learner lets it learn the flags on complete data.
    - Unverified: nothing of one paper; stacking with flags is how block-wise missing tables are
      commonly fused.
    - Missing rule: probabilities and flag of a missing modality are zero, and it has no loss. With
      everything missing the second learner sees zeros.

    Arguments, shapes and errors are those of :class:`~robustfusion.baselines.BaselineHead`.
    Modality dropout concerns the second learner only; its hidden layer, without dropout, is
    ``fused``.

    Shape:
        - ``extras["unimodal_logits"]``: (B, M, C); ``extras["available"]``: (B, M) bool

    Example:
        >>> import torch
        >>> from reproductions import StackingHead
        >>> head = StackingHead({"text": 3, "image": 4}, num_classes=2)
        >>> output = head({"text": torch.zeros(5, 3), "image": torch.zeros(5, 4)})
        >>> output.extras["unimodal_logits"].shape
        torch.Size([5, 2, 2])

    Reference:
        Wolpert, "Stacked Generalization", Neural Networks 5, 1992.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 256,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__(dims, num_classes, modality_dropout=modality_dropout)
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)
        width = len(self.dims) * (num_classes + 1)
        self.network = mlp(width, hidden_features, activate_last=True)
        self.classifier = nn.Linear(hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Predict from each modality, then from the predictions."""
        _, unimodal = self.branches(inputs)
        visible = self.apply_modality_dropout(mask)
        probability = at_least_float32(unimodal.detach()).softmax(dim=-1)
        probability = probability.where(visible.unsqueeze(-1), 0.0).to(unimodal.dtype)
        inputs_of_second = torch.cat([probability.flatten(1), visible.to(unimodal.dtype)], dim=1)
        fused: Tensor = self.network(inputs_of_second)
        logits: Tensor = self.classifier(fused)
        extras = {"unimodal_logits": unimodal, "available": mask}
        return HeadOutput(logits, fused, zero_loss(logits), extras)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Return the cross-entropies of the second learner and of each available modality."""
        losses = unimodal_losses(output.extras["unimodal_logits"], labels)
        unimodal = column_means(losses, output.extras["available"]).sum()
        return cross_entropy(output.logits, labels) + unimodal
