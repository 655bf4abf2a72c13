"""TMC and ETMC: each modality gives a Dirichlet opinion, Dempster's rule combines them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion._validation import check_dims, check_positive
from robustfusion.baselines._branches import Branches, normalize, weighted_sum
from robustfusion.baselines._evidence import (
    combine_dempster,
    evidence_from_logits,
    evidential_loss,
    log_expected_probability,
    opinion,
)
from robustfusion.baselines._inputs import masked_inputs
from robustfusion.baselines._objectives import column_means, zero_loss
from robustfusion.functional import masked_mean


class EvidentialOutput(NamedTuple):
    """Output of :class:`TMCHead` and :class:`~robustfusion.baselines.ECMLHead`.

    Attributes:
        logits: Log of the expected class probability, (B, C).
        fused: Mean hidden vector, weighted by certainty, (B, F).
        aux_loss: Terms without labels, ().
        evidence: Combined evidence, (B, C).
        uncertainty: Of the combined opinion, (B,), 1 where nothing is available.
        view_evidence: (B, V, C), the modalities in the order of ``dims``, then the pseudo-view
            if there is one.
        view_available: (B, V) bool.
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    evidence: Tensor
    uncertainty: Tensor
    view_evidence: Tensor
    view_available: Tensor


def evidential_losses(
    output: EvidentialOutput, labels: Tensor, kl_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of the combined evidence, (B,), and of each view's, (B, M)."""
    return (
        evidential_loss(output.evidence, labels, kl_weight),
        evidential_loss(output.view_evidence, labels, kl_weight),
    )


class TMCHead(nn.Module):
    r"""Trusted multi-view classification; with ``pseudo_view=True`` its enhanced form, ETMC.

    .. math:: e_m = \mathrm{softplus}(z_m), \quad b_m = e_m / S_m, \quad u_m = C / S_m, \quad
              S_m = \textstyle\sum_k e_{m,k} + C

    The opinions are combined by Dempster's rule for beliefs on single classes,
    :math:`b \propto b_1 b_2 + b_1 u_2 + b_2 u_1`, :math:`u \propto u_1 u_2`. The loss of every
    view and of the combination is
    :math:`\psi(S) - \psi(\alpha_y) + \lambda_t\,\mathrm{KL}[\mathrm{Dir}(\tilde\alpha) \| 1]`
    with :math:`\alpha = e + 1`, :math:`\tilde\alpha = y + (1 - y)\alpha` and
    :math:`\lambda_t = \min(1, t / T)`.

    - Kept: evidence, rule, loss and annealing; ETMC's pseudo-view from the concatenation.
    - Replaced: the rule is evaluated on evidence as :math:`1 + e/C = \prod_m (1 + e_m/C)`, the
      same opinion without dividing by one minus the conflict; :math:`t` counts training steps,
      not epochs; each view has two hidden layers.
    - Unverified: networks and schedule of the authors' runs.
    - Missing rule: a missing view holds the vacuous opinion :math:`b = 0, u = 1`, the identity of
      the rule: it drops out exactly and has no loss. The pseudo-view sees zeros in its place.
      With everything missing the prediction is uniform with uncertainty 1.

    Args:
        dims: Width of each modality, ``{name: D_m}``.
        num_classes: Number of classes C.
        pseudo_view: Add ETMC's pseudo-view.
        annealing_steps: The :math:`T` above; ``loss`` counts in training mode.
        hidden_features: Width F of each branch.
        dropout: Dropout after each hidden layer.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - see :class:`EvidentialOutput`

    Example:
        >>> import torch
        >>> from robustfusion.baselines import TMCHead
        >>> head = TMCHead({"text": 3, "image": 4}, num_classes=2).eval()
        >>> features = {"text": torch.randn(5, 3), "image": torch.randn(5, 4)}
        >>> nothing = {name: torch.zeros(5).bool() for name in features}
        >>> head(features, nothing).uncertainty.tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]

    Reference:
        Han et al., "Trusted Multi-View Classification", ICLR 2021, and "Trusted Multi-View
        Classification with Dynamic Evidential Fusion", TPAMI 2023.
    """

    steps: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        pseudo_view: bool = False,
        annealing_steps: int = 1000,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=1)
        check_positive(num_classes, "num_classes")
        check_positive(annealing_steps, "annealing_steps")
        self.annealing_steps = annealing_steps
        self.branches = Branches(
            dims, num_classes, hidden_features=hidden_features, dropout=dropout
        )
        width = sum(dims.values())
        self.pseudo = (
            mlp(width, hidden_features, hidden_features, num_classes, dropout=dropout)
            if pseudo_view
            else None
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> EvidentialOutput:
        """Combine the opinions of the available views."""
        inputs, mask = masked_inputs(features, available, self.dims)
        hidden, view_logits = self.branches(inputs)
        view_mask = mask
        if self.pseudo is not None:
            pseudo = self.pseudo(torch.cat([inputs[name] for name in self.dims], dim=1))
            view_logits = torch.cat([view_logits, pseudo.unsqueeze(1)], dim=1)
            view_mask = torch.cat([mask, mask.any(dim=1, keepdim=True)], dim=1)
        with torch.autocast(view_logits.device.type, enabled=False):
            view_evidence = evidence_from_logits(view_logits)
            evidence = combine_dempster(view_evidence, view_mask)
            logits = log_expected_probability(evidence)
            certainty = 1 - opinion(view_evidence)[1][:, : len(self.dims)]
            fused = weighted_sum(hidden, normalize(certainty.where(mask, 0.0)))
        return EvidentialOutput(
            logits,
            fused,
            zero_loss(logits),
            evidence,
            opinion(evidence)[1],
            view_evidence,
            view_mask,
        )

    def loss(self, output: EvidentialOutput, labels: Tensor) -> Tensor:
        """Evidential loss of the combination and of every available view."""
        if self.training:
            self.steps.add_(1)
        with torch.autocast(labels.device.type, enabled=False):
            weight = (self.steps / self.annealing_steps).clamp(max=1.0)
            combined, views = evidential_losses(output, labels, weight)
            return masked_mean(combined) + column_means(views, output.view_available).sum()
