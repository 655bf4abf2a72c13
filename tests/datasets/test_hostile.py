"""Broken files: each a listed skip, a clear error or a missing modality, as the caller says."""

import contextlib
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from robustfusion.datasets import MVSA, BadFileError, read_image

WriteMVSA = Callable[..., Path]


def truncate(folder: Path) -> None:
    path = folder / "2.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def widen(folder: Path) -> None:
    Image.new("RGB", (60_000, 10)).save(folder / "2.jpg", "JPEG")


def bomb(folder: Path, width: int = 40_000, height: int = 40_000) -> None:
    """A PNG of a few bytes whose header claims gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (folder / "2.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))


def small_bomb(folder: Path) -> None:
    bomb(folder, 9_000, 9_000)  # below Pillow's own limits


def middle_bomb(folder: Path) -> None:
    bomb(folder, 10_000, 10_000)  # where Pillow only warns


def no_photo(folder: Path) -> None:
    (folder / "2.jpg").unlink()


def empty_photo(folder: Path) -> None:
    (folder / "2.jpg").write_bytes(b"")


def folder_for_a_photo(folder: Path) -> None:
    (folder / "2.jpg").unlink()
    (folder / "2.jpg").mkdir()


def empty_text(folder: Path) -> None:
    (folder / "2.txt").write_bytes(b"")


def blank_text(folder: Path) -> None:
    (folder / "2.txt").write_bytes(b"\r\n \xff\xfe \r\n")


def control_characters(folder: Path) -> None:
    (folder / "2.txt").write_bytes(bytes(40))  # what a crashed disk leaves of a file


def no_text(folder: Path) -> None:
    (folder / "2.txt").unlink()


def pipe(folder: Path) -> None:
    (folder / "2.jpg").unlink()
    os.mkfifo(folder / "2.jpg")


def pipe_of_text(folder: Path) -> None:
    (folder / "2.txt").unlink()
    os.mkfifo(folder / "2.txt")


def endless_device(folder: Path) -> None:
    (folder / "2.jpg").unlink()
    (folder / "2.jpg").symlink_to("/dev/zero")


def link_to(target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / "2.txt").unlink()
        (folder / "2.txt").symlink_to(target)

    link.__name__ = f"link_to_{target.replace('/', '_')}"
    return link


def loop(folder: Path) -> None:
    (folder / "2.txt").unlink()
    (folder / "2.txt").symlink_to("2.txt")


def huge_photo(folder: Path) -> None:
    with (folder / "2.jpg").open("r+b") as file:
        file.truncate(64_000_001)  # sparse


def huge_text(folder: Path) -> None:
    (folder / "2.txt").write_text("so " * 400_000)


CASES = [
    (pipe, "image", "unreadable image", "2.jpg cannot be read: it is no regular file"),
    (pipe_of_text, "text", "unreadable text", "2.txt cannot be read: it is no regular file"),
    (endless_device, "image", "unreadable image", "2.jpg lies outside of the data folder"),
    (link_to("/etc/passwd"), "text", "unreadable text", "2.txt lies outside of the data folder"),
    (link_to("/etc/nothing"), "text", "unreadable text", "2.txt lies outside of the data folder"),
    (link_to("../../../x"), "text", "unreadable text", "2.txt lies outside of the data folder"),
    (loop, "text", "unreadable text", "2.txt'? cannot be read"),
    (huge_photo, "image", "unreadable image", "2.jpg has more than 64 MB"),
    (huge_text, "text", "unreadable text", "2.txt has more than 1 MB"),
    (truncate, "image", "unreadable image", "2.jpg cannot be decoded: .*truncated"),
    (widen, "image", "unreadable image", "2.jpg claims 60000 x 10 pixels"),
    (bomb, "image", "unreadable image", "decompression bomb"),
    (middle_bomb, "image", "unreadable image", "decompression bomb|claims 10000 x 10000"),
    (small_bomb, "image", "unreadable image", "claims 9000 x 9000 pixels"),
    (no_photo, "image", "missing image", "2.jpg is missing"),
    (empty_photo, "image", "unreadable image", "2.jpg is empty"),
    (folder_for_a_photo, "image", "unreadable image", "2.jpg cannot be read"),
    (empty_text, "text", "empty text", "2.txt is empty"),
    (blank_text, "text", "empty text", "2.txt holds no text"),
    (control_characters, "text", "empty text", "2.txt holds no text"),
    (no_text, "text", "missing text", "2.txt is missing"),
]


@pytest.mark.parametrize(
    ("damage", "modality", "kind", "reason"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_bad_file(
    three_posts: Path, damage: Callable[[Path], None], modality: str, kind: str, reason: str
) -> None:
    damage(three_posts / "data")

    skipped = MVSA(three_posts)
    assert skipped.ids == ["1", "3"]
    (problem,) = skipped.report().problems
    assert (problem.id, problem.kind, problem.action) == ("2", kind, "skipped")
    with pytest.raises(ValueError, match=f"'2': .*({reason})"):
        MVSA(three_posts, on_bad="raise")

    kept = MVSA(three_posts, on_bad="missing")
    assert kept.ids == ["1", "2", "3"]
    assert kept[1]["available"] == {"image": modality != "image", "text": modality != "text"}
    assert kept.report().problems[0].action == "missing modality"
    assert kept.content_digest(1, modality) is None
    assert f"{kind} (missing modality): 1" in str(kept.report())


def test_a_post_with_neither_is_skipped_whatever_the_caller_says(three_posts: Path) -> None:
    no_photo(three_posts / "data")
    no_text(three_posts / "data")
    dataset = MVSA(three_posts, on_bad="missing")
    assert dataset.ids == ["1", "3"]
    (problem,) = dataset.report().problems
    reason = "neither image nor text: 2.jpg is missing; 2.txt is missing"
    assert problem == ("2", "no modality", reason, "skipped")


def test_a_label_row_with_a_missing_column(three_posts: Path) -> None:
    path = three_posts / "labelResultAll.txt"
    path.write_text("ID\ttext,image\n1\tpositive\n2\n3\tneutral,neutral\n")
    dataset = MVSA(three_posts)
    assert dataset.ids == ["3"]
    reasons = [problem.reason for problem in dataset.report().problems]
    assert "line 2: expected 'text,image' labels, got 'positive'" in reasons
    assert "line 3: expected 1 column(s) after the id, got 0" in reasons
    with pytest.raises(ValueError, match="2 bad rows"):
        MVSA(three_posts, on_bad="raise")


@pytest.mark.parametrize("header", ["ID\ttext", "ID", "ID\ttext,image\ttext,image", "ID\timage"])
def test_a_label_header_with_a_missing_column(three_posts: Path, header: str) -> None:
    path = three_posts / "labelResultAll.txt"
    path.write_text(path.read_text().replace("ID\ttext,image", header))
    with pytest.raises(ValueError, match="must have the columns 'ID' and one or three"):
        MVSA(three_posts)


def test_no_usable_row(three_posts: Path) -> None:
    path = three_posts / "labelResultAll.txt"
    path.write_text("ID\ttext,image\n1\tpositive\n")
    with pytest.raises(ValueError, match=r"no row of .* could be read; line 2"):
        MVSA(three_posts)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="no row of"):
        MVSA(three_posts)


def test_unknown_labels_and_repeated_ids(three_posts: Path) -> None:
    with (three_posts / "labelResultAll.txt").open("a") as file:
        file.write("4\tpositive,glad\n1\tpositive,positive\n1\tnegative,negative\n")
    dataset = MVSA(three_posts)
    assert dataset.ids == ["1", "2", "3"]
    assert dataset.posts[0].label_name == "positive"
    report = dataset.report()
    assert report.rows == 6 == report.posts + len(report.problems)
    reasons = " ".join(problem.reason for problem in report.problems)
    assert "unknown label 'glad'" in reasons
    assert "with the same labels" in reasons
    assert "with the different labels" in reasons


def test_an_id_cannot_leave_the_folder(three_posts: Path) -> None:
    (three_posts / "secret.txt").write_text("secret")
    with (three_posts / "labelResultAll.txt").open("a") as file:
        file.write("../secret\tpositive,positive\n")
    report = MVSA(three_posts, on_bad="missing").report()
    assert report.posts == 3
    assert "the id '../secret' is not made of" in report.problems[0].reason


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_label_file_with_crlf_and_other_encodings(three_posts: Path, encoding: str) -> None:
    path = three_posts / "labelResultAll.txt"
    content = path.read_text().replace("\n", "\r\n") + "\r\n\r\n"
    path.write_bytes(content.encode(encoding))
    assert MVSA(three_posts, on_bad="raise").ids == ["1", "2", "3"]


def test_label_file_with_bare_carriage_returns(three_posts: Path) -> None:
    path = three_posts / "labelResultAll.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    assert MVSA(three_posts, on_bad="raise").ids == ["1", "2", "3"]


def test_without_a_header_one_short_row_does_not_condemn_the_others(write_mvsa: WriteMVSA) -> None:
    votes = "\t".join(["positive,neutral"] * 3)
    root = write_mvsa({str(number): votes for number in range(1, 5)})
    path = root / "labelResultAll.txt"
    _, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first.rpartition("\t")[0], *rest]))
    dataset = MVSA(root)
    assert dataset.ids == ["2", "3", "4"]
    assert (
        dataset.report().problems[0].reason == "line 1: expected 3 column(s) after the id, got 2"
    )


def test_texts_with_crlf_latin_1_and_a_byte_order_mark(three_posts: Path) -> None:
    data = three_posts / "data"
    (data / "1.txt").write_bytes("un café\r\nnoir\r\n".encode("latin-1"))
    (data / "2.txt").write_bytes("un café".encode("utf-8-sig"))
    dataset = MVSA(three_posts)
    assert dataset[0]["inputs"]["text"] == "un caf\nnoir"
    assert dataset[1]["inputs"]["text"] == "un café"
    assert dataset.report().lossy_texts == ("1",)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_become_rgb(three_posts: Path, mode: str) -> None:
    path = three_posts / "data" / "2.jpg"
    if mode == "I;16":
        image = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))
    else:
        image = Image.open(path).convert(mode)
    # A palette with transparency makes Pillow warn, and warnings are errors here.
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    image.save(path, "TIFF" if mode == "CMYK" else "PNG", **options)
    assert MVSA(three_posts)[1]["inputs"]["image"].mode == "RGB"


def write_picture(folder: Path, pixels: np.ndarray, kind: str = "PNG", **options: Any) -> Any:
    """Save an array under the name of a post's picture and read that post."""
    Image.fromarray(pixels).save(folder / "data" / "2.jpg", kind, **options)
    image = MVSA(folder)[1]["inputs"]["image"]
    assert image.mode == "RGB"
    return np.asarray(image)[..., 0]


def test_sixteen_bits_and_floats_are_scaled_not_clipped(three_posts: Path) -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    expected = np.linspace(0, 255, 64).reshape(8, 8)
    for pixels, kind in (
        (ramp.astype(np.uint16), "PNG"),
        (ramp.astype(np.uint16), "TIFF"),
        ((ramp * 3 + 100).astype(np.int32), "TIFF"),
        ((ramp / 65535).astype(np.float32), "TIFF"),
        ((ramp / 257).astype(np.float32), "TIFF"),
        ((ramp - 7000).astype(np.float32), "TIFF"),
    ):
        found = write_picture(three_posts, pixels, kind)
        assert np.abs(found - expected).max() <= 1, (pixels.dtype, kind)
    dim = np.full((8, 8), 0.5, np.float32)
    assert write_picture(three_posts, dim, "TIFF").max() == 128
    dim[0, 0] = np.nan
    assert write_picture(three_posts, dim, "TIFF")[0, 0] == 0
    dark = np.full((8, 8), 300, np.uint16)
    assert write_picture(three_posts, dark).max() == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(three_posts: Path, orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # bright at the top left, as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = three_posts / "data" / "2.jpg"
    Image.fromarray(pixels).save(path, "JPEG", exif=exif, quality=95)
    found = np.asarray(MVSA(three_posts)[1]["inputs"]["image"].convert("L"))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("L"))
    assert np.array_equal(found, expected)
    assert found.shape == ((16, 32) if orientation < 5 else (32, 16))


def test_a_broken_exif_block_costs_nothing(three_posts: Path) -> None:
    path = three_posts / "data" / "2.jpg"
    Image.open(path).save(path, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert MVSA(three_posts)[1]["available"]["image"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_transparent_shows_a_white_ground(three_posts: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode if mode != "P" else "RGBA")
    options = {}
    if mode == "P":
        image, options = Image.new("P", (8, 8), 0), {"transparency": 0}
    if mode == "L":
        image, options = Image.new("L", (8, 8), 7), {"transparency": 7}
    image.save(three_posts / "data" / "2.jpg", "PNG", **options)
    found = np.asarray(MVSA(three_posts)[1]["inputs"]["image"])
    assert found.min() == 255
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    half.save(three_posts / "data" / "2.jpg", "PNG")
    assert np.asarray(MVSA(three_posts)[1]["inputs"]["image"]).mean() == 127


def test_links_are_followed_where_the_caller_says_so(three_posts: Path, tmp_path: Path) -> None:
    data = three_posts / "data"
    (data / "2.jpg").rename(tmp_path / "elsewhere.jpg")
    (data / "2.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert MVSA(three_posts).ids == ["1", "3"]
    assert MVSA(three_posts, allow_outside=True).ids == ["1", "2", "3"]
    (data / "2.jpg").unlink()
    (data / "2.jpg").symlink_to("1.jpg")  # a link that stays inside needs no leave
    assert MVSA(three_posts).ids == ["1", "2", "3"]
    data.rename(tmp_path / "moved")
    data.symlink_to(tmp_path / "moved")  # the folder is the caller's own choice
    assert MVSA(three_posts).ids == ["1", "2", "3"]


def test_a_reason_never_tells_what_lies_outside(three_posts: Path) -> None:
    told = set()
    for target in ("/etc/passwd", "/etc/nothing", "/etc", "/dev/null"):
        link_to(target)(three_posts / "data")
        (problem,) = MVSA(three_posts).report().problems
        with pytest.raises(BadFileError) as error:
            MVSA(three_posts, verify=False)[1]
        told.add((problem, str(error.value)))
    assert len(told) == 1


def test_read_image_keeps_to_a_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    Image.new("RGB", (2, 2)).save(inside / "b.png")
    assert read_image(tmp_path / "a.png").size == (2, 2)
    assert read_image(inside / "b.png", within=inside).size == (2, 2)
    for name in ("../a.png", "../nothing.png", str(tmp_path / "a.png"), "x/../../a.png"):
        with pytest.raises(BadFileError, match="lies outside of the data folder"):
            read_image(inside / name, within=inside)
    with pytest.raises(BadFileError, match="is missing"):
        read_image(inside / "c.png", within=inside)
    with pytest.raises(BadFileError, match="cannot be read"):
        read_image(inside / "a\0.png", within=inside)


def test_a_way_through_the_outside_tells_nothing_of_it(tmp_path: Path) -> None:
    inside, out = tmp_path / "inside", tmp_path / "out"
    for folder in (inside / "sub", out / "deep"):
        folder.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(inside / "a.png")
    (out / "file").write_bytes(b"x")
    (out / "link").symlink_to(out / "deep")
    (out / "back").symlink_to(inside)
    (out / "loop").symlink_to(out / "loop")
    told: dict[str, set[str]] = {}
    for there in ("deep", "file", "link", "back", "loop", "nothing"):
        for form in (f"../out/{there}/../../inside/a.png", f"../out/{there}/a.png"):
            for cell in (form, str(inside / form), form.replace("..", "sub/../..", 1)):
                try:
                    outcome = str(read_image(inside / cell, within=inside).size)
                except BadFileError as error:
                    outcome = str(error)
                told.setdefault(form.replace(there, "X"), set()).add(outcome)
    through, outside = told.values()
    assert through == {"(2, 2)"}
    assert outside == {"a.png lies outside of the data folder"}
    with pytest.raises(BadFileError, match=r"^\.\. lies"):  # not the name of a folder out there
        read_image(inside / "..", within=inside)


def test_a_folder_may_be_named_by_a_link_and_by_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "inside" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "inside" / "sub")
    monkeypatch.chdir(tmp_path)
    for folder in ("inside", "inside/sub/..", "elsewhere/link/..", "./inside/."):
        for cell in ("a.png", "sub/../a.png", str(Path(folder).absolute() / "a.png")):
            assert read_image(Path(folder) / cell, within=folder).size == (2, 2), (folder, cell)


def test_a_label_file_that_is_a_pipe(three_posts: Path) -> None:
    (three_posts / "labelResultAll.txt").unlink()
    os.mkfifo(three_posts / "labelResultAll.txt")
    with pytest.raises(FileNotFoundError, match="no regular file"):
        MVSA(three_posts)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_pictures_are_read_or_refused(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(kind)
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    path = tmp_path / "picture"
    Image.fromarray(noise).save(path, kind)
    whole = path.read_bytes()
    for _ in range(5000 if request.config.getoption("--long") else 150):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.randint(1, 2 * len(content))])
        with contextlib.suppress(BadFileError):
            assert read_image(path).mode == "RGB"
