"""Disruption of raw samples, and collate functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_inputs import BOTH, SETTINGS, as_pil, as_tensor, photo, tokens
from torch.utils.data import DataLoader

from robustfusion.disruption import (
    DisruptedDataset,
    Disruption,
    ImageCorruption,
    TextCorruption,
    collate,
    placeholder,
)


class Posts(torch.utils.data.Dataset[dict[str, Any]]):
    """Posts of a tensor image and a text; `fail` counts reads."""

    def __init__(self, count: int = 24, *, own_ids: bool = True) -> None:
        self.count, self.reads = count, 0
        self.image = photo((8, 6))
        if own_ids:
            self.ids = [f"post-{i}" for i in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        text = f"post {index} says that it is a very fine day today"
        sample = {"inputs": {"image": self.image, "text": text}, "label": index % 3}
        return sample | ({"id": self.ids[index]} if hasattr(self, "ids") else {})


CORRUPTIONS: dict[str, Any] = {"image": ImageCorruption(kind="noise"), "text": TextCorruption()}


def everything(batches: Any) -> dict[str, tuple[bytes, str, bool, bool]]:
    found = {}
    for batch in batches:
        for i, name in enumerate(batch["id"]):
            inputs, available = batch["inputs"], batch["available"]
            found[name] = (
                inputs["image"][i].numpy().tobytes(),
                inputs["text"][i],
                bool(available["image"][i]),
                bool(available["text"][i]),
            )
    return found


def test_dataset_collate_order_batch_and_workers_agree() -> None:
    posts, disruption = Posts(), Disruption(BOTH, rate=0.8, seed=3)
    data = DisruptedDataset(posts, disruption, CORRUPTIONS)
    assert posts.reads == 0
    reference = everything([collate([data[i] for i in range(24)])])
    assert len(reference) == 24
    fork = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        loaders = [
            DataLoader(data, batch_size=5, shuffle=True, collate_fn=collate, generator=fork),
            DataLoader(data, batch_size=4, num_workers=2, collate_fn=collate),
        ]
        for loader in loaders:
            assert everything(loader) == reference


def test_dataset_does_what_the_plan_says_and_nothing_else() -> None:
    posts = Posts()
    data = DisruptedDataset(posts, Disruption(BOTH, rate=0.7), CORRUPTIONS)
    hits = dict.fromkeys(BOTH, 0)
    for i in range(24):
        sample, clean = data[i], posts[i]
        assert sample["label"] == clean["label"]
        assert sample["id"] == f"post-{i}"
        image, text = sample["inputs"]["image"], sample["inputs"]["text"]
        for name in BOTH:
            assert sample["available"][name] == bool(data.plan.available[name][i])
            assert sample["corrupted"][name] == bool(data.plan.corrupted[name][i])
            hits[name] += sample["corrupted"][name] + (not sample["available"][name])
        if not sample["available"]["image"]:
            assert not image.any()
        else:
            changed = not torch.equal(image, clean["inputs"]["image"])
            assert changed == sample["corrupted"]["image"]
        if not sample["available"]["text"]:
            assert text == ""
        else:
            assert (text != clean["inputs"]["text"]) == sample["corrupted"]["text"]
    counts = data.plan.counts()
    assert hits == {n: counts["corrupted"][n] + counts["missing"][n] for n in BOTH}
    assert sum(hits.values()) == counts["disrupted"]
    assert torch.equal(posts.image, photo((8, 6)))


def test_transforms_come_after_the_disruption() -> None:
    posts = [{"inputs": {"image": as_pil(photo()), "text": "good day"}, "label": 1}]
    data = DisruptedDataset(
        posts,
        Disruption(BOTH, setting="D", strategy="fixed", modality="image"),
        transforms={"image": lambda image: as_tensor(image) / 255 - 0.5, "text": str.upper},
    )
    sample = data[0]
    assert torch.equal(sample["inputs"]["image"], torch.full((3, 24, 32), -0.5))
    assert sample["inputs"]["text"] == "GOOD DAY"
    assert sample["id"] == 0


def test_ids_come_from_the_argument_the_dataset_or_the_index() -> None:
    plan = Disruption(BOTH, setting="D")
    assert DisruptedDataset(Posts(2), plan).plan.ids == ("post-0", "post-1")
    bare = Posts(2, own_ids=False)
    assert DisruptedDataset(bare, plan).plan.ids == (0, 1)
    assert DisruptedDataset(bare, plan, ids=["x", "y"])[1]["id"] == "y"


def test_a_sample_that_lacks_a_modality_keeps_its_last() -> None:
    class Half(Posts):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "available": {"image": False, "text": True}}

    half = Half(10)
    disruption = Disruption(BOTH, setting="D")
    data = DisruptedDataset(half, disruption)
    samples = [data[i] for i in range(10)]
    assert all(s["available"] == {"image": False, "text": True} for s in samples)
    assert all(s["inputs"]["text"] for s in samples)
    assert not any(s["inputs"]["image"].any() for s in samples), "unobserved content stays hidden"
    collated = collate(samples)
    assert not collated["available"]["image"].any()
    assert collated["available"]["text"].all()


def test_counts_are_realised_where_it_is_said_what_is_missing() -> None:
    class Some(Posts):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "available": {"image": index % 3 > 0}}

    image = torch.arange(24) % 3 > 0
    for setting in SETTINGS:
        disruption = Disruption(BOTH, setting=setting, seed=1)
        data = DisruptedDataset(Some(), disruption, CORRUPTIONS, available={"image": image})
        samples = [data[i] for i in range(24)]
        counts = data.plan.counts()
        for name in BOTH:
            assert counts["corrupted"][name] == sum(s["corrupted"][name] for s in samples)
        gone = sum(not s["available"]["image"] for s in samples)
        assert counts["missing"]["image"] + 8 == gone
        assert counts["spared"] == 8  # disrupted at rate 1, but their only modality stays
        # What a sample says of itself counts, told before or not.
        assert everything([collate(samples)]) == everything(
            [collate([DisruptedDataset(Some(), disruption, CORRUPTIONS)[i] for i in range(24)])]
        )


def test_wrong_datasets_are_named() -> None:
    disruption = Disruption(BOTH, setting="C", strategy="fixed", modality="text")
    with pytest.raises(ValueError, match=r'corruptions\["text"\] is needed: 24 samples'):
        DisruptedDataset(Posts(), disruption)
    with pytest.raises(ValueError, match="corruptions has the key 'sound'"):
        DisruptedDataset(Posts(), disruption, {"sound": TextCorruption()})
    with pytest.raises(ValueError, match="transforms has the key 'sound'"):
        DisruptedDataset(Posts(), disruption, CORRUPTIONS, transforms={"sound": str})
    with pytest.raises(ValueError, match="ids must be unique, 'a' occurs"):
        DisruptedDataset(Posts(2), disruption, CORRUPTIONS, ids=["a", "a"])
    with pytest.raises(ValueError, match="ids must name 24 samples, got 1"):
        DisruptedDataset(Posts(), disruption, CORRUPTIONS, ids=["a"])
    with pytest.raises(ValueError, match="has the id 'post-0', but was planned as 'a'"):
        DisruptedDataset(Posts(1), disruption, CORRUPTIONS, ids=["a"])[0]
    with pytest.raises(ValueError, match="inputs must have the keys"):
        DisruptedDataset([{"inputs": {"sound": "a"}}], disruption, CORRUPTIONS)[0]


@pytest.mark.parametrize("gone", [None, float("nan"), "absent"])
def test_what_is_not_there_is_never_disrupted(gone: Any) -> None:
    class Some(Posts):
        def __getitem__(self, index: int) -> dict[str, Any]:
            sample = super().__getitem__(index)
            if index % 2:
                sample["inputs"]["image"] = gone
                if gone == "absent":
                    del sample["inputs"]["image"]
            return sample

    for setting in SETTINGS:
        disruption = Disruption(BOTH, setting=setting, seed=1)
        told = {"image": torch.arange(24) % 2 == 0}
        data = DisruptedDataset(Some(), disruption, CORRUPTIONS, available=told)
        batch = collate([data[i] for i in range(24)])
        assert torch.equal(batch["available"]["image"], data.plan.available["image"])
        assert torch.equal(batch["available"]["text"], data.plan.available["text"])
        assert not batch["inputs"]["image"][1::2].any()
        assert everything([batch]) == everything(
            [collate([DisruptedDataset(Some(), disruption, CORRUPTIONS)[i] for i in range(24)])]
        )


def test_collate_shapes() -> None:
    sample = {"inputs": {"image": as_pil(photo()), "text": tokens()}, "label": 2, "id": "a"}
    batch = collate([sample, sample])
    assert batch["inputs"]["text"]["input_ids"].shape == (2, 9)
    assert len(batch["inputs"]["image"]) == 2
    assert batch["available"]["image"].tolist() == [True, True]
    assert batch["label"].tolist() == [2, 2]
    assert batch["label"].dtype == torch.long
    assert "corrupted" not in batch
    with pytest.raises(ValueError, match="samples must not be empty"):
        collate([])
    uneven = [{"inputs": {"text": torch.zeros(n).long()}} for n in (3, 4)]
    with pytest.raises(ValueError, match=r'inputs\["text"\] has rows of different shapes'):
        collate(uneven)


def test_collate_names_what_does_not_fit() -> None:
    one = {"inputs": {"image": torch.zeros(2)}, "label": 1, "id": "a"}
    for label in (np.int64(1), torch.tensor(1), True):
        assert collate([{**one, "label": label}])["label"].tolist() == [1]
    for wrong in (0.7, torch.tensor(0.7), "1", None):
        with pytest.raises(TypeError, match="label must be an integer, got"):
            collate([{**one, "label": wrong}])
    for key in ("label", "id"):
        rest = {name: value for name, value in one.items() if name != key}
        for pair in ([one, rest], [rest, one]):
            with pytest.raises(ValueError, match=f"{key} must be in all 2 samples or none, got 1"):
                collate(pair)


def test_collate_fills_what_is_missing() -> None:
    one = {"inputs": {"image": torch.ones(2), "text": "a", "table": {"x": torch.ones(3)}}}
    rows: list[Any] = [one, {"inputs": {"image": None}}, {"inputs": {"text": " "}}, {"inputs": {}}]
    batch = collate(rows)
    for name, mask in batch["available"].items():
        assert mask.tolist() == [True, False, False, False], name
    assert batch["inputs"]["image"].sum(1).tolist() == [2, 0, 0, 0]
    assert batch["inputs"]["table"]["x"].sum(1).tolist() == [3, 0, 0, 0]
    assert batch["inputs"]["text"] == ["a", "", "", ""]
    with pytest.raises(ValueError, match=r'inputs\["image"\] is missing in all 2 rows'):
        collate(rows[1:3])
    given = {"image": torch.ones(2), "text": "b", "sound": torch.ones(4)}
    batch = collate(rows[1:3], placeholders=given)
    assert list(batch["inputs"]) == ["image", "text", "sound"]
    assert not any(mask.any() for mask in batch["available"].values())
    assert not batch["inputs"]["sound"].any()
    assert batch["inputs"]["text"] == ["", ""]


def test_placeholders_hold_nothing_of_the_content() -> None:
    image = placeholder(as_pil(photo()))
    assert (image.mode, image.size, image.getextrema()) == ("RGB", (32, 24), ((0, 0),) * 3)
    empty = placeholder(tokens())
    assert not empty["input_ids"].any()
    assert empty["attention_mask"].tolist() == [1] + [0] * 8
    assert tokens()["input_ids"].any()
    assert placeholder("secret") == ""
    assert torch.equal(placeholder(torch.full((2,), float("nan"))), torch.zeros(2))
    with pytest.raises(TypeError, match="no placeholder for an input of type int"):
        placeholder(3)
