"""Combine the prediction of a head with the labels of similar training samples."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._identity import register_identity
from robustfusion._inputs import make_safe
from robustfusion._modules import ModuleDict, arguments_of
from robustfusion._outputs import read_output
from robustfusion._task_head import TaskModule, loss_options
from robustfusion._validation import check_dims, check_positive
from robustfusion.candidates import Candidates
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import at_least_float32, masked_softmax
from robustfusion.standardize import Standardize
from robustfusion.tasks import IGNORED, check_target

# A cosine is multiplied by this before the softmax over neighbors: a row that is 0.05 more similar
# weighs e times as much. Chosen in sketches on the validation folds of MVSA.
_INVERSE_TEMPERATURE = 20.0
# Share of a vote that comes from the neighbors. The rest is the share of each class, so that a few
# rows cannot rule out a class.
_VOTE_SHARE = 0.7


class NeighborVoteHead(TaskModule):
    r"""Let the most similar training samples vote on what any trained head predicts.

    For each modality of a sample, the ``neighbors`` most similar training rows vote by their
    labels. Similarity is the cosine :math:`c_j` of standardized features. A vote counts as much as
    the head trusts the modality (equally, if the output of the head has no ``trust``). A network
    forgets single samples, so the labels of similar ones are additional evidence where classes
    overlap.

    Nothing changes in training mode, nor before :meth:`fit`. Call :meth:`fit` again after training
    the encoders further, and :func:`~robustfusion.calibrate` after it.

    Args:
        head: The head to train. It has ``dims`` and ``num_classes``, and ``task`` unless it
            predicts classes, takes features and availability, and returns an output with
            ``logits``.
        capacity: Number of training rows kept for each modality, an evenly spaced selection if
            there are more.
        neighbors: Number of rows that vote.
        weight: Weight of the votes, :math:`\omega`.

    Shape:
        - ``features[name]``: (B, D_m); ``available[name]``: (B,) bool; ``target``: see
          :mod:`robustfusion.tasks`
        - Output: that of the head, with ``logits`` of head and votes

    Raises:
        TypeError: If ``head`` has no ``dims`` or ``num_classes``.
        ValueError: If a size is not positive, or a modality or label does not fit.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead, NeighborVoteHead
        >>> features = {"image": torch.randn(64, 8), "text": torch.randn(64, 4)}
        >>> labels = torch.randint(3, (64,))
        >>> head = NeighborVoteHead(DRFHead({"image": 8, "text": 4}, num_classes=3))
        >>> head.loss(head(features), labels).backward()  # train as before, then
        >>> head.fit(features, labels).eval()(features).logits.shape
        torch.Size([64, 3])

    Note:
        .. math::
            v_m = 0.7 \sum_j \operatorname{softmax}_j(20\, c_j)\, \mathbb 1[y_j] + 0.3\, \pi,
            \qquad \hat y = \log p + \omega \sum_m a_m \log v_m

        with the share :math:`\pi` of each class (counting one more sample of each), the head's
        probabilities :math:`p` and its trust :math:`a_m`.

        For several labels the same holds for each of them, with the two values of a label as
        classes. Numbers :math:`y` are averaged with the same weights,

        .. math::
            v_m = 0.7 \sum_j \operatorname{softmax}_j(20\, c_j)\, y_j + 0.3\, \bar y, \qquad
            \hat y = \frac{p + \omega \sum_m a_m v_m}{1 + \omega \sum_m a_m}

    Reference:
        Neighbors and a network: Papernot and McDaniel, "Deep k-Nearest Neighbors", 2018,
        https://arxiv.org/abs/1803.04765.
    """

    labels: Tensor
    targets: Tensor
    class_prior: Tensor
    temperature: Tensor
    interval_width: Tensor

    def __init__(
        self, head: nn.Module, *, capacity: int = 4096, neighbors: int = 30, weight: float = 0.5
    ) -> None:
        dims, num_classes = (getattr(head, name, None) for name in ("dims", "num_classes"))
        if not isinstance(dims, Mapping) or not isinstance(num_classes, int):
            raise TypeError(
                "head must be a head with dims and num_classes, such as DRFHead, got "
                f"{type(head).__name__}"
            )
        super().__init__(num_classes, getattr(head, "task", "multiclass"))
        check_positive(capacity, "capacity")
        check_positive(neighbors, "neighbors")
        self.head = head
        self.dims = check_dims(dims)
        self.candidates = Candidates(self.dims)
        self.capacity = capacity
        self.neighbors = neighbors
        self.weight = weight
        self.scales = ModuleDict({m: Standardize(dim) for m, dim in self.dims.items()})
        # Directions of standardized training features, and the target of each slot.
        self.rows = ModuleDict({m: FeatureQueue(dim, capacity) for m, dim in self.dims.items()})
        if self.task == "multiclass":
            self.register_buffer("labels", torch.zeros(len(self.dims), capacity, dtype=torch.long))
        else:
            self.register_buffer("targets", torch.zeros(len(self.dims), capacity, num_classes))
        # The share of each class or label, or the mean of each number.
        prior = {"multiclass": 1 / num_classes, "multilabel": 0.5, "regression": 0.0}[self.task]
        self.register_buffer("class_prior", torch.full((num_classes,), prior))
        self.register_patterns(len(self.candidates))
        register_identity(self, modalities=list(self.dims), task=self.task)

    def p_values(self, output: Any) -> dict[str, Tensor]:
        """Return the p-values of the head, none if it has none."""
        p_values = getattr(self.head, "p_values", None)
        return {} if p_values is None else p_values(output)

    def loss(
        self,
        output: Any,
        target: Tensor,
        *,
        class_weight: Tensor | None = None,
        sample_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the head's training objective, see :meth:`DRFHead.loss`."""
        options = loss_options(class_weight, sample_weight, label_smoothing, reduction)
        loss: Tensor = self.head.loss(output, target, **options)  # type: ignore[operator]
        return loss

    @torch.no_grad()
    def fit(
        self,
        features: Mapping[str, Tensor],
        target: Tensor,
        available: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Store the features of training samples, as the trained encoders return them.

        Args:
            features: (N, D_m) for each modality.
            target: Their targets, as ``loss`` takes them. Of soft labels the most probable class
                votes, ignored samples do not, and where a label or number is not known, its share
                or mean votes.
            available: (N,) bool for each modality.
        """
        x, observed = make_safe(features, available, self.dims)
        check_target(target, self.class_prior.expand(len(observed), -1), self.task)
        y, votes = self._prepare(target.to(observed.device))
        stored = self.labels if self.task == "multiclass" else self.targets
        for number, (name, queue) in enumerate(self.rows.items()):
            rows = observed[:, number].nonzero().squeeze(1)
            self.scales[name].reset()
            if len(rows):
                self.scales[name].fit(x[name], observed[:, number])
            rows = rows[votes[rows]]
            index = torch.linspace(0, len(rows) - 1, min(len(rows), self.capacity))
            chosen = rows[index.round().long()]
            queue.reset()
            queue.enqueue(self._direction(name, x[name][chosen]))
            stored[number, : len(chosen)] = y[chosen].to(stored)
        self.temperature.fill_(1)
        if self.task == "regression":
            self.interval_width.fill_(torch.inf)
        return self

    def _prepare(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Set the prior, and return the targets to store and a mask of those that vote."""
        if self.task == "multiclass":
            y = target.argmax(1) if target.ndim > 1 else target
            votes = y != IGNORED
            counts = 1 + y[votes].bincount(minlength=self.num_classes).to(self.class_prior)
            self.class_prior.copy_(counts / counts.sum())
            return y, votes
        y = target.to(self.class_prior).view(-1, self.num_classes)
        known = y >= 0 if self.task == "multilabel" else ~y.isnan()
        total, count = y.where(known, 0.0).sum(0), known.sum(0)
        if self.task == "multilabel":
            self.class_prior.copy_((total + 1) / (count + 2))
        else:
            self.class_prior.copy_(total / count.clamp_min(1))
        return y.where(known, self.class_prior), known.any(1)

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> Any:
        """Predict; in evaluation mode with the votes."""
        output: Any = self.head(features, available)
        if self.training:
            return output
        x, observed = make_safe(features, available, self.dims)
        trust = read_output(output, "trust")
        share = observed if trust is None else torch.stack(list(trust.values()), dim=1)
        share = share.float() / share.float().sum(1, keepdim=True).clamp_min(1e-12)
        stored = self.labels if self.task == "multiclass" else self.targets
        by_modality = zip(self.dims, stored, strict=True)
        votes = torch.stack([self._vote(m, x[m], targets) for m, targets in by_modality], dim=1)
        return output._replace(logits=self._combine(output.logits, votes, share, observed))

    def _combine(self, logits: Tensor, votes: Tensor, share: Tensor, observed: Tensor) -> Tensor:
        """Combine the prediction (B, C) and the votes (B, M, C) of modalities with a share."""
        logits = at_least_float32(logits)
        if self.task == "regression":
            weight = self.weight * share.to(votes)
            total = logits + einsum(weight, votes, "b m, b m c -> b c")
            return total / (1 + weight.sum(1, keepdim=True))
        if self.task == "multiclass":
            logits, votes = logits.log_softmax(-1), votes.log()
        else:
            votes = votes.log() - (1 - votes).log()
        logits = logits + self.weight * einsum(share.to(votes), votes, "b m, b m c -> b c")
        return logits / self.temperature[self.candidates.pattern(observed), None]

    def _direction(self, name: str, features: Tensor) -> Tensor:
        return F.normalize(self.scales[name](features), dim=1)

    def _vote(self, name: str, features: Tensor, stored: Tensor) -> Tensor:
        """Return the share of each class or label, or the mean, of the nearest rows, (B, C)."""
        queue = self.rows[name]
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            rows = at_least_float32(queue.storage)
            cosine = self._direction(name, features).to(rows.dtype) @ rows.T
            count = min(self.neighbors, self.capacity)
            values, index = cosine.where(queue.valid, -torch.inf).topk(count)
            share = masked_softmax(_INVERSE_TEMPERATURE * values, values > -torch.inf)
            if self.task == "multiclass":
                vote = share.new_zeros(len(share), self.num_classes)
                vote = vote.scatter_add(1, stored[index], share)
            else:
                vote = einsum(share, stored[index].to(share), "b n, b n c -> b c")
            return _VOTE_SHARE * vote + (1 - _VOTE_SHARE) * self.class_prior

    extra_repr = arguments_of
