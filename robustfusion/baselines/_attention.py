"""Attention over tokens of which some are not there: padding, missing modalities, dropped ones."""

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion.functional import at_least_float32, masked_softmax

NUM_HEADS = 4
CLOSED = 1e-3


class AttentionPool(nn.Module):
    """Pool tokens by learned scores: ``α = softmax(qᵀ tanh(W x_i + U c))``, ``Σ α_i x_i``.

    Args:
        width: Width ``H`` of the tokens and of the context.
        contextual: Whether there is a context ``c``.

    Shape:
        - tokens ``(..., L, H)``; valid ``(..., L)``; context ``(..., H)`` if contextual
        - Output: ``(..., H)``, zero where no token is valid
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
    """Close some entries of a distribution and renormalise the rest; ``(..., K) -> (..., K)``.

    A closed gate leaves a thousandth, so that all closed is as good as all open, and gradients
    through a gate stay bounded where the only open entry had hardly any weight.
    """
    mixed = weights * (gate + CLOSED)
    total = mixed.sum(dim=-1, keepdim=True)
    return mixed / total.where(total > 0, 1.0)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with four heads; zero where no key is valid.

    Args:
        width: Width ``H`` of queries and keys, divisible by four.

    Shape:
        - queries ``(B, Q, H)``; keys ``(B, K, H)``; valid ``(B, K)``; gate ``(B, K)`` or None
        - Output: ``(B, Q, H)``
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % NUM_HEADS:
            raise ValueError(f"hidden_features must be divisible by {NUM_HEADS}, got {width}")
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.to_value = nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, queries: Tensor, keys: Tensor, valid: Tensor, gate: Tensor | None = None
    ) -> Tensor:
        """Attend; ``gate`` in [0, 1] scales the weight of a key before renormalisation."""
        query, key, value = (
            layer(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for layer, x in (
                (self.to_query, queries),
                (self.to_key, keys),
                (self.to_value, keys),
            )
        )
        scores = at_least_float32(query @ key.transpose(-1, -2)) / key.shape[-1] ** 0.5
        weights = masked_softmax(scores, valid[:, None, None, :])
        if gate is not None:
            weights = gated_share(weights, gate[:, None, None, :])
        mixed: Tensor = weights.to(value.dtype) @ value
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a feed-forward layer, both residual.

    Args:
        width: Width ``H`` of the tokens.
        dropout: Dropout on both residual branches.

    Shape:
        - tokens ``(B, L, H)``; valid ``(B, L)``
        - Output: ``(B, L, H)``, meaningless but finite where not valid
    """

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = mlp(width, 2 * width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Mix the valid tokens."""
        normed = self.attention_norm(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, valid))
        update: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(tokens)))
        return tokens + update


def masked_token_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid tokens, zero without any; ``(B, L, H), (B, L) -> (B, H)``."""
    kept = tokens.where(valid.unsqueeze(-1), 0.0).sum(dim=1)
    return kept / valid.sum(dim=1, keepdim=True).clamp_min(1)
