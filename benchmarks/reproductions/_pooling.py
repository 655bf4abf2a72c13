"""Pooling of tokens, some of which are padding or belong to a missing modality."""

import torch
from torch import Tensor, nn

from robustfusion.functional import at_least_float32, masked_softmax

CLOSED = 1e-3  # The share that a closed gate leaves; our choice.


class AttentionPool(nn.Module):
    """Pool tokens by learned scores: ``α = softmax(qᵀ tanh(W x_i + U c))``, ``Σ α_i x_i``.

    Args:
        width: Width H of the tokens and of the context.
        contextual: Use a context ``c``.

    Shape:
        - tokens (..., L, H); valid (..., L); context (..., H) if contextual
        - Output: (..., H), zero where no token is valid
    """

    def __init__(self, width: int, *, contextual: bool = False) -> None:
        super().__init__()
        self.from_tokens = nn.Linear(width, width)
        self.from_context = nn.Linear(width, width, bias=False) if contextual else None
        self.query = nn.Linear(width, 1, bias=False)

    def forward(self, tokens: Tensor, valid: Tensor, context: Tensor | None = None) -> Tensor:
        """Pool the valid tokens."""
        keys: Tensor = self.from_tokens(tokens)
        if self.from_context is not None:
            keys = keys + self.from_context(context).unsqueeze(-2)
        scores: Tensor = self.query(torch.tanh(keys)).squeeze(-1)
        weights = masked_softmax(at_least_float32(scores), valid)
        return (weights.unsqueeze(-1) * tokens).sum(dim=-2)


def gated_share(weights: Tensor, gate: Tensor) -> Tensor:
    """Close some entries of a distribution and renormalize the rest; (..., K) -> (..., K).

    A closed gate leaves a thousandth. So closing all gates equals opening all of them, and the
    gradient of a gate stays bounded where the only open entry had hardly any weight.
    """
    mixed = weights * (gate + CLOSED)
    total = mixed.sum(dim=-1, keepdim=True)
    return mixed / total.where(total > 0, 1.0)


def masked_token_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """Average the valid tokens, zero without any; (B, L, H), (B, L) -> (B, H)."""
    total = tokens.where(valid.unsqueeze(-1), 0.0).sum(dim=1)
    return total / valid.sum(dim=1, keepdim=True).clamp_min(1)
