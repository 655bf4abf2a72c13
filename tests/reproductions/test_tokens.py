"""Heads that read tokens: padding, token masks, and a vector as one token."""

import copy
from typing import Any

import pytest
import torch
from conformance import CASES, Inputs, assert_same, assert_same_run, built, hide, names, run
from torch import Tensor

each = pytest.mark.parametrize("name", names(lambda case: case.tokens))
each_pair = pytest.mark.parametrize(
    "name", names(lambda case: case.tokens and len(case.inputs(1)["features"]) == 2)
)


def token_inputs(name: str, batch: int = 7) -> Inputs:
    """As the case's own, with four tokens of the first modality, five of the next, and so on."""
    given = CASES[name].inputs(batch)
    given["features"] = {
        m: torch.randn(batch, 4 + place, x.shape[1]) / 2
        for place, (m, x) in enumerate(given["features"].items())
    }
    return given


def all_tokens(inputs: Inputs) -> dict[str, Tensor]:
    return {m: torch.ones(x.shape[:2]).bool() for m, x in inputs["features"].items()}


@each
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hidden_tokens_reach_nothing(name: str, training: bool) -> None:
    inputs = hide(token_inputs(name), 0.0)
    masks = {m: torch.rand(x.shape[:2]) > 0.3 for m, x in inputs["features"].items()}
    inputs["token_mask"] = masks
    shown = {m: masks[m] & inputs["available"][m][:, None] for m in masks}
    results = []
    for value in (0.0, float("nan"), 1e6):
        features = {m: x.where(shown[m][..., None], value) for m, x in inputs["features"].items()}
        results.append(run(name, {**inputs, "features": features}, training=training))
    for result in results[1:]:
        assert_same_run(result, results[0])
    assert results[0].loss.isfinite()
    assert all(g is None or g.isfinite().all() for g in results[0].parameter_gradients)


@each_pair
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_a_token_beyond_use_counts_as_padding(name: str, broken: float) -> None:
    inputs = token_inputs(name)
    inputs["token_mask"] = all_tokens(inputs)
    found = copy.deepcopy(inputs)
    inputs["token_mask"]["image"][2, 1] = False
    inputs["features"]["image"][2, 1] = 0.0
    found["features"]["image"][2, 1, 0] = broken
    expected, got = (run(name, given, training=True) for given in (inputs, found))
    assert_same(got.outputs, expected.outputs, "outputs")
    assert_same(got.parameter_gradients, expected.parameter_gradients, "gradients")
    assert_same(got.state, expected.state, "state")


@each_pair
def test_padding_changes_nothing(name: str) -> None:
    head: Any = built(name).eval()
    inputs = token_inputs(name)
    padded = {
        m: torch.cat([x, torch.full_like(x[:, :3], torch.nan)], dim=1)
        for m, x in inputs["features"].items()
    }
    masks = {
        m: torch.arange(x.shape[1]).expand(x.shape[:2]) < x.shape[1] - 3 for m, x in padded.items()
    }
    got = head(padded, inputs["available"], token_mask=masks)
    torch.testing.assert_close(got.logits, head(**inputs).logits)


@each_pair
def test_a_row_of_padding_is_a_missing_modality(name: str) -> None:
    head: Any = built(name).eval()
    features = token_inputs(name)["features"]
    gone = torch.arange(7) == 2
    masks = {"image": (~gone)[:, None].expand(7, features["image"].shape[1])}
    available = {"text": torch.ones(7).bool(), "image": ~gone}
    got = head(features, None, token_mask=masks)
    assert torch.equal(got.logits, head(features, available).logits)


@each_pair
def test_a_vector_is_one_token(name: str) -> None:
    head: Any = built(name).eval()
    inputs = CASES[name].inputs(7)
    tokens = {m: x[:, None] for m, x in inputs["features"].items()}
    got = head(tokens, inputs["available"])
    assert torch.equal(got.logits, head(**inputs).logits)


@each_pair
def test_token_errors(name: str) -> None:
    head: Any = built(name)
    features = token_inputs(name)["features"]
    with pytest.raises(ValueError, match=r'token_mask\["text"\] must have shape'):
        head(features, token_mask={"text": torch.ones(7, 9).bool()})
    with pytest.raises(ValueError, match="token_mask has unknown modality 'video'"):
        head(features, token_mask={"video": torch.ones(7, 9).bool()})
    with pytest.raises(ValueError, match=r'features\["text"\]'):
        head({**features, "text": torch.zeros(7, 2, 2, 4)})
