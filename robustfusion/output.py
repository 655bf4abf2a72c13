"""The outputs of heads: the fields that all of them share, and those of a DRF head."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class HeadOutput(NamedTuple):
    """The output of any head: class scores, a fused vector for other tasks, a label-free loss.

    Attributes:
        logits: (B, C), class scores.
        fused: (B, F), the fused representation.
        aux_loss: (), the sum of the training terms that need no labels.
        extras: Tensors that the head's own ``loss`` needs, by name.

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
    extras: Mapping[str, Tensor] = {}


class DRFOutput(NamedTuple):
    """The output of a DRF head; the first three fields are those of :class:`HeadOutput`.

    Attributes:
        logits: (B, C), class scores.
        fused: (B, F), the weighted sum of the candidates' vectors, for any other task.
        aux_loss: (), the sum of the training terms that need no labels.
        features: (B, D_m) for each modality, the head's input, zero where nothing was available.
        candidate_logits: (B, K, C), the prediction from each candidate.
        weights: (B, K), in the order of ``head.candidates``; 0 for an unavailable candidate.
        trust: (B,) for each modality, the weight with which it entered the prediction:
            the weight of each candidate, divided equally among the modalities it trusts. It sums
            to 1 over the modalities for normalized weights.
        log_quality: (B,) for each modality, −inf where it is not available.
        recovered: ``recovered[target][source]``, (B, D_target), in the units of the features;
            empty if the head recovers nothing.
        extras: Tensors that the head's own ``loss`` needs, by name.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> features = {"image": torch.randn(5, 8), "text": torch.randn(5, 4)}
        >>> out = head(features, {"image": torch.arange(5) > 0})  # the first sample has no image
        >>> list(head.candidates), out.weights[0]
        ([('image', 'text'), ('image',), ('text',)], tensor([0., 0., 1.]))
        >>> out.trust["text"][0], out.log_quality["image"][0]
        (tensor(1.), tensor(-inf))

    Reference:
        The qualities of (10) and (11), the expanded samples of (12) and the terms of (16) without
        labels, https://arxiv.org/abs/2511.18751.
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    features: dict[str, Tensor]
    candidate_logits: Tensor
    weights: Tensor
    trust: dict[str, Tensor]
    log_quality: dict[str, Tensor]
    recovered: dict[str, dict[str, Tensor]]
    extras: Mapping[str, Tensor] = {}
