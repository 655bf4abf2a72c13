"""What the labels of similar training samples say, beside what a head predicts."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._inputs import make_safe
from robustfusion._modules import ModuleDict, arguments_of
from robustfusion._validation import check_labels, check_positive
from robustfusion.candidates import pattern_temperature, trusted_by
from robustfusion.drf import DRFHead
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import at_least_float32, masked_softmax
from robustfusion.output import DRFOutput
from robustfusion.quality import QualityEstimator

_SHARPNESS = 20.0  # of a cosine: of two rows, one 0.05 nearer counts e times as much
_SURE = 0.7  # of a vote; the rest is the share of each class, so that few rows cannot rule one out


class VotingHead(nn.Module):
    r"""Let the nearest training samples vote on what a trained head predicts.

    Each modality that a sample has looks up the ``neighbors`` training rows most similar to it,
    by the cosine :math:`c_j` of standardized features, and votes by their labels; a vote counts as
    far as the head trusts the modality:

    .. math::
        v_m = 0.7 \sum_j \operatorname{softmax}_j(20\, c_j)\, \mathbb 1[y_j] + 0.3\, \pi, \qquad
        \hat y = \log p + \omega \sum_m a_m \log v_m, \qquad
        a_m = \sum_{S \ni m} w_S / |S|

    with the share :math:`\pi` of each class (one sample of each added), the head's probabilities
    :math:`p` and its weights :math:`w_S`. A network forgets single samples; where classes are hard
    to tell apart, those that look alike are evidence of another kind.

    Nothing changes in training, nor until :meth:`fit` was given the training samples, or
    :func:`~robustfusion.calibrate` was, as ``voters``. Train the encoders further, and fit again.

    Args:
        head: The head to train.
        capacity: Number of training rows kept for each modality; of more an even choice.
        neighbors: How many vote.
        weight: What the votes count, :math:`\omega`.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - Output: :class:`~robustfusion.DRFOutput`, with ``logits`` of head and votes; all else is
          the head's

    Raises:
        ValueError: If a size is not positive, or a modality or label does not fit.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, VotingHead
        >>> features = {"image": torch.randn(64, 8), "text": torch.randn(64, 4)}
        >>> labels = torch.randint(3, (64,))
        >>> head = VotingHead(DRFHead({"image": 8, "text": 4}, num_classes=3))
        >>> head.loss(head(features), labels).backward()  # train as ever, then
        >>> head.fit(features, labels).eval()(features).logits.shape
        torch.Size([64, 3])

    Reference:
        Neighbors beside a network: Papernot and McDaniel, "Deep k-Nearest Neighbors", 2018,
        https://arxiv.org/abs/1803.04765.
    """

    labels: Tensor
    prior: Tensor
    temperature: Tensor

    def __init__(
        self, head: DRFHead, *, capacity: int = 4096, neighbors: int = 30, weight: float = 0.5
    ) -> None:
        super().__init__()
        check_positive(capacity, "capacity")
        check_positive(neighbors, "neighbors")
        self.head, self.dims, self.candidates = head, head.dims, head.candidates
        self.capacity = capacity
        self.neighbors = neighbors
        self.weight = weight
        # Directions of standardized features, in a buffer of fixed size.
        self.rows = ModuleDict({m: FeatureQueue(dim, capacity) for m, dim in self.dims.items()})
        self.register_buffer("labels", torch.zeros(len(self.dims), capacity, dtype=torch.long))
        self.register_buffer("prior", torch.full((head.num_classes,), 1 / head.num_classes))
        self.register_buffer("temperature", torch.ones_like(head.temperature))

    @property
    def estimators(self) -> ModuleDict[QualityEstimator]:
        """The head's."""
        return self.head.estimators

    def p_values(self, output: DRFOutput) -> dict[str, Tensor]:
        """Return the head's p-values."""
        return self.head.p_values(output)

    def loss(self, output: DRFOutput, labels: Tensor) -> Tensor:
        """Return the head's training objective."""
        return self.head.loss(output, labels)

    @torch.no_grad()
    def fit(
        self,
        features: Mapping[str, Tensor],
        labels: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Take these samples, as the trained encoders see them, as voters."""
        x, present = make_safe(features, available, self.dims)
        check_labels(labels, len(next(iter(x.values()))), self.head.num_classes)
        for place, (name, queue) in enumerate(self.rows.items()):
            there = present[name].nonzero().squeeze(1)
            even = torch.linspace(0, len(there) - 1, min(len(there), self.capacity))
            chosen = there[even.round().long()]
            queue.reset()
            queue.enqueue(self._direction(name, x[name][chosen]))
            self.labels[place, : len(chosen)] = labels[chosen]
        share = 1 + labels.bincount(minlength=len(self.prior)).to(self.prior)
        self.prior.copy_(share / share.sum())
        self.temperature.fill_(1)
        return self

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> DRFOutput:
        """Predict; in evaluation mode with the votes."""
        output: DRFOutput = self.head(features, available)
        if self.training:
            return output
        here = torch.stack([output.log_quality[m] > -torch.inf for m in self.dims], dim=1)
        every = trusted_by(len(self.dims), here.device)
        members = (every & here[:, None]).to(output.weights.dtype)  # (B, K, M)
        trust = output.weights[:, None] @ (members / members.sum(-1, keepdim=True).clamp_min(1))
        voted = zip(self.dims, self.labels, strict=True)
        votes = torch.stack([self._vote(m, output.features[m], known) for m, known in voted], 1)
        own = at_least_float32(output.logits).log_softmax(-1)
        logits = own + self.weight * (trust.to(votes.dtype) @ votes).squeeze(1)
        return output._replace(logits=logits / pattern_temperature(self.temperature, here, every))

    def _direction(self, name: str, features: Tensor) -> Tensor:
        return F.normalize(self.head.queues[name].standardize(features), dim=1)

    def _vote(self, name: str, features: Tensor, known: Tensor) -> Tensor:
        """The log of what the labels of the nearest rows say, (B, D) -> (B, C)."""
        queue = self.rows[name]
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            rows = at_least_float32(queue.storage)
            cosine = self._direction(name, features).to(rows.dtype) @ rows.T
            near = cosine.where(queue.valid, -torch.inf).topk(min(self.neighbors, self.capacity))
            share = masked_softmax(_SHARPNESS * near.values, near.values > -torch.inf)
            vote = share.new_zeros(len(share), len(self.prior))
            vote = vote.scatter_add(1, known[near.indices], share)
            return (_SURE * vote + (1 - _SURE) * self.prior).log()

    extra_repr = arguments_of
