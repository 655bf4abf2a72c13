"""Subjective logic on Dirichlet evidence: opinions, two rules of combination, the loss.

Evidence ``e >= 0`` over C classes gives a Dirichlet ``α = e + 1`` with strength ``S = Σα`` and
the opinion ``b = e / S`` (beliefs) with ``u = C / S`` (uncertainty); ``Σb + u = 1``. Without
evidence the opinion is vacuous, ``b = 0, u = 1``. All is computed in float32 or better.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion.functional import at_least_float32

# Products of many confident opinions overflow, and a strength of exp(20) already means certainty.
MAX_LOG_STRENGTH = 20.0


def evidence_from_logits(logits: Tensor) -> Tensor:
    """Return the non-negative evidence ``softplus(logits)``."""
    return F.softplus(at_least_float32(logits))


def opinion(evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Return beliefs (..., C) and uncertainty (...) of evidence (..., C)."""
    classes = evidence.shape[-1]
    strength = evidence.sum(dim=-1, keepdim=True) + classes
    return evidence / strength, classes / strength.squeeze(-1)


def combine_dempster(evidence: Tensor, available: Tensor) -> Tensor:
    r"""Combine the modalities by Dempster's rule, (B, M, C), (B, M) -> (B, C).

    For opinions on single classes the rule ``b ∝ b₁b₂ + b₁u₂ + b₂u₁``, ``u ∝ u₁u₂`` becomes
    ``e = e₁ + e₂ + e₁e₂ / C`` on the evidence, hence ``1 + e/C = Π (1 + eₘ/C)``. This is a sum of
    logarithms, without the division by one minus the conflict, which loses digits when views
    disagree. A missing view adds zero, as the vacuous opinion must. A product too large for
    float32 is scaled down by the same factor for all classes, so that their order stays.
    """
    classes = evidence.shape[-1]
    terms = torch.log1p(evidence / classes)
    total = terms.where(available.unsqueeze(-1), 0.0).sum(dim=1)
    excess = (total.amax(dim=-1, keepdim=True) - MAX_LOG_STRENGTH).clamp_min(0.0)
    return classes * (torch.expm1(total - excess) - torch.expm1(-excess))


def combine_mean(evidence: Tensor, available: Tensor) -> Tensor:
    """Average the evidence of the available modalities, (B, M, C), (B, M) -> (B, C)."""
    total = evidence.where(available.unsqueeze(-1), 0.0).sum(dim=1)
    return total / available.sum(dim=1, keepdim=True).clamp(min=1)


def conflict(evidence: Tensor, available: Tensor) -> Tensor:
    r"""Sum the mean conflict of each available view with the others; (B, M, C), (B, M) -> (B,).

    A pair conflicts by ``½ ‖P_p - P_q‖₁ (1 - u_p)(1 - u_q)``, which is large if both views are
    certain of different classes. The result is zero with fewer than two available views.
    """
    projected = (evidence + 1) / (evidence + 1).sum(dim=-1, keepdim=True)
    certainty = (1 - opinion(evidence)[1]).where(available, 0.0)
    distance = (projected.unsqueeze(1) - projected.unsqueeze(2)).abs().sum(dim=-1) / 2
    pairs = distance * certainty.unsqueeze(1) * certainty.unsqueeze(2)
    return pairs.sum(dim=(1, 2)) / (available.sum(dim=1) - 1).clamp_min(1)


def log_expected_probability(evidence: Tensor) -> Tensor:
    """Return the log of the Dirichlet mean ``α / S``; its softmax is the class probability."""
    alpha = evidence + 1
    return torch.log(alpha) - torch.log(alpha.sum(dim=-1, keepdim=True))


def dirichlet_kl_to_uniform(alpha: Tensor) -> Tensor:
    """Compute the divergence ``KL[Dir(α) || Dir(1)]``, (..., C) -> (...)."""
    strength = alpha.sum(dim=-1)
    log_mean = torch.digamma(alpha) - torch.digamma(strength).unsqueeze(-1)
    return (
        torch.lgamma(strength)
        - math.lgamma(alpha.shape[-1])
        - torch.lgamma(alpha).sum(dim=-1)
        + ((alpha - 1) * log_mean).sum(dim=-1)
    )


def evidential_loss(evidence: Tensor, labels: Tensor, kl_weight: Tensor) -> Tensor:
    r"""Add to the expected cross-entropy a penalty on evidence for wrong classes, per sample.

    The loss is ``ψ(S) - ψ(α_y) + λ KL[Dir(α̃) || Dir(1)]`` with ``α̃ = y + (1 - y) α``;
    (B, C), (B,), () -> (B,), or (B, V, C) -> (B, V) for the views of a sample.
    """
    alpha = evidence + 1
    target = labels if evidence.ndim == 2 else labels.unsqueeze(1).expand(evidence.shape[:2])
    is_true = F.one_hot(target, alpha.shape[-1]).bool()
    true_alpha = alpha.where(is_true, 0.0).sum(dim=-1)
    fit = torch.digamma(alpha.sum(dim=-1)) - torch.digamma(true_alpha)
    return fit + kl_weight * dirichlet_kl_to_uniform(alpha.where(~is_true, 1.0))
