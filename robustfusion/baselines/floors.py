"""The two baselines that every fusion must beat: the class prior, and one modality alone."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from robustfusion._modules import mlp
from robustfusion._task_head import Supervision
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.output import HeadOutput
from robustfusion.tasks import IGNORED, Task, check_target


class MajorityHead(BaselineHead):
    r"""Predict the class prior for every sample, hence the majority class.

    .. math:: z = b, \qquad b^\star_k = \log P(y = k)

    For several labels the bias holds the log-odds of each, for regression the prediction is the
    mean.

    - Kept: it reproduces no paper; it is the reference line of a robustness table.
    - Replaced: counting becomes a learned bias, so that any training loop can run it.
      :meth:`fit` sets the bias in closed form.
    - Missing rule: none is needed, because features are only checked for shape.
    - Unverified: nothing.

    Arguments, shapes and errors are those of :class:`BaselineHead`; ``fused`` are the logits.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import MajorityHead
        >>> head = MajorityHead({"text": 3}, num_classes=2)
        >>> _ = head.fit(torch.tensor([1, 1, 0]))
        >>> head({"text": torch.zeros(2, 3)}).logits.argmax(1).tolist()
        [1, 1]

    Reference:
        ``DummyClassifier(strategy="prior")`` of scikit-learn.
    """

    def __init__(
        self, dims: Mapping[str, int], num_classes: int, *, task: Task = "multiclass"
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    @torch.no_grad()
    def fit(self, target: Tensor) -> Self:
        """Set the bias to the log frequency of each class or label, smoothed by one, or the mean.

        Args:
            target: Targets of the training samples, as ``loss`` takes them.
        """
        check_target(target, self.bias.expand(len(target), -1), self.task)
        y = target.to(self.bias.device)
        if self.task == "regression":
            self.bias.zero_()
            self.target_count.zero_()
            self._observe(y.to(self.target_mean).view(-1, self.num_classes))
        elif self.task == "multilabel":
            yes = y.where(y >= 0, 0).sum(0) + 1
            self.bias.copy_(torch.logit(yes / ((y >= 0).sum(0) + 2)))
        else:
            counts = y.sum(0) if y.ndim > 1 else y[y != IGNORED].bincount(minlength=len(self.bias))
            self.bias.copy_(torch.log((counts + 1) / (counts + 1).sum()))
        return self

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Return the same logits for every sample."""
        logits = self.bias.expand(mask.shape[0], -1)
        return HeadOutput(logits, logits, zero_loss(logits))


class UnimodalHead(BaselineHead):
    r"""Classify from one modality and ignore the others.

    .. math:: z = W\,\mathrm{MLP}(f_m) + b \;\text{ if available}, \qquad z = \pi \;\text{ if not}

    - Kept: the usual single-modality baseline, on the same features as every other head.
    - Replaced: nothing.
    - Missing rule: a sample without the modality gets the class prior :math:`\pi`, a bias that
      learns from all samples, so that it is sensible even if nothing was missing in training.
    - Unverified: nothing; the paper says why to compare with it, not how to build it.

    Other arguments and errors are those of :class:`BaselineHead`; ``fused`` is 0 without it.

    Args:
        modality: The modality to use, a key of ``dims``.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import UnimodalHead
        >>> head = UnimodalHead({"text": 3, "image": 4}, num_classes=2, modality="text")
        >>> head({"text": torch.zeros(5, 3), "image": torch.zeros(5, 4)}).logits.shape
        torch.Size([5, 2])

    Reference:
        Wang et al., "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020,
        for why fusion must be compared with its best modality.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        modality: str,
        task: Task = "multiclass",
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        if modality not in self.dims:
            raise ValueError(f"modality must be one of {list(self.dims)}, got {modality!r}")
        self.modality = modality
        self.network = mlp(
            dims[modality], hidden_features, hidden_features, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(hidden_features, num_classes)
        self.prior = nn.Parameter(torch.zeros(num_classes))

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Classify the samples that have the modality, and give the prior to the rest."""
        available = mask[:, list(self.dims).index(self.modality)].unsqueeze(1)
        hidden: Tensor = self.network(inputs[self.modality])
        logits = torch.where(available, self.classifier(hidden), self.prior)
        fused = torch.where(available, hidden, torch.zeros_like(hidden))
        return HeadOutput(logits, fused, zero_loss(logits))

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the mean loss of the prediction plus that of the prior over all samples."""
        scores = self.scores(output)
        return supervision.mean(scores) + supervision.mean(self.prior.expand_as(scores))
