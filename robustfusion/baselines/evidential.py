"""Each modality gives a Dirichlet opinion: TMC combines them by Dempster's rule, ECML averages."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustfusion._modules import mlp
from robustfusion._task_head import Supervision
from robustfusion._validation import check_positive
from robustfusion.baselines._branches import Branches, normalize, weighted_sum
from robustfusion.baselines._evidence import (
    combine_dempster,
    combine_mean,
    conflict,
    evidence_from_logits,
    evidential_loss,
    log_expected_probability,
    opinion,
)
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.functional import masked_mean
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task


class _EvidentialHead(BaselineHead):
    """Branches whose logits become evidence, a rule to combine it, and the annealed loss."""

    supported_tasks: ClassVar[tuple[Task, ...]] = ("multiclass",)
    steps: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        task: Task,
        hidden_features: int,
        dropout: float,
        annealing_steps: int,
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        check_positive(annealing_steps, "annealing_steps")
        self.annealing_steps = annealing_steps
        self.branches = Branches(self.dims, num_classes, hidden_features, dropout)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _combine(
        self,
        hidden: Tensor,
        view_logits: Tensor,
        view_mask: Tensor,
        rule: Callable[[Tensor, Tensor], Tensor],
    ) -> HeadOutput:
        """Combine the opinions; the first M views have hidden vectors (B, M, F)."""
        with torch.autocast(view_logits.device.type, enabled=False):
            views = evidence_from_logits(view_logits)
            evidence = rule(views, view_mask)
            certainty = (1 - opinion(views)[1]).where(view_mask, 0.0)[:, : hidden.shape[1]]
            fused = weighted_sum(hidden, normalize(certainty))
            logits = log_expected_probability(evidence)
            extras = {"evidence": evidence, "uncertainty": opinion(evidence)[1]}
            extras |= {"view_evidence": views, "view_available": view_mask}
        return HeadOutput(logits, fused, zero_loss(logits), extras)

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the evidential loss of combination and views; training mode counts steps."""
        labels = supervision.target
        if labels.ndim > 1 or supervision.label_smoothing:
            raise ValueError(
                f"target of a {type(self).__name__} must be the index of a class without "
                f"label_smoothing, got {tuple(labels.shape)} and {supervision.label_smoothing}"
            )
        if self.training:
            self.steps.add_(1)
        weight = supervision.losses(output.logits)[1]
        with torch.autocast(labels.device.type, enabled=False):
            annealed = (self.steps / self.annealing_steps).clamp(max=1.0)
            labels = labels.clamp_min(0)  # ignored samples have weight 0
            combined = evidential_loss(output.extras["evidence"], labels, annealed) * weight
            views = evidential_loss(output.extras["view_evidence"], labels, annealed)
            views = (views * weight[:, None]).where(output.extras["view_available"], 0.0)
            return self._reduce(combined, views, output, supervision, weight)

    @abstractmethod
    def _reduce(
        self,
        combined: Tensor,
        views: Tensor,
        output: HeadOutput,
        supervision: Supervision,
        weight: Tensor,
    ) -> Tensor:
        """Reduce the losses of the combination (B,) and of the views (B, V)."""


class TMCHead(_EvidentialHead):
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

    Other arguments, shapes and errors are those of :class:`BaselineHead`; ``fused`` is the mean
    hidden vector, weighted by certainty.

    Args:
        pseudo_view: Add ETMC's pseudo-view.
        annealing_steps: The :math:`T` above; ``loss`` counts steps in training mode.

    Shape:
        - ``extras["evidence"]``: (B, C), combined; ``extras["uncertainty"]``: (B,), 1 where
          nothing is available
        - ``extras["view_evidence"]``: (B, V, C), the modalities in the order of ``dims``, then the
          pseudo-view if there is one; ``extras["view_available"]``: (B, V) bool

    Example:
        >>> import torch
        >>> from robustfusion.baselines import TMCHead
        >>> head = TMCHead({"text": 3, "image": 4}, num_classes=2).eval()
        >>> features = {"text": torch.randn(5, 3), "image": torch.randn(5, 4)}
        >>> nothing = {name: torch.zeros(5).bool() for name in features}
        >>> head(features, nothing).extras["uncertainty"].tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]

    Reference:
        Han et al., "Trusted Multi-View Classification", ICLR 2021, and "Trusted Multi-View
        Classification with Dynamic Evidential Fusion", TPAMI 2023.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        pseudo_view: bool = False,
        annealing_steps: int = 1000,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, task, hidden_features, dropout, annealing_steps)
        widths = (sum(self.dims.values()), hidden_features, hidden_features, num_classes)
        self.pseudo = mlp(*widths, dropout=dropout) if pseudo_view else None

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Combine the opinions of the available views."""
        hidden, view_logits = self.branches(inputs)
        if self.pseudo is not None:
            pseudo = self.pseudo(torch.cat([inputs[name] for name in self.dims], dim=1))
            view_logits = torch.cat([view_logits, pseudo.unsqueeze(1)], dim=1)
            mask = torch.cat([mask, mask.any(dim=1, keepdim=True)], dim=1)
        return self._combine(hidden, view_logits, mask, combine_dempster)

    def _reduce(
        self,
        combined: Tensor,
        views: Tensor,
        output: HeadOutput,
        supervision: Supervision,
        weight: Tensor,
    ) -> Tensor:
        by_view = supervision.reduce(views, weight, output.extras["view_available"])
        return supervision.reduce(combined, weight) + by_view


class ECMLHead(_EvidentialHead):
    r"""Evidential conflictive multi-view learning: the mean of the views' evidence.

    .. math:: e = \frac{\sum_m a_m e_m}{\sum_m a_m}, \qquad
              L = \frac{\ell(e) + \sum_m a_m \ell(e_m)}{1 + \sum_m a_m} + \gamma\,L_{con}

    with the evidential loss :math:`\ell` of :class:`TMCHead` and :math:`L_{con}`, the mean
    conflict of each available view with the others,
    :math:`\tfrac12 \lVert P_p - P_q \rVert_1 (1 - u_p)(1 - u_q)`, which is large if both are
    certain of different classes. Unlike with Dempster's rule, agreement alone does not raise
    the certainty.

    - Kept: averaging, the multi-task loss with its annealing, the conflict term.
    - Replaced: the mean weighs all views alike. A running pairwise mean, as in circulating code,
      would weigh the last view by one half and depend on the order; here any order of ``dims``
      gives the same result. Annealing counts training steps.
    - Unverified: networks, schedule and weight of the conflict term in the authors' runs.
    - Missing rule: the mean is over available views, conflict over available pairs. With
      everything missing there is no evidence: uniform prediction, uncertainty 1.

    Other arguments, shapes and errors are those of :class:`BaselineHead`, ``fused`` and
    ``extras`` those of :class:`TMCHead`; ``aux_loss`` is the weighted conflict.

    Args:
        conflict_weight: The :math:`\gamma` above.
        annealing_steps: Steps until the KL term has full weight, counted in training mode.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ECMLHead
        >>> head = ECMLHead({"text": 3, "image": 4}, num_classes=2)
        >>> output = head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)})
        >>> torch.allclose(output.extras["evidence"], output.extras["view_evidence"].mean(1))
        True

    Reference:
        Xu et al., "Reliable Conflictive Multi-View Learning", AAAI 2024.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        conflict_weight: float = 1.0,
        annealing_steps: int = 1000,
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, task, hidden_features, dropout, annealing_steps)
        self.conflict_weight = conflict_weight

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Average the evidence of the available views."""
        hidden, view_logits = self.branches(inputs)
        output = self._combine(hidden, view_logits, mask, combine_mean)
        conflicts = masked_mean(conflict(output.extras["view_evidence"], mask))
        return output._replace(aux_loss=self.conflict_weight * conflicts)

    def _reduce(
        self,
        combined: Tensor,
        views: Tensor,
        output: HeadOutput,
        supervision: Supervision,
        weight: Tensor,
    ) -> Tensor:
        parts = 1 + output.extras["view_available"].sum(dim=1)
        return supervision.reduce((combined + views.sum(dim=1)) / parts, weight)
