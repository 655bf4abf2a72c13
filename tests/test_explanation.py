"""Shapley values of modalities: what they must satisfy, and against the definition."""

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfusion import DRFClassifier, DRFHead, NeighborVoteHead, PaperDRFHead
from robustfusion.baselines import ConcatenationHead, LateMeanHead
from robustfusion.explanation import explain

DIMS = {"image": 5, "text": 4, "audio": 3}


def features(rows: int = 12) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(rows, dim, generator=generator) for name, dim in DIMS.items()}
    return x, {"image": torch.arange(rows) % 3 != 0, "text": torch.arange(rows) % 4 != 0}


class Numbers(nn.Module):
    """Returns a function of the sums of the available features as numbers."""

    task = "regression"

    def __init__(self, combine: Any) -> None:
        super().__init__()
        self.combine = combine

    def forward(self, inputs: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        sums = {m: (x.sum(1) * available[m])[:, None] for m, x in inputs.items()}
        return torch.as_tensor(self.combine(sums))


@pytest.mark.parametrize("kind", [DRFHead, PaperDRFHead, ConcatenationHead, LateMeanHead])
def test_values_sum_to_the_prediction_minus_the_prior(kind: Any) -> None:
    torch.manual_seed(0)
    dims = {name: DIMS[name] for name in list(DIMS)[: 2 if kind is PaperDRFHead else 3]}
    head, (x, available) = kind(dims, 3).train(), features()
    x = {name: x[name] for name in dims}
    why = explain(head, x, available)
    total = why.prior + torch.stack(list(why.contributions.values())).sum(0)
    assert torch.allclose(total, why.prediction, atol=1e-6)
    assert (why.contributions["image"][::3] == 0).all()
    assert (why.contributions["image"][1::3] != 0).any()
    assert head.training  # the mode is restored
    probabilities = head.eval()(x, available).logits.softmax(1)
    assert torch.allclose(why.prediction, probabilities.amax(1))
    assert (why.predicted == probabilities.argmax(1)).all()


def test_a_sum_of_modalities_gives_each_its_own_part() -> None:
    x, available = features()
    why = explain(Numbers(lambda sums: sum(sums.values()) + 7), x, available)
    assert torch.allclose(why.prior, torch.full((12, 1), 7.0))
    for name, value in x.items():
        mask = available.get(name, torch.ones(12).bool())
        own = (value.sum(1) * mask)[:, None]
        assert torch.allclose(why.contributions[name], own, atol=1e-5)


def test_symmetric_modalities_share_alike() -> None:
    x, _ = features()
    product = explain(Numbers(lambda sums: sums["image"] * sums["text"]), x)
    assert torch.allclose(product.contributions["image"], product.contributions["text"])
    assert torch.allclose(product.contributions["image"], product.prediction / 2)
    assert (product.contributions["audio"] == 0).all()  # it has no say


def test_the_mean_over_all_orders_of_arrival() -> None:
    torch.manual_seed(0)
    head, (x, _) = DRFHead(DIMS, 3).eval(), features()
    why = explain(head, x)
    expected = {name: torch.zeros(12) for name in DIMS}

    def value(names: tuple[str, ...]) -> Tensor:
        masks = {m: torch.full((12,), m in names) for m in DIMS}
        logits: Tensor = head(x, masks).logits.detach()
        return logits.softmax(1).gather(1, why.predicted[:, None])[:, 0]

    for order in permutations(DIMS):
        for place, name in enumerate(order):
            expected[name] += (value(order[: place + 1]) - value(order[:place])) / 6
    for name in DIMS:
        assert torch.allclose(why.contributions[name], expected[name], atol=1e-6)


def test_a_model_with_encoders_encodes_once() -> None:
    calls = []

    class Encoder(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            calls.append(len(input))
            return super().forward(input)

    torch.manual_seed(0)
    encoders = {name: Encoder(dim, dim) for name, dim in DIMS.items()}
    model, (x, available) = DRFClassifier(encoders, DRFHead(DIMS, 3)), features()
    why = explain(model, x, available)
    assert len(calls) == 3
    encoded, masks = model.eval().encode(x, available)
    direct = explain(model.head, encoded, masks)
    assert (direct.contributions["text"] == why.contributions["text"]).all()


def test_labels_have_a_value_each() -> None:
    class Labels(Numbers):
        task = "multilabel"

    x, _ = features()
    why = explain(Labels(lambda s: torch.cat([s["image"], s["text"]], 1)), x)
    assert why.contributions["image"].shape == why.predicted.shape == (12, 2)
    assert why.predicted.dtype == torch.bool
    # The second label does not depend on the image.
    assert (why.contributions["image"][:, 1] == 0).all()
    assert torch.allclose(why.prior, torch.full((12, 2), 0.5))


def test_neighbor_votes_are_explained_too() -> None:
    torch.manual_seed(0)
    head, (x, available) = NeighborVoteHead(DRFHead(DIMS, 3)), features()
    head.fit(x, torch.arange(12) % 3, available)
    why = explain(head, x, available)
    total = why.prior + torch.stack(list(why.contributions.values())).sum(0)
    assert torch.allclose(total, why.prediction, atol=1e-5)


def test_arguments_are_checked() -> None:
    x, _ = features()
    head = DRFHead(DIMS, 3)
    with pytest.raises(ValueError, match="available has unknown modality 'sound'"):
        explain(head, x, {"sound": torch.ones(12).bool()})
    with pytest.raises(ValueError, match="1 to 8 modalities, got 9"):
        explain(head, {str(k): torch.zeros(2, 3) for k in range(9)})
    with pytest.raises(ValueError, match="must have logits of shape"):
        explain(Numbers(lambda sums: torch.zeros(3, 2)), x)
