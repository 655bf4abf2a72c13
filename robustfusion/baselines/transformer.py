"""A Transformer over tokens of which some are not there, and the head with one a modality."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, ModuleList, mlp
from robustfusion._validation import check_positive
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.functional import at_least_float32, masked_softmax
from robustfusion.output import HeadOutput

NUM_HEADS = 4  # ours
SMALL = 0.02  # deviation of embeddings at birth, as in BERT


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with four heads of (B, Q, H) to (B, K, H).

    Zero where no key is ``valid`` (B, K); ``bias`` (B, K) is added to the scores of a key.
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

    (B, L, H) to the same, meaningless but finite where not ``valid`` (B, L).
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
    """Mix one token of width F per modality, and read a class token, (B, F).

    What the mask hides is no key of any attention.
    """

    def __init__(
        self, dims: Mapping[str, int], *, hidden_features: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in dims.items()}
        )
        self.kinds = nn.Parameter(SMALL * torch.randn(len(dims), hidden_features))
        self.class_token = nn.Parameter(SMALL * torch.randn(hidden_features))
        self.blocks = ModuleList(
            TransformerBlock(hidden_features, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_features)

    def forward(self, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return the class token after the last block."""
        tokens = [layer(inputs[name]) for name, layer in self.projections.items()]
        tokens = [token + kind for token, kind in zip(tokens, self.kinds, strict=True)]
        first = self.class_token.expand(mask.shape[0], -1)
        sequence = torch.stack([first.to(tokens[0].dtype), *tokens], dim=1)
        valid = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        for block in self.blocks:
            sequence = block(sequence, valid)
        fused: Tensor = self.norm(sequence[:, 0])
        return fused


class LateTransformerHead(BaselineHead):
    r"""Mix one token per modality with a Transformer, as SimBaMM does.

    .. math:: x_m = P_m f_m + k_m, \qquad
              h = \mathrm{Transformer}([x_{cls}; x_1; \dots; x_M])_{cls}, \qquad z = W h + b

    - Kept: a linear map of each modality to a common width, one token a modality, a Transformer
      encoder over them, and masking for what is missing.
    - Replaced: the encoders are the caller's; training may hide modalities, so that masked
      attention is trained on complete data, too.
    - Unverified: how the authors pool (here a class token), depth, width, an embedding that says
      which modality a token is of, and whether blocks are pre-norm. Read in the abstract and in
      summaries; its tables were not reproduced.
    - Missing rule: the token of a missing modality is no key of any attention. With everything
      missing the class token is alone.

    Other arguments, shapes, errors: :class:`BaselineHead`; ``fused`` is the class token.

    Args:
        hidden_features: Width F of the tokens, divisible by four.
        num_layers: Number of blocks.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import LateTransformerHead
        >>> head = LateTransformerHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)}).fused.shape
        torch.Size([5, 128])

    Reference:
        Rheude et al., "Fusion or Confusion? Multimodal Complexity Is Not All You Need",
        https://arxiv.org/abs/2512.22991.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 128,
        num_layers: int = 2,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__(dims, num_classes, modality_dropout=modality_dropout)
        check_positive(num_layers, "num_layers")
        self.transformer = ModalityTransformer(
            self.dims, hidden_features=hidden_features, num_layers=num_layers, dropout=dropout
        )
        self.classifier = nn.Linear(hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Mix the tokens of the modalities that are there."""
        fused = self.transformer(inputs, self.hide_some(mask))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))
