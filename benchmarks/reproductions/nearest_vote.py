"""The prediction of a network mixed with the labels of the nearest training samples."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions._neighbors import (
    join_rows,
    nearest_neighbor_mean,
    shared_cosine,
    split_rows,
)
from robustfusion._validation import check_between, check_positive
from robustfusion.baselines.concatenation import ConcatenationHead
from robustfusion.baselines.head import BaselineHead, cross_entropy
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput

CAPACITY = 4096  # Our choice: more than the training posts of MVSA-Single.


class NearestVoteHead(BaselineHead):
    r"""Mix the labels of the nearest samples with a network trained with modality dropout.

    .. math:: p = (1 - \lambda)\, \mathrm{softmax}(z) + \lambda\, v, \qquad
              v = \tfrac1k \textstyle\sum_{j \in N_k} \mathrm{onehot}(y_j)

    with :math:`z` of :class:`~robustfusion.baselines.ConcatenationHead` and :math:`N_k` the
    :math:`k` stored training samples that are nearest by cosine, averaged over the modalities
    that both have.

    - Kept: the vote of the nearest labels, from the available modalities.
    - Replaced: the neighbors come from a queue of the last 4,096 training samples, of several
      epochs where the training set is smaller, and all count the same; the vote enters in
      evaluation mode only, since in training a sample would find itself.
    - Unverified: it follows no single paper; the vote and its share of 0.3 are this library's own.
    - Missing rule: a missing modality does not enter the similarity, and the network has a
      learned token for it. Without a usable neighbor the prediction is the network's.

    ``loss`` stores the samples and their labels in training mode. In a distributed run each rank
    stores its own, so wrap the model with ``forward_sync_buffers=False``.

    Other arguments, shapes and errors are those of
    :class:`~robustfusion.baselines.BaselineHead`. Modality dropout concerns the network only;
    ``logits`` are the network's in training mode and log p in evaluation mode.

    Args:
        neighbors: The :math:`k` above.
        vote_weight: The :math:`\lambda` above.

    Shape:
        - ``extras["vote"]``: (B, C), shares of the neighbors' labels, zero without any neighbor
        - ``extras["rows"]``: (B, D), what ``loss`` stores in training mode

    Example:
        >>> import torch
        >>> from reproductions import NearestVoteHead
        >>> head = NearestVoteHead({"text": 3, "image": 4}, num_classes=2, neighbors=1)
        >>> features = {"text": torch.randn(5, 3), "image": torch.randn(5, 4)}
        >>> labels = torch.tensor([0, 1, 1, 0, 1])
        >>> loss = head.loss(head(features), labels)
        >>> head.eval()(features).extras["vote"].argmax(1)
        tensor([0, 1, 1, 0, 1])

    Reference:
        Neighbors next to a network: Papernot and McDaniel, "Deep k-Nearest Neighbors", 2018,
        https://arxiv.org/abs/1803.04765.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        neighbors: int = 30,
        vote_weight: float = 0.3,
        hidden_features: int = 256,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
    ) -> None:
        super().__init__(dims, num_classes, modality_dropout=modality_dropout)
        check_positive(neighbors, "neighbors")
        check_between(vote_weight, 0.0, 1.0, "vote_weight")
        self.neighbors = neighbors
        self.vote_weight = vote_weight
        self.network = ConcatenationHead(
            self.dims,
            num_classes,
            hidden_features=hidden_features,
            dropout=dropout,
            modality_dropout=modality_dropout,
        )
        # A stored row has the features, flags of the available modalities, and the label.
        self.queue = FeatureQueue(sum(self.dims.values()) + len(self.dims) + 1, CAPACITY)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Predict; evaluation mode includes the vote of the nearest labels."""
        logits, fused, aux_loss, _ = self.network.fuse(inputs, mask)
        rows = at_least_float32(join_rows(inputs, mask)).detach()
        if self.training:
            extras = {"vote": torch.zeros_like(logits), "rows": rows}
            return HeadOutput(logits, fused, aux_loss, extras)
        with torch.no_grad(), torch.autocast(mask.device.type, enabled=False):
            vote = self._vote(inputs, mask)
        extras = {"vote": vote, "rows": rows}
        return HeadOutput(self._mix(logits, vote), fused, aux_loss, extras)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Return the cross-entropy; training mode stores the samples and their labels."""
        total = cross_entropy(output.logits, labels)
        if self.training:
            rows = output.extras["rows"]
            known = rows[:, -len(self.dims) :].any(dim=1)
            label = labels.unsqueeze(1).to(rows.dtype)
            self.queue.enqueue(torch.cat([rows, label], dim=1), known)
        return total

    def _vote(self, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        stored, flags = split_rows(self.queue, self.dims)
        similarity, shared = shared_cosine(inputs, mask, stored, flags)
        labels = F.one_hot(self.queue.storage[:, -1].long(), self.num_classes)
        return nearest_neighbor_mean(
            similarity, labels.to(similarity.dtype), shared, self.neighbors
        )

    def _mix(self, logits: Tensor, vote: Tensor) -> Tensor:
        log_probability = at_least_float32(logits).log_softmax(dim=-1)
        mixed = (1 - self.vote_weight) * log_probability.exp() + self.vote_weight * vote
        voted = vote.sum(dim=-1, keepdim=True) > 0
        smallest = torch.finfo(mixed.dtype).tiny
        return torch.where(voted, mixed.clamp_min(smallest).log(), log_probability)
