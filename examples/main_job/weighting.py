"""Weights of classes and posts in the training loss, and the score that chooses the epoch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from main_job.encoders import SetupError
from main_job.settings import Settings
from robustfusion.datasets import PostDataset
from robustfusion.tasks import predict


class LossWeights(NamedTuple):
    """Weights in the training loss; None where all weigh the same."""

    classes: Tensor | None = None  # (C,)
    posts: Tensor | None = None  # (N,)

    def loss(self, model: nn.Module, output: Any, labels: Tensor, rows: Tensor) -> Tensor:
        """Return the training loss of some posts."""
        loss: Tensor = model.loss(
            output,
            labels,
            class_weight=None if self.classes is None else self.classes.to(labels.device),
            sample_weight=None if self.posts is None else self.posts[rows].to(labels.device),
        )
        return loss


def loss_weights(dataset: PostDataset, settings: Settings) -> LossWeights:
    """Return the weights for the posts to train on.

    Balanced, a class or label weighs in inverse proportion to its number of posts.
    """
    posts = torch.tensor(dataset.weights) if settings.weight_column else None
    if posts is not None and not posts.any():
        raise SetupError(f"the column {settings.weight_column!r} is 0 for all training posts")
    if not settings.class_weight:
        return LossWeights(None, posts)
    labels = torch.tensor(dataset.labels)
    if settings.task == "multiclass":
        counts = torch.bincount(labels, minlength=len(dataset.class_names))
    else:
        counts = (labels > 0.5).sum(0)
    inverse = counts.sum() / (len(counts) * counts.clamp_min(1))
    return LossWeights(inverse.float(), posts)


def score(logits: Tensor, target: Tensor, settings: Settings) -> float:
    """Return how good predictions are; greater is better, and the greatest value is 1.

    Args:
        logits: (N, C), the outputs of a head.
        target: (N,) or (N, C).
        settings: The task, and for classes and labels the score: accuracy, the share of right
            ones, or macro-F1. Of numbers it is the mean R².
    """
    if settings.task == "regression":
        known = ~target.isnan()
        centers = target.nanmean(0)
        error = (logits - target).square().where(known, 0.0).sum(0)
        variance = (target - centers).square().where(known, 0.0).sum(0)
        return float((1 - error / variance.clamp_min(1e-12)).mean())
    if settings.task == "multilabel":
        known = target >= 0  # NaN is not
        right, predicted = target > 0.5, predict(logits, "multilabel")
    else:
        right, predicted = one_hot(target, logits), one_hot(logits.argmax(1), logits)
        known = torch.ones_like(right)
        if settings.select == "accuracy":
            return float((predicted & right).any(1).float().mean())
    if settings.select == "accuracy":
        return float((predicted == right)[known].float().mean())
    return macro_f1(predicted & known, right & known)


def macro_f1(predicted: Tensor, right: Tensor) -> float:
    """Return the mean F1 over the classes that occur, from bool (N, C)."""
    hits, both = (predicted & right).sum(0), predicted.sum(0) + right.sum(0)
    f1 = 2 * hits / both.clamp_min(1)
    return float(f1[right.any(0)].mean()) if right.any() else 0.0


def one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """Return classes (N,) as bool (N, C)."""
    return classes[:, None] == torch.arange(like.shape[1], device=classes.device)
