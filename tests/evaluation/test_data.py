"""What a report is measured on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from reports import (
    NAMES,
    Encoded,
    FakeHead,
    add_noise,
    make_data,
    make_posts,
    measure,
    reverse_half,
)
from torch import Tensor, nn

from robustfusion import DRFClassifier
from robustfusion.disruption import (
    CachedFeatures,
    DisruptedDataset,
    Disruption,
    collate,
)
from robustfusion.evaluation import (
    RawSamples,
    compare,
    robustness_report,
)


def test_raw_samples_equal_a_slow_run() -> None:
    posts, model = make_posts(), Encoded()
    ids = [post["id"] for post in posts]
    corruptions: dict[str, Callable[..., Any]] = {"image": add_noise, "text": reverse_half}
    data = RawSamples(posts, corruptions, ids=ids)
    state = torch.random.get_rng_state()
    found = measure(model, data, seeds=(0, 1), batch_size=10, replicates=10, rates=(0.5,))
    for cell in found.answers.values():
        for s, seed in enumerate(cell.seeds):
            disruption = dataclasses.replace(cell.condition, seed=seed)
            disrupted = DisruptedDataset(posts, disruption, corruptions, ids=ids)
            batch = collate([disrupted[i] for i in range(len(posts))])
            expected = model(batch["inputs"], batch["available"]).logits.argmax(-1)
            np.testing.assert_array_equal(cell.predictions[s], expected.numpy())
    assert torch.equal(state, torch.random.get_rng_state())
    # The features are those that reach the head, one post has no image.
    assert len(found.recovered["image", "text"].labels) == 23


def test_raw_samples_refuse_an_empty_dataset() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        RawSamples([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"image": torch.zeros(4, 2)}}, "two modalities"),
        ({"features": {"image": torch.zeros(4, 2), "text": torch.zeros(3, 2)}}, r'\["text"\]'),
        ({"labels": torch.zeros(4)}, "labels must be integers"),
        ({"ids": ["a", "a", "b", "c"]}, "unique"),
        ({"corrupted": {"image": torch.zeros(4, 3)}}, r'corrupted\["image"\] must have shape'),
        ({"corrupted": {"sound": torch.zeros(4, 2)}}, "not among"),
        ({"corrupted": {"image": torch.zeros(0, 4, 2)}}, r'corrupted\["image"\] must have shape'),
        ({"available": {"image": torch.ones(3).bool()}}, r'available\["image"\] must have shape'),
        ({"available": {"sound": torch.ones(4).bool()}}, "available has the key 'sound'"),
    ],
)
def test_cached_features_refuse(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": {"image": torch.zeros(4, 2), "text": torch.zeros(4, 2)},
        "labels": torch.zeros(4, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        CachedFeatures(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 0, 1]}, "labels must be a tensor, got list"),
        ({"features": {"image": np.zeros((4, 2)), "text": torch.zeros(4, 2)}}, "got ndarray"),
        (
            {"corrupted": {"image": torch.zeros(4, 2).long()}},
            r'corrupted\["image"\] must be torch.float32 as the features, got torch.int64',
        ),
        ({"corrupted": {"image": None}}, r'corrupted\["image"\] must be .* got NoneType'),
        (
            {"available": {"image": torch.ones(4)}},
            r'available\["image"\] must have dtype torch.bool, got torch.float32',
        ),
        ({"available": {"image": [True] * 4}}, r'available\["image"\] must .* got list'),
        ({"ids": ["a", 0.5, "b", "c"]}, "a sample id must be a str or an int, got 0.5"),
    ],
)
def test_cached_features_refuse_other_types(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": {"image": torch.zeros(4, 2), "text": torch.zeros(4, 2)},
        "labels": torch.zeros(4, dtype=torch.long),
    }
    with pytest.raises(TypeError, match=message):
        CachedFeatures(**{**arguments, **change})


def test_an_id_is_the_same_from_python_numpy_and_torch() -> None:
    options: dict[str, Any] = {"seeds": (0,), "replicates": 0, "rates": (0.5,)}
    ids: tuple[Any, ...] = (range(90), list(np.arange(90)), torch.arange(90))
    reports = [measure(FakeHead(), make_data(ids=i), **options) for i in ids]
    for other in reports[1:]:
        assert other.fingerprint == reports[0].fingerprint
        assert compare(reports[0], other, replicates=10).overall.value == 0
    with pytest.raises(ValueError, match="unique"):
        make_data(ids=torch.zeros(90, dtype=torch.long))
    twins: Any = [3, np.int64(3)]
    with pytest.raises(ValueError, match="ids must be 2 unique names, got 2, 1 of them unique"):
        RawSamples([{"inputs": {"a": torch.zeros(1)}, "label": 0}] * 2, ids=twins)


class Posts:
    """Raw posts that count how often each is read."""

    def __init__(self, names: tuple[str, ...], count: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = {m: torch.rand(count, 2, 3, generator=generator) for m in names}
        self.ids = tuple(f"post-{i}" for i in range(count))
        self.reads = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.reads += 1
        inputs = {name: values[row] for name, values in self.rows.items()}
        there = {name: row % 7 != k for k, name in enumerate(inputs)}
        return {"inputs": inputs, "label": row % 3, "available": there}


class Counting(nn.Module):
    """An encoder that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += [row.numpy().tobytes() for row in images]
        return images.flatten(1) - 0.5


@pytest.mark.parametrize("names", [("image", "text"), NAMES])
def test_each_distinct_input_is_encoded_and_each_post_read_once(names: tuple[str, ...]) -> None:
    posts, seeds = Posts(names), (0, 1, 2)
    data = RawSamples(posts, dict.fromkeys(names, add_noise))
    encoders = {name: Counting() for name in names}
    model = DRFClassifier(encoders, FakeHead(names))
    posts.reads = 0
    found = measure(model, data, seeds=seeds, batch_size=16)
    # Of two modalities one is missing in twelve posts; the other is spared.
    spared = sum(row % 7 < 2 for row in range(40)) if len(names) == 2 else 0
    assert posts.reads == len(posts) + len(seeds) * (len(posts) - spared)
    seen = [row for encoder in encoders.values() for row in encoder.seen]
    distinct = sum(len(set(encoder.seen)) for encoder in encoders.values())
    # A few rows are encoded again, to see whether they depend on their batch.
    assert len(seen) - distinct == 4 * len(names)
    there = sum(row % 7 != k for k in range(len(names)) for row in range(len(posts)))
    assert distinct == there + len(seeds) * (there - spared)
    # The same answers as of a model whose encoders nobody knows.
    plain = measure(Hidden(model), data, seeds=seeds, batch_size=16)
    for one, other in zip(found.answers.values(), plain.answers.values(), strict=True):
        np.testing.assert_array_equal(one.predictions, other.predictions)
        np.testing.assert_array_equal(one.counts, other.counts)
    assert found.fingerprint == plain.fingerprint


class Hidden(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
        return self.model(inputs, available)


def test_only_what_some_condition_corrupts_is_encoded_again() -> None:
    names = ("image", "text")
    posts = Posts(names)
    encoders = {name: Counting() for name in names}
    data = RawSamples(posts, {"image": add_noise})
    grid = [
        Disruption(names, setting="C", strategy="fixed", modality="image"),
        Disruption(names, setting="D", strategy="fixed", modality="text"),
    ]
    robustness_report(DRFClassifier(encoders, FakeHead(names)), data, grid, seeds=(0, 1))
    images, texts = (len(encoders[name].seen) - 4 for name in names)
    assert texts == sum(row % 7 != 1 for row in range(40))
    spared = sum(row % 7 == 1 for row in range(40))  # nothing else is left of these
    assert images == 3 * sum(row % 7 != 0 for row in range(40)) - 2 * spared


def test_encoders_that_mix_rows_are_refused_and_can_be_run_row_by_row() -> None:
    class Mixing(Counting):
        def forward(self, images: Tensor) -> Tensor:
            made = super().forward(images)
            return made - made.mean(0)

    names = ("image", "text")
    model = DRFClassifier({name: Mixing() for name in names}, FakeHead(names))
    data = RawSamples(Posts(names), dict.fromkeys(names, add_noise))
    with pytest.raises(ValueError, match="depend on the other samples"):
        measure(model, data, seeds=(0,))
    assert len(measure(model, data, seeds=(0,), batch_size=1).answers) == 22
