"""A mask that leaves a modality out means that every sample has it, in every head."""

import copy
from typing import Any

import pytest
import torch
from conformance import BASELINES, CASES, CLASSES, REPRODUCTIONS

NAMES = [*BASELINES, *REPRODUCTIONS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_modality_that_the_mask_leaves_out_is_available(name: str, training: bool) -> None:
    torch.manual_seed(0)
    head: Any = CASES[name].build().train(training)
    inputs = CASES[name].inputs(7)
    mask = inputs["available"]
    first = next(iter(mask))
    labels, everyone = torch.arange(7) % CLASSES, torch.ones(7, dtype=torch.bool)
    complete = dict.fromkeys(mask, everyone)
    for partial in ({first: mask[first]}, {m: x for m, x in mask.items() if m != first}, {}):
        results = []
        for available in (partial, {**complete, **partial}):
            torch.manual_seed(1)
            module = copy.deepcopy(head)
            output = module(**{**inputs, "available": available})
            results.append((output.logits, output.fused, module.loss(output, labels)))
        for got, expected in zip(*results, strict=True):
            assert torch.equal(got, expected)
