"""What heads return: the least that every head does, and what a DRF head adds."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class HeadOutput(NamedTuple):
    """The head contract: class scores, a fused vector for other tasks, a label-free loss.

    Attributes:
        logits: Class scores, shape ``(B, C)``.
        fused: Fused representation, shape ``(B, F)``.
        aux_loss: Sum of the training terms that need no labels, shape ``()``.
        extras: Further tensors by name, which the head's own loss or its users read.

    Example:
        >>> import torch
        >>> from robustfusion import HeadOutput
        >>> class TextHead(torch.nn.Module):  # a head of your own
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 3)
        ...
        ...     def forward(self, features, available):
        ...         fused = torch.where(available["text"][:, None], features["text"], 0)
        ...         return HeadOutput(self.layer(fused), fused, fused.new_zeros(()))
        ...
        ...     def loss(self, output, labels):
        ...         return torch.nn.functional.cross_entropy(output.logits, labels)
        >>> head = TextHead()
        >>> out = head({"text": torch.randn(5, 4)}, {"text": torch.arange(5) > 1})
        >>> out.logits.shape, out.aux_loss.item()
        (torch.Size([5, 3]), 0.0)
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    # A plain dict, since torch.export, pickle and deepcopy refuse a read-only mapping.
    extras: Mapping[str, Tensor] = {}


class DRFOutput(NamedTuple):
    """What a DRF head returns.

    Attributes:
        logits: (B, C).
        fused: (B, F), the weighted sum of the candidates, for any other task head.
        features: (B, D_m) for each modality, what the head was given, zero where nothing was.
        candidate_logits: (B, K, C), the prediction from each candidate alone.
        weights: (B, K), in the order of ``head.candidates``; 0 for what is not available.
        log_quality: (B,) for each modality, −inf where it is not available.
        recovered: ``recovered[target][source]``, (B, D_target); empty where nothing is.
        aux_loss: Scalar, the loss terms that need no labels.
        usable: (B, K) bool, True where a candidate exists for the sample.
        member_logits: (B, K, 2, C), what fused features and what fused decisions say, which
            ``head.loss`` supervises one by one and ``candidate_logits`` averages; ``None`` for a
            head without.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> available = {"image": torch.arange(5) > 0, "text": torch.ones(5, dtype=torch.bool)}
        >>> out = head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)}, available)
        >>> head.candidates, out.usable[0]
        ((('image', 'text'), ('image',), ('text',)), tensor([False, False,  True]))
        >>> out.weights[0], out.log_quality["image"][0]
        (tensor([0., 0., 1.]), tensor(-inf))

    Reference:
        The qualities of (10) and (11), the expanded samples of (12) and the terms of (16) without
        labels, https://arxiv.org/abs/2511.18751.
    """

    logits: Tensor
    fused: Tensor
    features: dict[str, Tensor]
    candidate_logits: Tensor
    weights: Tensor
    log_quality: dict[str, Tensor]
    recovered: dict[str, dict[str, Tensor]]
    aux_loss: Tensor
    usable: Tensor
    member_logits: Tensor | None = None
