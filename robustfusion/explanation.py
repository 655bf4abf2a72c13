"""Tell which input decided a prediction: the exact Shapley values of the modalities."""

from collections.abc import Mapping
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import evaluating
from robustfusion._outputs import logits_of
from robustfusion._predictions import predicted_by, task_of
from robustfusion._tree import leaves, tensors
from robustfusion._validation import check_available
from robustfusion.tasks import Task

_MOST_MODALITIES = 8  # 256 passes through the head


class Explanation(NamedTuple):
    """The contribution of each modality to the predictions; :func:`explain` makes it.

    Attributes:
        contributions: For each modality (B,), or (B, C) for several labels or numbers. They sum to
            ``prediction - prior``, and are 0 where the modality is missing.
        prediction: Probability of the predicted class (B,), of each label (B, C), or the numbers
            (B, C).
        prior: The same without any modality.
        predicted: The predicted class (B,), labels (B, C) as bool, or numbers (B, C).
    """

    contributions: dict[str, Tensor]
    prediction: Tensor
    prior: Tensor
    predicted: Tensor


@torch.no_grad()
def explain(
    model: nn.Module, inputs: Mapping[str, Any], available: Mapping[str, Tensor] | None = None
) -> Explanation:
    r"""Return the exact Shapley values of the modalities of each sample.

    The value of a set of modalities is what the model predicts from these alone, with the others
    declared missing: the probability of the class that it predicts from all of them, the
    probability of each label, or each number. The value of no modality, the prior, is the model's
    answer to a sample without any: equal probabilities for a :class:`~robustfusion.DRFHead`.

    It takes a pass through the head for each of the :math:`2^M` sets, and one through the
    encoders. The model is evaluated in evaluation mode; its mode is restored afterwards.

    Args:
        model: A head, or a model with encoders: ``model(inputs, available)`` returns an output
            with ``logits``. Its task is that of its head, by default one class a sample.
        inputs: By modality, the features (B, D_m), or what the encoders take; 8 modalities at
            most.
        available: By modality, bool (B,), True where it is present; ``None`` means everywhere.

    Raises:
        ValueError: If there are more than 8 modalities, ``available`` names others, or the output
            has no logits.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.explanation import explain
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> features = {"image": torch.randn(5, 8), "text": torch.randn(5, 4)}
        >>> why = explain(head, features, {"image": torch.arange(5) > 0})
        >>> why.contributions["image"][0]  # the first sample has no image
        tensor(0.)
        >>> total = why.prior + why.contributions["image"] + why.contributions["text"]
        >>> torch.allclose(total, why.prediction, atol=1e-6)
        True

    Note:
        With the value :math:`v(S)` of a set of modalities, the contribution of modality m is

        .. math::
            \phi_m = \frac1M \sum_{S \not\ni m} \binom{M - 1}{|S|}^{-1}
                \big( v(S \cup \{m\}) - v(S) \big)

    Reference:
        Shapley, "A Value for n-Person Games", 1953. Over modalities: Hu et al., "SHAPE: An Unified
        Approach to Evaluate the Contribution and Cooperation of Individual Modalities", IJCAI
        2022.
    """
    names = tuple(inputs)
    if not 1 <= len(names) <= _MOST_MODALITIES:
        raise ValueError(f"inputs must hold 1 to {_MOST_MODALITIES} modalities, got {len(names)}")
    batch = len(next(leaves(inputs)))
    device = next((x.device for x in tensors(inputs)), torch.device("cpu"))
    present: Mapping[str, Tensor] = check_available(available, names, batch, device)
    values: dict[frozenset[str], Tensor] = {}
    with evaluating(model):
        head: Any = model
        if callable(getattr(model, "encode", None)) and isinstance(
            getattr(model, "head", None), nn.Module
        ):
            inputs, present = model.encode(inputs, present)  # type: ignore[operator]
            head = model.head
        task = task_of(model)
        predicted = predicted_by(model, head(inputs, present), batch)
        for size in range(len(names) + 1):
            for chosen in combinations(names, size):
                seen = {m: x if m in chosen else torch.zeros_like(x) for m, x in present.items()}
                logits = logits_of(head(inputs, seen), batch)
                values[frozenset(chosen)] = _value(logits, predicted, task)
    contributions = {}
    for name in names:
        total = torch.zeros_like(values[frozenset()])
        for subset, value in values.items():
            if name not in subset:
                gain = values[subset | {name}] - value
                total += gain / (len(names) * comb(len(names) - 1, len(subset)))
        mask = present[name].to(total.device).view(batch, *[1] * (total.ndim - 1))
        contributions[name] = total.where(mask, 0.0)
    return Explanation(contributions, values[frozenset(names)], values[frozenset()], predicted)


def _value(logits: Tensor, predicted: Tensor, task: Task) -> Tensor:
    """Return the probability of the predicted class (B,), of each label, or the numbers (B, C)."""
    logits = logits.float()
    if task == "regression":
        return logits
    if task == "multilabel":
        return logits.sigmoid()
    return logits.softmax(-1).gather(1, predicted[:, None].to(logits.device))[:, 0]
