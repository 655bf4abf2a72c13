"""CLMLF-style: a fusion transformer over all tokens, with two contrastive losses."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions._pooling import AttentionPool, masked_token_mean
from reproductions._tokens import TokenHead, pick_text, projections
from reproductions._transformer import INITIAL_STD, TransformerBlock
from robustfusion._modules import ModuleDict, ModuleList, mlp
from robustfusion._validation import check_positive
from robustfusion.baselines.head import zero_loss
from robustfusion.functional import at_least_float32, masked_mean
from robustfusion.output import HeadOutput

TEMPERATURE = 0.07  # The authors' value.
TOKEN_DROPOUT = 0.2  # Our choice, in place of their augmentation.


def data_contrast(first: Tensor, second: Tensor, keep: Tensor) -> Tensor:
    """Compute InfoNCE of a sample and its other version; (B, H), (B, H), (B,) -> ()."""
    with torch.autocast(first.device.type, enabled=False):
        one = F.normalize(at_least_float32(first), dim=1)
        other = F.normalize(at_least_float32(second), dim=1)
        scores = (one @ other.T / TEMPERATURE).where(keep, torch.finfo(one.dtype).min)
        own = scores.diagonal()
        return masked_mean(torch.logsumexp(scores, dim=1) - own, keep)


def label_contrast(vectors: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Pull samples of one label together and push others apart; (B, H), (B,), (B,) -> ().

    This is the mean over the samples that have another sample of the same label in the batch.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(at_least_float32(vectors), dim=1)
        scores = unit @ unit.T / TEMPERATURE
        other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        candidate = other & keep & keep.unsqueeze(1)
        partner = candidate & (labels == labels.unsqueeze(1))
        filled = scores.where(candidate, torch.finfo(scores.dtype).min)
        log_share = filled - torch.logsumexp(filled, dim=1, keepdim=True)
        partners = partner.sum(dim=1)
        losses = -log_share.where(partner, 0.0).sum(dim=1) / partners.clamp_min(1)
        return masked_mean(losses, partners > 0)


class CLMLFHead(TokenHead):
    r"""Contrastive learning and multi-layer fusion over the tokens of all modalities.

    .. math:: H = \mathrm{Enc}([\,\mathrm{GELU}(W_t T);\; \mathrm{Enc}_v(\mathrm{GELU}(W_v V))\,]),
              \quad r = \textstyle\sum_i \alpha_i H_i, \quad
              L = \mathrm{CE} + \lambda_d L_{data} + \lambda_l L_{label}

    with :func:`data_contrast` between a sample and its augmentation and :func:`label_contrast`
    within the batch.

    - Kept: image encoder of two layers over pooled and patch tokens, fusion encoder of three,
      no positions in the fusion, attention pooling, temperature 0.07, both weights 1.
    - Replaced: back-translation and image augmentation become dropping tokens (never all of a
      modality) in a second pass with its own dropout; vectors are normalized and a sample
      is not its own partner; blocks are pre-norm and, by default, 128 wide where the authors
      have 768.
    - Unverified: the schedule that freezes the text encoder for twenty epochs is the caller's.
    - Missing rule: the tokens of a missing modality are not among the keys; one learned token per
      modality takes their place, so that the input says what is missing. Samples with everything
      missing are in neither contrast.

    Other arguments, shapes and errors are those of :class:`~reproductions._tokens.TokenHead`;
    ``aux_loss`` is the weighted contrast of the data.

    Args:
        dims: Width of each modality, ``{name: D_m}``; "text", else the first, is the text.
        hidden_features: Width F of the transformer, divisible by four.
        num_layers: Layers of the fusion encoder.
        data_weight: The :math:`\lambda_d` above; 0 saves the second pass.
        label_weight: The :math:`\lambda_l` above.

    Shape:
        - ``extras["available"]``: (B, M) bool

    Example:
        >>> import torch
        >>> from reproductions import CLMLFHead
        >>> head = CLMLFHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 7, 3), "image": torch.randn(5, 9, 4)}).fused.shape
        torch.Size([5, 128])

    Reference:
        Li et al., "CLMLF: A Contrastive Learning and Multi-Layer Fusion Method for Multimodal
        Sentiment Detection", Findings of NAACL 2022.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 128,
        num_layers: int = 3,
        dropout: float = 0.1,
        data_weight: float = 1.0,
        label_weight: float = 1.0,
    ) -> None:
        super().__init__(dims, num_classes)
        check_positive(num_layers, "num_layers")
        self.data_weight = data_weight
        self.label_weight = label_weight
        width = hidden_features
        text = pick_text(self.dims, None)
        self.projections = projections(self.dims, width)
        self.encoders = ModuleDict(
            {
                name: ModuleList(TransformerBlock(width, dropout=dropout) for _ in range(2))
                for name in self.dims
                if name != text
            }
        )
        self.missing = nn.Parameter(INITIAL_STD * torch.randn(len(self.dims), width))
        self.fusion = ModuleList(
            TransformerBlock(width, dropout=dropout) for _ in range(num_layers)
        )
        self.pool = AttentionPool(width)
        self.contrast = mlp(width, width, width) if data_weight > 0 else None
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, num_classes),
        )

    def fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> HeadOutput:
        """Fuse all tokens; in training mode also an augmented version for the contrast."""
        fused = self._fuse(tokens, valid, mask)
        logits: Tensor = self.classifier(fused)
        aux_loss = zero_loss(logits)
        if self.training and self.contrast is not None:
            fewer = {name: _drop_tokens(tokens_valid) for name, tokens_valid in valid.items()}
            augmented = self._fuse(tokens, fewer, mask)
            aux_loss = self.data_weight * data_contrast(
                self.contrast(fused), self.contrast(augmented), mask.any(dim=1)
            )
        return HeadOutput(logits, fused, aux_loss, {"available": mask})

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Return the cross-entropy plus both contrasts."""
        total = super().loss(output, labels)  # This comes first, because it checks the labels.
        contrast = label_contrast(output.fused, labels, output.extras["available"].any(dim=1))
        return total + self.label_weight * contrast

    def _fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> Tensor:
        parts, keep = [], []
        for index, (name, layer) in enumerate(self.projections.items()):
            sequence, is_key = F.gelu(layer(tokens[name])), valid[name]
            if name in self.encoders:
                pooled = masked_token_mean(sequence, is_key).unsqueeze(1)
                sequence = torch.cat([pooled.to(sequence.dtype), sequence], dim=1)
                is_key = torch.cat([mask[:, index, None], is_key], dim=1)
                for block in self.encoders[name]:
                    sequence = block(sequence, is_key)
            parts += [sequence, self.missing[index].expand(mask.shape[0], 1, -1)]
            keep += [is_key, ~mask[:, index, None]]
        sequence, is_key = torch.cat(parts, dim=1), torch.cat(keep, dim=1)
        for block in self.fusion:
            sequence = block(sequence, is_key)
        fused: Tensor = self.pool(sequence, is_key)
        return fused


def _drop_tokens(valid: Tensor) -> Tensor:
    score = torch.rand(valid.shape, device=valid.device).where(valid, -1.0)
    largest = score == score.amax(dim=1, keepdim=True)
    return valid & ((score >= TOKEN_DROPOUT) | largest)
