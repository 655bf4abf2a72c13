"""ECML: evidence averaged over the modalities, with a penalty on conflicting opinions."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._validation import check_dims, check_positive
from robustfusion.baselines._branches import Branches, normalize, weighted_sum
from robustfusion.baselines._evidence import (
    combine_mean,
    evidence_from_logits,
    log_expected_probability,
    opinion,
)
from robustfusion.baselines._inputs import masked_inputs
from robustfusion.baselines.tmc import EvidentialOutput, evidential_losses
from robustfusion.functional import masked_mean


def conflict(evidence: Tensor, available: Tensor) -> Tensor:
    r"""Mean conflict of each available view with the others, summed over the views; ``-> (B,)``.

    A pair conflicts by ``½ ‖P_p - P_q‖₁ (1 - u_p)(1 - u_q)``: both sure, and of different things.
    Zero where fewer than two views are available; (B, M, C), (B, M) -> (B,).
    """
    projected = (evidence + 1) / (evidence + 1).sum(dim=-1, keepdim=True)
    certainty = (1 - opinion(evidence)[1]).where(available, 0.0)
    distance = (projected.unsqueeze(1) - projected.unsqueeze(2)).abs().sum(dim=-1) / 2
    pairs = distance * certainty.unsqueeze(1) * certainty.unsqueeze(2)
    return pairs.sum(dim=(1, 2)) / (available.sum(dim=1) - 1).clamp_min(1)


class ECMLHead(nn.Module):
    r"""Evidential conflictive multi-view learning: the mean of the views' evidence.

    .. math:: e = \frac{\sum_m a_m e_m}{\sum_m a_m}, \qquad
              L = \frac{\ell(e) + \sum_m a_m \ell(e_m)}{1 + \sum_m a_m} + \gamma\,L_{con}

    with the evidential loss :math:`\ell` of :class:`TMCHead` and :math:`L_{con}` of
    :func:`conflict`. Unlike Dempster's rule the mean does not grow surer by mere agreement.

    - Kept: averaging, the multi-task loss with its annealing, the conflict term.
    - Replaced: a true mean. A running pairwise mean, as in circulating code, would weigh the last
      view by one half and depend on the order; here any order of ``dims`` gives the same result.
      Annealing counts training steps.
    - Unverified: networks, schedule and weight of the conflict term in the authors' runs.
    - Missing rule: the mean is over available views, conflict over available pairs. With
      everything missing there is no evidence: uniform prediction, uncertainty 1.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        conflict_weight: The :math:`\gamma` above.
        annealing_steps: Steps until the KL term has full weight; ``loss`` counts in training mode.
        hidden_features: Width F of each branch.
        dropout: Dropout after each hidden layer.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - see :class:`EvidentialOutput`; ``aux_loss`` is the weighted conflict

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ECMLHead
        >>> head = ECMLHead({"text": 3, "image": 4}, num_classes=2)
        >>> output = head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)})
        >>> torch.allclose(output.evidence, output.view_evidence.mean(1))
        True

    Reference:
        Xu et al., "Reliable Conflictive Multi-View Learning", AAAI 2024.
    """

    steps: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        conflict_weight: float = 1.0,
        annealing_steps: int = 1000,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        check_positive(annealing_steps, "annealing_steps")
        self.conflict_weight = conflict_weight
        self.annealing_steps = annealing_steps
        self.branches = Branches(
            dims, num_classes, hidden_features=hidden_features, dropout=dropout
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> EvidentialOutput:
        """Average the evidence of the available views."""
        inputs, mask = masked_inputs(features, available, self.dims)
        hidden, view_logits = self.branches(inputs)
        with torch.autocast(view_logits.device.type, enabled=False):
            view_evidence = evidence_from_logits(view_logits)
            evidence = combine_mean(view_evidence, mask)
            certainty = (1 - opinion(view_evidence)[1]).where(mask, 0.0)
            fused = weighted_sum(hidden, normalize(certainty))
            penalty = self.conflict_weight * masked_mean(conflict(view_evidence, mask))
        return EvidentialOutput(
            log_expected_probability(evidence),
            fused,
            penalty,
            evidence,
            opinion(evidence)[1],
            view_evidence,
            mask,
        )

    def loss(self, output: EvidentialOutput, labels: Tensor) -> Tensor:
        """Mean evidential loss of the combination and the available views, plus conflict."""
        if self.training:
            self.steps.add_(1)
        with torch.autocast(labels.device.type, enabled=False):
            weight = (self.steps / self.annealing_steps).clamp(max=1.0)
            combined, views = evidential_losses(output, labels, weight)
            kept = views.where(output.view_available, 0.0).sum(dim=1)
            terms = (combined + kept) / (1 + output.view_available.sum(dim=1))
            return masked_mean(terms) + output.aux_loss
