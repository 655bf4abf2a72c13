"""Imputation before concatenation: zeros, or the means of the training samples."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, mlp
from robustfusion._state import refuse_recompute
from robustfusion.baselines.head import BaselineHead, zero_loss
from robustfusion.moments import RunningMoments
from robustfusion.output import HeadOutput
from robustfusion.tasks import Task

_NO_FADING = 2**53  # More samples than any run has: the running mean is that of all of them.


class ImputationHead(BaselineHead):
    r"""Fill in the missing features, concatenate, classify with a three-layer network.

    .. math:: \tilde f_m = a_m f_m + (1 - a_m)\, \hat f_m, \qquad
              \hat f_m \in \big\{ 0,\; \bar f_m \big\}

    with :math:`\bar f_m` the mean over all training samples seen so far. Trained on complete data,
    "zero" is the same model as :class:`ConcatenationHead` without modality dropout, and so is
    "mean" if the features are standardized: count the three as one in a ranking.

    - Kept: the two standard imputations.
    - Replaced: nothing.
    - Unverified: nothing.
    - Missing rule: the imputation itself; the mean is zero before any sample was seen.

    The mean is updated in training mode, after use, and activation checkpointing of a head that
    has it is refused. In a distributed run each rank has its own, so wrap the model with
    ``forward_sync_buffers=False``.

    Other arguments, shapes and errors are those of :class:`BaselineHead`.

    Args:
        strategy: "zero" or "mean".

    Shape:
        - ``extras[name]``: (B, dims[name]), the features of a modality, observed or imputed

    Raises:
        RuntimeError: If a training forward runs again within a backward pass.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ImputationHead
        >>> head = ImputationHead({"text": 1, "image": 1}, 2, strategy="mean")
        >>> features = {
        ...     "text": torch.ones(4, 1),
        ...     "image": torch.tensor([[1.0], [3.0], [2.0], [2.0]]),
        ... }
        >>> _ = head(features)
        >>> available = {"text": torch.ones(4).bool(), "image": torch.zeros(4).bool()}
        >>> head(features, available).extras["image"].flatten()
        tensor([2., 2., 2., 2.])

    Reference:
        ``SimpleImputer`` of scikit-learn.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        strategy: Literal["zero", "mean"] = "mean",
        hidden_features: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, task=task)
        if strategy not in ("zero", "mean"):
            raise ValueError(f'strategy must be "zero" or "mean", got {strategy!r}')
        self.strategy = strategy
        width = sum(self.dims.values())
        self.network = mlp(
            width, hidden_features, hidden_features, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(hidden_features, num_classes)
        if strategy == "mean":
            self.moments = ModuleDict(
                {name: RunningMoments(dim, _NO_FADING) for name, dim in self.dims.items()}
            )

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Fill in, classify, then update the means with the observed features."""
        if self.strategy == "mean":
            inputs = self._fill_means(inputs, mask)
        fused: Tensor = self.network(torch.cat([inputs[name] for name in self.dims], dim=1))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits), dict(inputs))

    def _fill_means(self, inputs: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Replace missing features by the means of past batches, and update the means."""
        if self.training:
            refuse_recompute("ImputationHead")
        filled = {}
        for (name, running), observed in zip(self.moments.items(), mask.unbind(1), strict=True):
            x, mean = inputs[name], running.gaussian("diag").mean
            filled[name] = x.where(observed.unsqueeze(1), mean.to(x.dtype))
            if self.training:
                running.observe(x, observed)
        return filled
