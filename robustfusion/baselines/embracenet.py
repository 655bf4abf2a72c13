"""EmbraceNet: each fused dimension is drawn from one of the available modalities."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, mlp
from robustfusion.baselines._branches import normalize, weighted_sum
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


def embrace(docked: Tensor, probability: Tensor) -> Tensor:
    """Draw each dimension from one modality, (B, M, F), (B, M) -> (B, F).

    The draw is the largest of ``log p`` plus Gumbel noise; it is zero if all probabilities are.
    """
    # A uniform number can be exactly zero, and its double logarithm must stay finite.
    noise = torch.rand(docked.shape, device=docked.device).clamp_(1e-7, 1 - 1e-7)
    scores = probability.log().unsqueeze(-1) - torch.log(-torch.log(noise))
    order = torch.arange(docked.shape[1], device=docked.device).unsqueeze(-1)
    chosen = order == scores.argmax(dim=1, keepdim=True)
    possible = probability.unsqueeze(-1) > 0
    return docked.where(chosen & possible, 0.0).sum(dim=1)


class EmbraceNetHead(BaselineHead):
    r"""EmbraceNet: dock, embrace, classify.

    .. math:: d_m = \mathrm{ReLU}(W_m f_m + b_m), \quad r_k \sim \mathrm{Categorical}(p), \quad
              e_k = d_{r_k, k}, \quad z = \mathrm{MLP}(e), \quad p_m = a_m / \textstyle\sum a

    - Kept: docking layers, one draw per dimension in training, probability zero for what is
      missing, modality dropout.
    - Replaced: evaluation uses the expectation :math:`\sum_m p_m d_m`, so predictions are
      deterministic and do not depend on the rest of the batch.
    - Unverified: the size of the terminal network in the authors' runs.
    - Missing rule: probability zero. With everything missing the fused vector is zero.

    Arguments and errors are those of :class:`BaselineHead`; ``fused`` is the embraced vector.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import EmbraceNetHead
        >>> head = EmbraceNetHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)}).fused.shape
        torch.Size([5, 256])

    Reference:
        Choi and Lee, "EmbraceNet: A Robust Deep Learning Architecture for Multimodal
        Classification", Information Fusion 51, 2019.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        hidden_features: int = 256,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__(dims, num_classes, task=task, modality_dropout=modality_dropout)
        self.docking = ModuleDict(
            {name: mlp(dim, hidden_features, activate_last=True) for name, dim in dims.items()}
        )
        self.terminal = mlp(hidden_features, hidden_features, dropout=dropout, activate_last=True)
        self.classifier = nn.Linear(hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Embrace the available modalities: draw in training, average in evaluation."""
        docked = torch.stack([layer(inputs[name]) for name, layer in self.docking.items()], dim=1)
        probability = normalize(
            at_least_float32(self.apply_modality_dropout(mask).to(docked.dtype))
        )
        fused = (embrace if self.training else weighted_sum)(docked, probability)
        logits: Tensor = self.classifier(self.terminal(fused))
        return HeadOutput(logits, fused, zero_loss(logits))
