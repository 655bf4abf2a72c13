"""A small Transformer over tokens, some of which may be padding or missing."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, ModuleList, mlp
from robustfusion.functional import at_least_float32, masked_softmax

NUM_HEADS = 4  # Our choice.
INITIAL_STD = 0.02  # Standard deviation of embeddings at initialization, as in BERT.


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with four heads, from (B, Q, H) to (B, K, H).

    Unlike torch's, the result is zero where no key is ``valid`` (B, K). The optional ``bias``
    (B, K) is added to the scores of a key.
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
        self, queries: Tensor, keys: Tensor, valid: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Attend to the valid keys."""
        query, key, value = (
            heads.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for heads in (self.to_query(queries), self.to_key(keys), self.to_value(keys))
        )
        scores = at_least_float32(query @ key.transpose(-1, -2)) / key.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[:, None, None, :]
        weights = masked_softmax(scores, valid[:, None, None, :])
        mixed: Tensor = weights.to(value.dtype) @ value
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a feed-forward layer, both residual, with dropout on both.

    The shape (B, L, H) stays. Tokens that are not ``valid`` (B, L) become finite numbers without
    meaning.
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


class ModalityTransformer(nn.Module):
    """Mix one token of width F per modality and return a class token, (B, F).

    Hidden modalities are not among the keys of any attention.
    """

    def __init__(
        self, dims: Mapping[str, int], *, hidden_features: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in dims.items()}
        )
        self.embeddings = nn.Parameter(INITIAL_STD * torch.randn(len(dims), hidden_features))
        self.class_token = nn.Parameter(INITIAL_STD * torch.randn(hidden_features))
        self.blocks = ModuleList(
            TransformerBlock(hidden_features, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_features)

    def forward(self, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return the class token after the last block."""
        tokens = [layer(inputs[name]) for name, layer in self.projections.items()]
        tokens = [
            token + embedding for token, embedding in zip(tokens, self.embeddings, strict=True)
        ]
        first = self.class_token.expand(mask.shape[0], -1)
        sequence = torch.stack([first.to(tokens[0].dtype), *tokens], dim=1)
        valid = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        for block in self.blocks:
            sequence = block(sequence, valid)
        fused: Tensor = self.norm(sequence[:, 0])
        return fused
