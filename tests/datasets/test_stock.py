"""Stock pictures and captions make no duplicates of the posts that share them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustfusion.datasets import PostTable, stratified_split

FRACTIONS = (0.8, 0.1, 0.1)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., PostTable]:
    """Return a function that reads (picture, text) pairs as a table of two classes."""

    def read(pairs: list[tuple[str, str]], **options: Any) -> PostTable:
        for number, name in enumerate(sorted({name for name, _ in pairs if name})):
            noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            image = Image.fromarray(noise) if name != "flat.png" else Image.new("RGB", (8, 8))
            image.save(tmp_path / name)
        rows = [f"{image},{text},{n % 2}" for n, (image, text) in enumerate(pairs)]
        (tmp_path / "a.csv").write_text("\n".join(["image,text,label", *rows]))
        return PostTable(tmp_path / "a.csv", **options)

    return read


def split(posts: PostTable) -> Any:
    groups = posts.duplicate_groups()
    return stratified_split(posts.labels, FRACTIONS, seed=0, ids=posts.ids, groups=groups)


@pytest.mark.parametrize("name", ["none.png", "flat.png"])
@pytest.mark.parametrize("total", [120, 400])
def test_a_stock_picture_does_not_glue_posts(
    table: Callable[..., PostTable], name: str, total: int
) -> None:
    pairs = [(name if n % 10 else f"{n}.png", f"text {n}") for n in range(total)]
    posts = table(pairs)
    assert len(set(posts.duplicate_groups())) == total
    splits = split(posts)
    for size, fraction in zip(splits.sizes.values(), FRACTIONS, strict=True):
        assert abs(size - fraction * total) <= max(2, 0.01 * total)
    assert splits.note == ""
    report = posts.report(splits)
    (group,) = report.groups("stock image")
    assert len(group.ids) == 0.9 * total
    assert report.groups("image") == report.groups("near image") == ()
    assert f"stock image, no duplicates (stock='missing' drops it): {9 * total // 10}" in str(
        report
    )


def test_a_stock_caption_does_not_glue_posts(table: Callable[..., PostTable]) -> None:
    pairs = [(f"{n}.png", "photo" if n % 4 else f"text {n}") for n in range(60)]
    posts = table(pairs)
    assert len(set(posts.duplicate_groups())) == 60
    (group,) = posts.report().groups("stock text")
    assert len(group.ids) == 45
    dropped = table(pairs, stock="missing")
    assert int((~dropped.available["text"]).sum()) == 45
    assert dropped.available["image"].all()
    problem = dropped.report().problems[0]
    assert (problem.kind, problem.action) == ("stock text", "missing modality")
    assert problem.reason == "a stock text that 45 posts share"


def test_posts_that_are_equal_in_both_stay_together(table: Callable[..., PostTable]) -> None:
    pairs = [("none.png", f"text {n // 2}") for n in range(60)] + [("own.png", "again")] * 30
    posts = table(pairs)
    groups = posts.duplicate_groups()
    assert len(set(groups)) == 31  # thirty pairs, and one post thirty times
    splits = split(posts)
    for group in range(30):
        assert splits.split_of(str(2 * group + 1)) == splits.split_of(str(2 * group + 2))
    assert len({splits.split_of(str(n)) for n in range(61, 91)}) == 1
    assert "the largest group has 30 of 90 ids" in splits.note
    assert "note=" in repr(splits)


def test_few_posts_with_one_picture_are_duplicates(table: Callable[..., PostTable]) -> None:
    posts = table([("a.png", f"text {n}") if n < 4 else (f"{n}.png", f"t {n}") for n in range(40)])
    assert len(set(posts.duplicate_groups())) == 37
    assert posts.report().groups("stock image") == ()


def test_stock_wants_a_look_at_the_files(table: Callable[..., PostTable]) -> None:
    with pytest.raises(ValueError, match='stock must be "keep", or "missing" with verify=True'):
        table([("a.png", "x"), ("b.png", "y")], stock="missing", verify=False)
