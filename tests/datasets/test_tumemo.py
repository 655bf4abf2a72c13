from pathlib import Path

import pytest
from PIL import Image

from robustfusion.datasets import TumEmo
from robustfusion.datasets.tumemo import EMOTIONS


def write_tumemo(root: Path, content: str, *, folder: str = "all_data", n: int = 7) -> Path:
    (root / folder).mkdir()
    for number in range(n):
        Image.new("RGB", (9, 9), (20 * number, 90, 10)).save(root / folder / f"{number}.jpg")
        (root / folder / f"{number}.txt").write_text(f"text {number}")
    (root / "all_data_id_and_label.txt").write_bytes(content.encode())
    return root


@pytest.mark.parametrize("header", ["", "ID Label\n", "id,label\r\n"])
@pytest.mark.parametrize("between", ["\t", " ", ","])
@pytest.mark.parametrize("folder", ["all_data", "data"])
def test_layouts(tmp_path: Path, header: str, between: str, folder: str) -> None:
    rows = [f"{number}{between}{name.title()}" for number, name in enumerate(EMOTIONS)]
    dataset = TumEmo(write_tumemo(tmp_path, header + "\n".join(rows), folder=folder))
    assert dataset.labels == list(range(7))
    assert dataset[6]["label_name"] == "sad"
    assert dataset[6]["inputs"]["text"] == "text 6"
    assert dataset.report().rows == 7
    assert str(dataset.report()).startswith("TumEmo: 7 posts of 7 rows")


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    content = (
        "ID label\n0 Happy\n1\n2 Glad\n0 Sad\n0 happy\n../3 Sad\n4 Sad sad\n99 Love\n5 Fear\n"
    )
    root = write_tumemo(tmp_path, content)
    report = TumEmo(root).report()
    assert report.posts == 2
    assert report.rows == 9 == report.posts + len(report.problems)
    reasons = [problem.reason for problem in report.problems]
    for expected in (
        "line 3: expected an id and an emotion, got '1'",
        "line 4: unknown emotion 'glad'",
        "line 5: the id occurred before, with the different label",
        "line 6: the id occurred before, with the same label",
        "line 7: the id '../3'",
        "line 8: expected an id and an emotion",
        "neither image nor text: 99.jpg is missing; 99.txt is missing",
    ):
        assert any(reason.startswith(expected) for reason in reasons), expected
    with pytest.raises(ValueError, match="7 bad rows"):
        TumEmo(root, on_bad="raise")


def test_wrong_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="root must hold the folder 'all_data' or 'data'"):
        TumEmo(tmp_path)
    write_tumemo(tmp_path, "ID\tlabel\n0\n")
    with pytest.raises(ValueError, match=r"no row of .* could be read; line 2"):
        TumEmo(tmp_path)
    (tmp_path / "all_data_id_and_label.txt").unlink()
    with pytest.raises(FileNotFoundError, match="label file"):
        TumEmo(tmp_path)


def test_a_line_of_commas_is_one_bad_row(tmp_path: Path) -> None:
    dataset = TumEmo(write_tumemo(tmp_path, "0 Happy\n,,\n1 Sad\n"))
    assert dataset.ids == ["0", "1"]
    reason = dataset.report().problems[0].reason
    assert reason == "line 2: expected an id and an emotion, got ',,'"
