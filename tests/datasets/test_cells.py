"""Pictures in cells: base64, data URIs, what is none, and paths that nearly name a file."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustfusion.datasets import MVSA, PostTable


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    (tmp_path / "sub").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "sub" / "Sea side.png")
    return (tmp_path / "sub" / "Sea side.png").read_bytes()


def read(folder: Path, cell: Any, **options: Any) -> tuple[PostTable, str]:
    """Read a table of one post with this image; return it and the reason of its problem."""
    row = json.dumps({"image": cell, "text": "hi", "label": 1})
    (folder / "posts.jsonl").write_text(row)
    posts = PostTable(folder / "posts.jsonl", **options)
    return posts, "".join(problem.reason for problem in posts.report().problems)


def test_base64_and_data_uris_are_pictures(tmp_path: Path, picture: bytes) -> None:
    letters = base64.b64encode(picture).decode()
    safe = base64.urlsafe_b64encode(picture).decode().rstrip("=")
    lines = base64.encodebytes(picture).decode()
    percent = "".join(f"%{byte:02x}" for byte in picture)
    for cell in (
        *(letters, safe, lines, f"data:image/png;base64,{letters}", f"DATA:;base64,{safe}"),
        *(f"data:image/png,{percent}", {"bytes": letters, "path": None}),
    ):
        for verify in (True, False):
            posts, reason = read(tmp_path, cell, verify=verify)
            assert reason == "", cell
            assert posts[0]["inputs"]["image"].size == (8, 8)
            assert posts[0]["available"] == {"image": True, "text": True}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("https://a.org/b.jpg", "is a URL, https://a.org/b.jpg: download it"),
        ("s3://bucket/b.jpg", "is a URL"),
        ("['a.jpg', 'b.jpg']", "is a list, ['a.jpg', 'b.jpg']: a row holds one picture"),
        (["a.jpg", "b.jpg"], "must be a path or bytes, got list"),
        ("b'\\x89PNG\\r\\n'", "is bytes written as text"),
        ("data:image/png;base64,iVBO*", "is neither a path nor base64"),
        ("/9j/" + "A" * 100, "the image of row 1 cannot be decoded"),
        (7, "must be a path or bytes, got int"),
    ],
)
def test_what_is_no_picture_is_told_by_its_kind(tmp_path: Path, cell: Any, reason: str) -> None:
    posts, found = read(tmp_path, cell)
    assert reason in found
    assert posts[0]["available"] == {"image": False, "text": True}


@pytest.mark.parametrize("cell", [[], {}, {"bytes": None, "path": ""}, " ", float("nan")])
def test_nothing_is_a_missing_picture(tmp_path: Path, cell: Any) -> None:
    _, reason = read(tmp_path, cell)
    assert reason == "the image of row 1 is an empty cell"


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("sub/sea side.PNG", "; sub/Sea side.png exists"),
        ("SUB/Sea side.png", "; sub/Sea side.png exists"),
        ("sub\\Sea side.png", "; sub/Sea side.png exists"),
        ("sub/Sea%20side.png", "; sub/Sea side.png exists"),
        ("sub/Sea side.jpg", "; sub/Sea side.png exists"),
        ("'sub/Sea side.png'", "; sub/Sea side.png exists"),
        ("photos/top.png", "; top.png exists"),
        ("other/none.png", ": there is no folder 'other'"),
        ("sub/none.png", ""),
        ("none.png", ""),
    ],
)
def test_near_misses_are_named(tmp_path: Path, picture: bytes, cell: str, hint: str) -> None:
    (tmp_path / "top.png").write_bytes(picture)
    for options in ({}, {"allow_outside": True}):
        _, reason = read(tmp_path, cell, **options)
        assert reason == f"{cell} is missing{hint}"


def test_hints_tell_nothing_of_the_outside(tmp_path: Path, picture: bytes) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "sub")
    for cell in ("../sub/sea side.png", "link/sea side.png", str(tmp_path / "sub" / "none.png")):
        _, reason = read(inside, cell)
        assert reason.endswith("lies outside of the data folder"), cell
    _, reason = read(inside, "link/../../sub/sea side.png")
    assert "exists" not in reason


def test_a_very_long_name_is_shortened(tmp_path: Path) -> None:
    _, reason = read(tmp_path, "x" * 3000)
    assert len(reason) < 200


def test_near_misses_of_a_folder_of_posts(three_posts: Path) -> None:
    (three_posts / "data" / "2.jpg").rename(three_posts / "data" / "2.JPG")
    assert MVSA(three_posts).report().problems[0].reason == "2.jpg is missing; 2.JPG exists"


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_pictures_that_use_little_of_their_range_are_counted(tmp_path: Path, bits: int) -> None:
    pixels = np.random.default_rng(0).integers(2, 2**bits, (32, 32)).astype(np.uint16)
    kind: Any = np.uint8 if bits == 8 else np.uint16
    Image.fromarray(pixels.astype(kind)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "b.png")
    (tmp_path / "posts.csv").write_text("image,text,label\na.png,x,1\nb.png,y,2\n")
    report = PostTable(tmp_path / "posts.csv").report()
    assert len(report.warnings) == (bits == 12)
    if bits == 12:
        assert report.warnings[0].startswith("1 pictures use less than an eighth of their range")
        assert "warning: 1 pictures" in str(report)
