"""HSAN-style: hierarchical attention over the text, guided by the image."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reproductions._pooling import AttentionPool
from reproductions._tokens import TokenHead, masked_tokens, pick_text, projections
from robustfusion._modules import ModuleDict, mlp
from robustfusion._validation import check_positive
from robustfusion.baselines.head import zero_loss
from robustfusion.output import HeadOutput


class HSANHead(TokenHead):
    r"""Hierarchical semantic attention: words, then sentences, attended to given a context.

    .. math:: \alpha_i = \mathrm{softmax}_i(q^\top \tanh(W t_i + U c + b)), \quad
              t = \textstyle\sum_i \alpha_i t_i, \quad z = \mathrm{MLP}([t; c])

    The context :math:`c` is an attention pool of each other modality's tokens and one layer.

    - Kept: word-level and sentence-level attention with a visual context; concatenation.
    - Replaced: the image caption that gives the context in the paper becomes an attention pool
      of the image tokens (pass caption tokens as a modality to have it back); the recurrent text
      encoder becomes the injected one. Without ``segment_ids`` the text is one sentence.
    - Unverified: the equations, read from secondary descriptions; no code was ever published.
    - Missing rule: a learned token stands for the pooled text, and one for each other modality.

    Other arguments, shapes and errors are those of :class:`~reproductions._tokens.TokenHead`.

    Args:
        text: The modality to attend over; by default "text", else the first.
        max_segments: Most sentences per sample, if ``segment_ids`` are given.

    Shape:
        - ``segment_ids``: (B, L) int64, the sentence of each text token, or None; those beyond
          ``max_segments`` join the last

    Example:
        >>> import torch
        >>> from reproductions import HSANHead
        >>> head = HSANHead({"text": 3, "image": 4}, num_classes=2)
        >>> tokens = {"text": torch.randn(5, 7, 3), "image": torch.randn(5, 9, 4)}
        >>> head(tokens, segment_ids=torch.arange(7).expand(5, 7) // 4).logits.shape
        torch.Size([5, 2])

    Reference:
        Xu, "Analyzing Multimodal Public Sentiment Based on Hierarchical Semantic Attentional
        Network", ISI 2017.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        text: str | None = None,
        max_segments: int = 8,
        hidden_features: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_positive(max_segments, "max_segments")
        self.text = pick_text(self.dims, text)
        self.others = tuple(name for name in self.dims if name != self.text)
        self.max_segments = max_segments
        width = hidden_features
        self.projections = projections(self.dims, width)
        self.missing = nn.Parameter(torch.zeros(len(self.dims), width))
        self.context_pools = ModuleDict({name: AttentionPool(width) for name in self.others})
        self.context = mlp(len(self.others) * width, width, activate_last=True)
        self.word_pool = AttentionPool(width, contextual=True)
        self.sentence_pool = AttentionPool(width, contextual=True)
        self.network = mlp(2 * width, width, dropout=dropout, activate_last=True)
        self.classifier = nn.Linear(width, num_classes)

    def forward(
        self,
        features: Mapping[str, Tensor],
        available: Mapping[str, Tensor] | None = None,
        *,
        token_mask: Mapping[str, Tensor] | None = None,
        segment_ids: Tensor | None = None,
    ) -> HeadOutput:
        """Attend over the text given the context of the other modalities."""
        tokens, valid, mask = masked_tokens(features, available, token_mask, self.dims)
        return self.fuse(tokens, valid, mask, segment_ids)

    def fuse(
        self,
        tokens: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        mask: Tensor,
        segment_ids: Tensor | None = None,
    ) -> HeadOutput:
        """Pool the other modalities, then the words and sentences of the text given these."""
        positions = {name: index for index, name in enumerate(self.dims)}
        pooled = []
        for name, pool in self.context_pools.items():
            vector = pool(self.projections[name](tokens[name]), valid[name])
            is_available = mask[:, positions[name], None]
            pooled.append(torch.where(is_available, vector, self.missing[positions[name]]))
        context: Tensor = self.context(torch.cat(pooled, dim=1))

        words = self.projections[self.text](tokens[self.text]).unsqueeze(1)
        segments = self._segments(valid[self.text], segment_ids)
        sentences = self.word_pool(words, segments, context.unsqueeze(1))
        document = self.sentence_pool(sentences, segments.any(dim=-1), context)
        is_available = mask[:, positions[self.text], None]
        document = torch.where(is_available, document, self.missing[positions[self.text]])

        fused: Tensor = self.network(torch.cat([document, context], dim=1))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))

    def _segments(self, valid: Tensor, segment_ids: Tensor | None) -> Tensor:
        """Say which words belong to which sentence, (B, S, L); one sentence without ids."""
        if segment_ids is None:
            return valid.unsqueeze(1)
        if segment_ids.shape != valid.shape:
            raise ValueError(
                f"segment_ids must have shape {tuple(valid.shape)}, got {tuple(segment_ids.shape)}"
            )
        if segment_ids.dtype != torch.long:
            raise TypeError(f"segment_ids must have dtype torch.long, got {segment_ids.dtype}")
        sentence = segment_ids.clamp(0, self.max_segments - 1).unsqueeze(1)
        numbers = torch.arange(self.max_segments, device=valid.device).unsqueeze(-1)
        return valid.unsqueeze(1) & (sentence == numbers)
