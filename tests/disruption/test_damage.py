"""Damaged batches from raw samples and from cached features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_inputs import as_pil, as_tensor, photo

from robustfusion.disruption import (
    FEATURE_DAMAGE,
    IMAGE_DAMAGE,
    TEXT_DAMAGE,
    CachedFeatures,
    ImageCorruption,
    RandomDamage,
    RawSamples,
    damage,
    sample_generator,
)

KINDS = {"image": IMAGE_DAMAGE, "text": TEXT_DAMAGE}


def make_posts(count: int = 10) -> list[dict[str, Any]]:
    """Posts of which the fourth has no image and the last no text."""
    posts: list[dict[str, Any]] = [
        {
            "inputs": {
                "image": photo((12, 16)).roll(i, -1),
                "text": f"post {i} says that it is a fine day",
            },
            "label": i % 3,
            "id": f"post-{i}",
        }
        for i in range(count)
    ]
    posts[3]["available"] = {"image": False}
    posts[-1]["inputs"]["text"] = " "
    return posts


def everything(batches: Any) -> dict[tuple[str, str, str], tuple[bytes, str, float]]:
    return {
        (batch["modality"], batch["kind"], name): (
            batch["inputs"]["image"][i].numpy().tobytes(),
            batch["inputs"]["text"][i],
            float(batch["severity"][i]),
        )
        for batch in batches
        for i, name in enumerate(batch["id"])
    }


def test_every_sample_with_the_modality_is_damaged_once_by_each_kind() -> None:
    posts = make_posts()
    found = everything(damage(posts, KINDS, batch_size=4))
    assert set(found) == {
        (modality, kind, post["id"])
        for modality, kinds in KINDS.items()
        for kind in kinds
        for i, post in enumerate(posts)
        if (modality, i) not in (("image", 3), ("text", 9))
    }
    by_id = {post["id"]: post["inputs"] for post in posts}
    for (modality, _, name), (image, text, severity) in found.items():
        assert 0.02 <= severity <= 1
        if modality == "image":
            assert text == (by_id[name]["text"] if name != "post-9" else "")
        elif name != "post-3":
            assert image == by_id[name]["image"].numpy().tobytes()
    changed = [
        key
        for key, (image, _, _) in found.items()
        if key[0] == "image" and image != by_id[key[2]]["image"].numpy().tobytes()
    ]
    assert len(changed) > 0.9 * 9 * len(IMAGE_DAMAGE)


def test_batches_hold_what_calibrate_needs() -> None:
    for batch in damage(make_posts(), KINDS, batch_size=4):
        size = len(batch["id"])
        assert set(batch) >= {"inputs", "available", "label", "modality", "kind", "severity"}
        assert batch["severity"].shape == batch["label"].shape == (size,)
        assert 0 < size <= 4
        assert batch["available"][batch["modality"]].all()
        assert batch["label"].tolist() == [int(name[5:]) % 3 for name in batch["id"]]


def test_draws_do_not_depend_on_order_batches_processes_or_the_iteration() -> None:
    posts = make_posts()
    batches = damage(posts, KINDS, seed=3)
    expected = everything(batches)
    assert everything(batches) == expected
    assert everything(damage(posts[::-1], KINDS, seed=3, batch_size=3)) == expected
    workers = RawSamples(posts, ids=[post["id"] for post in posts], num_workers=2)
    assert everything(damage(workers, KINDS, seed=3)) == expected
    other = everything(damage(posts, KINDS, seed=4))
    assert other.keys() == expected.keys()
    assert all(other[key][2] != expected[key][2] for key in expected)


def test_severities_are_uniform_over_their_range_and_differ_by_kind() -> None:
    data = CachedFeatures(
        {"image": torch.ones(400, 3), "text": torch.ones(400, 3)}, torch.arange(400) % 2
    )
    kinds = {"image": ("noise", "mask")}
    noise, mask = (b["severity"] for b in damage(data, kinds, severity=(0.2, 0.7), batch_size=400))
    for severity in (noise, mask):
        assert 0.2 <= float(severity.min()) < 0.21
        assert 0.69 < float(severity.max()) <= 0.7
        assert float(severity.mean()) == pytest.approx(0.45, abs=0.03)
    assert abs(float(torch.corrcoef(torch.stack([noise, mask]))[0, 1])) < 0.25
    (fixed,) = damage(data, {"image": ["noise"]}, severity=0.5, batch_size=400)
    assert fixed["severity"].unique().tolist() == [0.5]


def test_the_damage_is_that_of_the_corruption() -> None:
    posts = make_posts()
    (batch,) = damage(posts, {"image": ["occlusion"]}, severity=0.3, seed=5)
    for i, name in enumerate(batch["id"]):
        generator = sample_generator(5, name, "damage:image:occlusion")
        generator.random()  # the severity's draw
        clean = posts[int(name[5:])]["inputs"]["image"]
        expected = ImageCorruption(kind="occlusion", severity=0.3)(clean, generator)
        assert torch.equal(batch["inputs"]["image"][i], expected)


def test_a_swapped_input_is_that_of_another_sample() -> None:
    posts = make_posts()
    texts = {post["id"]: " ".join(post["inputs"]["text"].split()) for post in posts}
    (batch,) = damage(posts, {"text": ["swapped"]}, severity=1.0)
    partners = []
    for name, text in zip(batch["id"], batch["inputs"]["text"], strict=True):
        partners += [other for other, own in texts.items() if own == text]
        assert partners[-1] != name
    assert len(set(partners)) > 3
    with pytest.raises(ValueError, match='"swapped" needs two samples with text, got one'):
        list(damage(posts[:1], {"text": ["swapped"]}))


def test_the_mean_is_that_of_the_available_features() -> None:
    drawn = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    features = dict(zip(("image", "text"), drawn, strict=True))
    features["image"][:2] = torch.nan
    data = CachedFeatures(features, torch.arange(6) % 2, available={"image": torch.arange(6) > 1})
    (batch,) = damage(data, {"image": ["mean"]}, severity=1.0)
    assert batch["id"] == [2, 3, 4, 5]
    expected = features["image"][2:].mean(0)
    torch.testing.assert_close(batch["inputs"]["image"], expected.expand(4, 3))
    assert torch.equal(batch["inputs"]["text"], features["text"][2:])
    assert len(list(damage(data, {"image": FEATURE_DAMAGE}))) == len(FEATURE_DAMAGE)


def test_the_mean_is_computed_once_and_not_for_every_sample() -> None:
    class Counted(list[dict[str, Any]]):
        reads = 0

        def __getitem__(self, row: Any) -> Any:
            type(self).reads += 1
            return super().__getitem__(row)

    rows = [{"inputs": {"image": torch.ones(4), "text": torch.ones(4)}, "label": 0}] * 50
    posts = Counted(rows)
    for _ in damage(RawSamples(posts), {"image": ["mean"]}):
        pass
    assert Counted.reads < 5 * len(rows)  # once for the mean, once for each sample, and checks


def test_transforms_come_after_the_damage() -> None:
    posts = [
        {"inputs": {"image": as_pil(photo()), "text": "good day"}, "label": 0} for _ in range(3)
    ]
    raw = RawSamples(posts, transforms={"image": lambda x: as_tensor(x) / 255 - 0.5})
    (batch,) = damage(raw, {"image": ["black"]}, severity=1.0)
    assert torch.equal(batch["inputs"]["image"], torch.full((3, 3, 24, 32), -0.5))


def test_kinds_of_your_own() -> None:
    def shift(value: torch.Tensor, severity: float, generator: np.random.Generator) -> Any:
        return value + severity + 0 * generator.random()

    data = CachedFeatures(
        {"image": torch.zeros(4, 3), "text": torch.zeros(4, 2)}, torch.arange(4) % 2
    )
    (batch,) = damage(data, {"image": {"shift": shift}}, severity=0.25)
    assert batch["kind"] == "shift"
    assert batch["inputs"]["image"].unique().tolist() == [0.25]


def test_wrong_arguments_are_named() -> None:
    posts = make_posts(5)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({"sound": IMAGE_DAMAGE}, {}, "kinds has the key 'sound'"),
        ({}, {}, "kinds must name a kind of damage"),
        ({"image": []}, {}, "kinds must name a kind of damage"),
        ({"image": ["fog"]}, {}, r'kinds\["image"\] must be among .*mask.*, got \'fog\''),
        ({"text": ["black"]}, {}, r'kinds\["text"\] must be among .*mojibake.*, got \'black\''),
        (KINDS, {"severity": 1.2}, "severity must be a number in"),
        (KINDS, {"batch_size": 0}, "batch_size must be"),
    ]
    for kinds, options, message in cases:
        with pytest.raises(ValueError, match=message):
            damage(posts, kinds, **options)
    with pytest.raises(TypeError, match=r'kinds\["image"\] must be a sequence of names'):
        damage(posts, {"image": "black"})
    ids = CachedFeatures(
        {"image": torch.zeros(2, 3), "text": torch.zeros(2, 3).long()}, torch.tensor([0, 1])
    )
    with pytest.raises(TypeError, match=r'inputs\["text"\] must be an image, .* torch.int64'):
        damage(ids, {"text": ["mask"]})


def test_random_damage_draws_kinds_and_severities_by_sample() -> None:
    augment = RandomDamage(kinds=IMAGE_DAMAGE, severity=(0.2, 0.9))
    assert augment.kinds == IMAGE_DAMAGE[:-1]  # swapped needs a second image
    image = photo()
    results = {
        augment(image, sample_generator(0, i, "image")).numpy().tobytes() for i in range(50)
    }
    assert len(results) > 45
    first = augment(image, sample_generator(0, 1, "image"))
    assert torch.equal(first, augment(image, sample_generator(0, 1, "image")))
    hits = dict.fromkeys(("black", "white"), 0)
    two = RandomDamage(kinds=("black", "white"), severity=1.0)
    for i in range(400):
        level = int(two(image, sample_generator(0, i, "image")).max())
        hits["white" if level else "black"] += 1
    assert hits["black"] == pytest.approx(200, abs=50)
    assert RandomDamage(kinds=("blank",))("a b", sample_generator(0, 1, "text")) != "a b"


def test_random_damage_refuses() -> None:
    for wrong in ((), ("swapped", "mean"), "black"):
        with pytest.raises(ValueError, match="kinds must be names of kinds of damage"):
            RandomDamage(kinds=wrong)
    with pytest.raises(ValueError, match="severity must be a number in"):
        RandomDamage(kinds=("black",), severity=2.0)
    with pytest.raises(ValueError, match=r'kinds\["input"\] must be among .*, got \'black\''):
        RandomDamage(kinds=("black",))("a text", sample_generator(0, 1, "text"))
