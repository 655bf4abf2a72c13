"""Missing-pattern prompts: a small Transformer with prompts that say what is missing."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reproductions._tokens import TokenHead, projections
from reproductions._transformer import INITIAL_STD, TransformerBlock
from robustfusion._modules import ModuleList
from robustfusion._validation import check_between
from robustfusion.baselines.head import drop_modalities, zero_loss
from robustfusion.output import HeadOutput


class MissingPromptsHead(TokenHead):
    r"""Prepend the prompt of the sample's missing pattern to the tokens of every layer.

    .. math:: X_i = \mathrm{Block}_i([\,P^{(i)}_a;\, x_{cls};\, x_1;\, \dots;\, x_M\,]),
              \qquad z = W\, x_{cls} + b

    with :math:`a` the pattern of availability, one of :math:`2^M`.

    - Kept: input-level prompts per missing pattern, fresh ones at each layer.
    - Replaced: the pre-trained vision-language transformer becomes a small one over the projected
      features or tokens, trained with the prompts; the outputs of a block at its prompts are
      dropped, where the authors' code passes them on to the next block; training hides modalities,
      so that every prompt is trained on complete data, too.
    - Unverified: attention-level prompts are not built.
    - Missing rule: tokens of a missing modality are not among the keys of any attention, and the
      prompt says so; one prompt is for samples with everything missing.

    Other arguments, shapes and errors are those of :class:`~reproductions._tokens.TokenHead`;
    ``fused`` is the class token.

    Args:
        dims: Width of each modality, ``{name: D_m}``; at most eight modalities.
        hidden_features: Width F of the transformer, divisible by four.
        num_layers: Number of blocks.
        prompt_length: Prompt tokens per pattern and layer.
        modality_dropout: Probability of hiding a modality of a training sample; one always stays.

    Example:
        >>> import torch
        >>> from reproductions import MissingPromptsHead
        >>> head = MissingPromptsHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 7, 3), "image": torch.randn(5, 4)}).logits.shape
        torch.Size([5, 2])

    Reference:
        Lee et al., "Multimodal Prompting with Missing Modalities for Visual Recognition",
        CVPR 2023.
    """

    powers: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 128,
        num_layers: int = 2,
        prompt_length: int = 4,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__(dims, num_classes, min_modalities=1)
        check_between(modality_dropout, 0.0, 1.0, "modality_dropout")
        if len(self.dims) > 8:
            raise ValueError(f"dims must name at most 8 modalities, got {len(self.dims)}")
        self.modality_dropout = modality_dropout
        self.projections = projections(self.dims, hidden_features)
        self.embeddings = nn.Parameter(INITIAL_STD * torch.randn(len(self.dims), hidden_features))
        self.class_token = nn.Parameter(INITIAL_STD * torch.randn(hidden_features))
        shape = (2 ** len(self.dims), num_layers, prompt_length, hidden_features)
        self.prompts = nn.Parameter(INITIAL_STD * torch.randn(shape))
        self.blocks = ModuleList(
            TransformerBlock(hidden_features, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_features)
        self.classifier = nn.Linear(hidden_features, num_classes)
        self.register_buffer("powers", 2 ** torch.arange(len(self.dims)))

    def pattern(self, available: Tensor) -> Tensor:
        """Return the index of a pattern, (B,): bit ``m`` is set if modality ``m`` is available."""
        return (available * self.powers).sum(dim=1)

    def fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> HeadOutput:
        """Run the available tokens, prompted with the pattern of the missing ones."""
        if self.training:
            mask = drop_modalities(mask, self.modality_dropout)
        parts = [self.class_token.expand(mask.shape[0], 1, -1)]
        keep = [mask.new_ones(mask.shape[0], 1)]
        for index, (name, layer) in enumerate(self.projections.items()):
            parts.append(layer(tokens[name]) + self.embeddings[index])
            keep.append(valid[name] & mask[:, index, None])
        sequence, is_key = torch.cat(parts, dim=1), torch.cat(keep, dim=1)
        prompts = self.prompts[self.pattern(mask)]
        length = prompts.shape[2]
        is_key = torch.cat([mask.new_ones(mask.shape[0], length), is_key], dim=1)
        for depth, block in enumerate(self.blocks):
            prompted = torch.cat([prompts[:, depth], sequence], dim=1)
            sequence = block(prompted, is_key)[:, length:]
        fused: Tensor = self.norm(sequence[:, 0])
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))
