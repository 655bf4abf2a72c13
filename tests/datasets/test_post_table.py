"""Tables of a user's own, in every format, whole and hostile."""

import csv
import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustfusion.datasets import PostTable, TableColumns, encode, stratified_split

ROWS: list[dict[str, Any]] = [
    {"id": "a", "image": "1.png", "text": "sunny", "label": "good", "user": "ann"},
    {"id": "b", "image": None, "text": "rain again", "label": "bad", "user": "bob"},
    {"id": "c", "image": "sub/2.png", "text": None, "label": "good", "user": "cy"},
    {"id": "d", "image": "1.png", "text": "so, so", "label": "odd", "user": None},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "posts"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(("1.png", "sub/2.png")):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(root / name)
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format(folder: Path, suffix: str) -> None:
    posts = PostTable(write(folder / f"posts.{suffix}", ROWS))
    assert posts.ids == ["a", "b", "c", "d"]
    assert posts.class_names == ("bad", "good", "odd")
    assert posts.labels == [1, 0, 1, 2]
    assert posts.columns == ("id", "image", "text", "label", "user")
    assert posts.splits is None
    assert posts.available["image"].tolist() == [True, False, True, True]
    assert posts.available["text"].tolist() == [True, True, False, True]
    assert posts[3]["inputs"]["text"] == "so, so"
    assert posts[2]["inputs"]["image"].size == (8, 8)
    assert posts.select(["d", "a"]).rows[1]["user"] == "ann"
    report = posts.report()
    assert (report.rows, report.posts) == (4, 4)
    assert {(p.id, p.kind, p.reason, p.action) for p in report.problems} == {
        ("b", "missing image", "the image of row 2 is an empty cell", "missing modality"),
        ("c", "missing text", "the text of row 3 is an empty cell", "missing modality"),
    }
    assert posts.duplicate_groups() == ["a", "b", "c", "a"]
    assert "PostTable posts." in repr(posts)


def test_the_same_road_as_mvsa(folder: Path) -> None:
    posts = PostTable(
        write(folder / "posts.csv", ROWS), image_transform=lambda i: i.resize((4, 4))
    )

    def pixels(images: list[Any]) -> torch.Tensor:
        return torch.tensor(np.stack([np.asarray(image) for image in images]))

    def length(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(len(text))] for text in texts])

    data = encode(posts, {"image": pixels, "text": length})
    assert data.features["image"].shape == (4, 4, 4, 3)
    assert data.features["text"][:, 0].tolist() == [5, 10, 0, 6]
    assert data.class_names == ("bad", "good", "odd")


def test_other_columns_and_row_numbers_as_ids(folder: Path) -> None:
    rows = [{"photo": "1.png", "words": "hi", "stars": n} for n in (10, 2, 2)]
    names: Any = {"image_column": "photo", "text_column": "words", "label_column": "stars"}
    posts = PostTable(write(folder / "posts.csv", rows), **names)
    assert posts.ids == ["1", "2", "3"]
    assert posts.class_names == ("2", "10")  # by value
    with pytest.raises(ValueError, match=r"label_column must be in posts\.csv, .* got 'label'"):
        PostTable(folder / "posts.csv", image_column="photo", text_column="words")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1.0, 0.0, None], ("0", "1")),
        ([True, False, True], ("False", "True")),
        (["b ", "a", "b"], ("a", "b")),
        ([0.5, 10, 2], ("0.5", "2", "10")),
    ],
)
def test_labels_of_every_type(folder: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    rows = [{"image": "1.png", "text": "hi", "label": label} for label in labels]
    posts = PostTable(write(folder / "posts.jsonl", rows))
    assert posts.class_names == names
    if None in labels:
        (problem,) = posts.report().problems
        reason = "row 3: there is no label (column 'label')"
        assert problem == ("3", "label row", reason, "skipped")


def test_the_order_of_the_classes_can_be_given(folder: Path) -> None:
    class Weather(PostTable):
        class_names = ("odd", "bad", "good")

    path = write(folder / "posts.csv", ROWS)
    assert Weather(path).labels == [2, 1, 2, 0]
    Weather.class_names = ("odd", "bad", "fine")
    with pytest.raises(ValueError, match="class_names must hold all labels"):
        Weather(path)


def test_splits_of_a_column(folder: Path) -> None:
    names = ["train", "Dev", "test", None, "train"]
    rows = [
        {"id": str(n), "image": "1.png", "text": "hi", "label": n % 2, "split": name}
        for n, name in enumerate(names)
    ]
    splits = PostTable(write(folder / "posts.jsonl", rows)).splits
    assert splits is not None
    assert (splits.train, splits.val, splits.open_test("a test")) == (("0", "4"), ("1",), ("2",))
    rows[0]["split"] = "holdout"
    with pytest.raises(ValueError, match=r"split must be train, val or test, .* 'holdout'"):
        _ = PostTable(write(folder / "posts.jsonl", rows)).splits


def test_pictures_in_the_table_itself(folder: Path) -> None:
    content = (folder / "1.png").read_bytes()
    cells = [content, {"bytes": content, "path": None}, {"bytes": None, "path": "1.png"}]
    for cell in cells:
        rows = [{"image": cell, "text": "hi", "label": 1}]
        posts = PostTable(write(folder / "posts.parquet", rows))
        assert posts.available["image"].tolist() == [True]
    assert posts[0]["inputs"]["image"].size == (8, 8)


def test_pictures_outside_are_opened_where_the_caller_says_so(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder.parent / "out.png")
    outside = ["../out.png", str(folder.parent / "out.png"), "../nothing.png", "/etc/passwd"]
    rows = [{"image": name, "text": "hi", "label": 1} for name in outside]
    path = write(folder / "posts.csv", rows)
    problems = PostTable(path).report().problems
    assert [p.reason.rpartition(" lies ")[2] for p in problems] == [
        "outside of the data folder"
    ] * 4
    posts = PostTable(path, allow_outside=True)
    assert posts.available["image"].tolist() == [True, True, False, False]
    above = PostTable(path, root=folder.parent)  # relative paths start there
    assert above.available["image"].tolist() == [False, True, False, False]


def test_bad_rows_are_single_rows(folder: Path) -> None:
    path = folder / "posts.csv"
    lines = [
        "id,image,text,label",
        "a,1.png,fine,x",
        "a,1.png,again,x",  # a repeated id
        "b,1.png,x",  # a cell too few
        "c,1.png,x,y,z",
        f"d,1.png,{'so ' * 400_000},x",  # text above 1 MB
        "e,,,x",  # neither
        "f,of/nothing.png,,x",
        ",1.png,no id,x",
        "g,1.png,no label, ",
        "",
        "h,1.png,last,y",
    ]
    path.write_text("\n".join(lines))
    before = csv.field_size_limit()
    posts = PostTable(path)
    assert csv.field_size_limit() == before
    assert posts.ids == ["a", "d", "h"]
    report = posts.report()
    assert report.rows == 10
    reasons = {p.reason for p in report.problems}
    assert reasons == {
        "row 2: the id occurred before",
        "row 3: expected 4 cells, got 3",
        "row 4: expected 4 cells, got 5",
        "the text of row 5 has more than 1 MB",
        "neither image nor text: the image of row 6 is an empty cell; "
        "the text of row 6 is an empty cell",
        "neither image nor text: of/nothing.png is missing: there is no folder 'of'; "
        "the text of row 7 is an empty cell",
        "row 8: the id is empty",
        "row 9: there is no label (column 'label')",
    }


def test_one_huge_text_costs_little(folder: Path) -> None:
    rows = [{"image": "1.png", "text": text, "label": 1} for text in ("word " * 4_000_000, "hi")]
    posts = PostTable(write(folder / "posts.csv", rows))
    assert posts.available["text"].tolist() == [False, True]
    assert posts.duplicate_groups() == ["1", "1"]


def test_json_lines_that_are_no_rows(folder: Path) -> None:
    row = json.dumps({"image": "1.png", "text": "hi", "label": 1})
    bad = ["[1, 2]", "{", "[" * 100_000, '"x"', "", '{"image": 3, "text": 5, "label": 1}']
    path = folder / "posts.jsonl"
    path.write_text("\n".join([*bad, row, '{"image": "1.png", "text": NaN, "label": 1}']))
    posts = PostTable(path)
    assert posts.ids == ["5", "6", "7"]
    assert posts[0]["inputs"]["text"] == "5"
    reasons = {p.reason for p in posts.report().problems}
    assert "the image of row 5 must be a path or bytes, got int" in reasons
    assert "row 1: expected an object, got [1, 2]" in reasons


def test_tables_that_are_none(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no regular file"):
        PostTable(folder / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="is no regular file"):
        PostTable(folder)
    (folder / "posts.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"path must end in one of \.csv, "):
        PostTable(folder / "posts.xlsx")
    for name, content in (("a.csv", b""), ("b.csv", b"image,text,label\n"), ("c.jsonl", b"{\n")):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match="no row of"):
            PostTable(folder / name)
    (folder / "d.csv").write_bytes(b"image,text,text,label\n1,2,3,4\n")
    with pytest.raises(ValueError, match="must not name a column twice"):
        PostTable(folder / "d.csv")


def test_a_file_that_is_no_parquet(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    (folder / "posts.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"posts\.parquet cannot be read as Parquet"):
        PostTable(folder / "posts.parquet")


def test_parquet_pictures_stay_in_the_file(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 128, 128, 3), np.uint8)
    contents = []
    for picture in pixels:
        Image.fromarray(picture).save(folder / "large.png")
        contents.append((folder / "large.png").read_bytes())
    large = len(contents[0])
    table = pyarrow.table(
        {
            "image": [{"bytes": c, "path": None} for c in contents[:-1]] + [None],
            "text": [f"text {n}" for n in range(40)],
            "label": [n % 2 for n in range(40)],
        }
    )
    parquet.write_table(table, folder / "posts.parquet", row_group_size=4, compression="none")
    before = pyarrow.total_allocated_bytes()
    posts = PostTable(folder / "posts.parquet")
    assert pyarrow.total_allocated_bytes() - before < 20 * large
    assert len(pickle.dumps(posts)) < large
    assert posts.available["image"].tolist() == [True] * 39 + [False]
    copy = pickle.loads(pickle.dumps(posts))
    for index in (0, 38, 17, 3):
        for data in (posts, copy):
            assert np.array_equal(np.asarray(data[index]["inputs"]["image"]), pixels[index])
    assert posts.rows[5]["image"].read()["bytes"] == contents[5]
    lazy = PostTable(folder / "posts.parquet", verify=False, label_column=None)
    assert lazy.read_row(40) == (
        {"image": None, "text": "text 39", "label": 1},
        {"text": "text 39"},
        "",
    )
    assert lazy[39]["available"] == {"image": False, "text": True}


def test_parquet_pictures_in_workers(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    content = (folder / "1.png").read_bytes()
    rows = [{"image": content, "text": f"text {n}", "label": n % 2} for n in range(6)]
    posts = PostTable(
        write(folder / "posts.parquet", rows), image_transform=lambda image: np.asarray(image)
    )
    loader = torch.utils.data.DataLoader(posts, num_workers=2, collate_fn=lambda batch: batch[0])
    assert [sample["inputs"]["text"] for sample in loader] == [f"text {n}" for n in range(6)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_damaged_tables_are_read_or_refused(
    folder: Path, suffix: str, request: pytest.FixtureRequest
) -> None:
    path = write(folder / f"posts.{suffix}", ROWS)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(2000 if request.config.getoption("--long") else 60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.randint(1, len(content))])
        try:
            posts = PostTable(path)
        except ValueError:
            continue
        for index in range(len(posts)):
            assert any(posts[index]["available"].values())


def test_folds_of_duplicates(folder: Path) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    texts = [f"text {n % 20}" for n in range(60)]
    rows = [{"image": "", "text": text, "label": n % 2} for n, text in enumerate(texts)]
    posts = PostTable(write(folder / "posts.jsonl", rows))
    groups = np.array(posts.duplicate_groups())
    folds = selection.StratifiedGroupKFold(5, shuffle=True, random_state=0)
    tested = []
    for train, test in folds.split(posts.ids, posts.labels, groups):
        assert not set(groups[train]) & set(groups[test])
        tested += test.tolist()
    assert sorted(tested) == list(range(60))
    one = stratified_split(posts.labels, seed=0, ids=posts.ids, groups=list(groups))
    assert not {texts[int(i) - 1] for i in one.train} & {texts[int(i) - 1] for i in one.val}


TAGS = [
    {"text": "boats", "tags": "sea|sun", "sea": 1, "sun": "yes", "price": "10.5", "kg": 2},
    {"text": "waves", "tags": "sea", "sea": "1", "sun": "", "price": "", "kg": 1},
    {"text": "heat", "tags": " sun | heat", "sea": 0, "sun": 0.5, "price": 7, "kg": ""},
    {"text": "fog", "tags": "|", "sea": -1, "sun": 0, "price": "-1e3", "kg": 0},
]


def read(path: Path, **options: Any) -> PostTable:
    return PostTable(path, image_column=None, **options)


def test_several_labels_in_one_column(folder: Path) -> None:
    path = write(folder / "posts.csv", TAGS)
    posts = read(path, label_column="tags", task="multilabel", label_sep="|")
    assert posts.class_names == ("heat", "sea", "sun")
    assert posts.labels == [[0, 1, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert posts.strata == [1, 1, 0, -1]  # the rarest label, the first of equally rare ones
    assert posts.report().class_counts == {"heat": 1, "sea": 2, "sun": 2}
    assert "heat 1 (25.0 %)" in str(posts.report())
    assert torch.equal(torch.as_tensor(posts[0]["label"]), torch.tensor([0.0, 1, 1]))
    lists = [{"text": "a", "tags": ["sea", "sun"]}, {"text": "b", "tags": []}]
    path = write(folder / "lists.jsonl", lists)
    assert read(path, label_column="tags", task="multilabel").labels == [[1, 1], [0, 0]]


def test_a_column_for_each_label(folder: Path) -> None:
    posts = read(write(folder / "posts.csv", TAGS), label_column=["sea", "sun"], task="multilabel")
    assert posts.class_names == ("sea", "sun")
    assert str(posts.labels) == "[[1.0, 1.0], [1.0, nan], [0.0, 0.5], [nan, 0.0]]"


def test_numbers(folder: Path) -> None:
    path = write(folder / "posts.csv", TAGS)
    posts = read(path, label_column="price", task="regression", weight_column=None)
    assert posts.labels == [[10.5], [7.0], [-1000.0]]
    assert [p.reason for p in posts.report().problems if p.kind == "label row"] == [
        "row 2: there is no number (column 'price')"
    ]
    both = read(path, label_column=["price", "sea"], task="regression")
    assert str(both.labels[1]) == "[nan, 1.0]"
    assert both.report().class_counts == {"price": 3, "sea": 4}
    assert len(set(both.strata)) == 4


def test_weights_and_columns_that_are_not_used(folder: Path) -> None:
    path = write(folder / "posts.csv", TAGS)
    posts = read(path, label_column="sea")
    assert posts.unused_numbers == ["price", "kg"]
    posts = read(path, label_column="sea", weight_column="kg")
    assert posts.weights == [2, 1, 0]
    assert posts.unused_numbers == ["price"]
    reasons = [p.reason for p in posts.report().problems if p.kind == "label row"]
    assert reasons == ["row 3: the column 'kg' holds no weight: ''"]


def test_columns_as_a_modality(folder: Path) -> None:
    rows = [
        {"image": "1.png", "text": "a", "label": n % 2, "price": p, "shop": s}
        for n, (p, s) in enumerate([(1, "x"), ("3", "y"), (None, None), ("", "new")])
    ]
    columns = TableColumns(["price", "shop"])
    posts = PostTable(write(folder / "posts.csv", rows), table_columns=columns)
    assert posts.modalities == ("image", "text", "table")
    assert posts.available["table"].tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="must be fitted"):
        posts[0]
    columns.fit(posts.select(["1", "2"]).rows)
    assert columns.entries == ("price", "price missing", "shop x", "shop y", "shop missing")
    assert [posts[n]["inputs"]["table"].tolist() for n in range(4)] == [
        [-1, 0, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0],  # a missing modality
        [0, 1, 0, 0, 0],  # a missing number and an unknown word
    ]
    assert posts[2]["available"] == {"image": True, "text": True, "table": False}
    lengths = {"text": lambda texts: torch.ones(len(texts), 2), "table": torch.stack}
    data = encode(posts, {**lengths, "image": lambda x: torch.ones(len(x), 3)})
    assert data.features["table"].shape == (4, 5)
    assert data.available["table"].tolist() == [True, True, False, True]
    assert "missing table" in {p.kind for p in posts.report().problems}
    with pytest.raises(ValueError, match=r"without another use.* got 'text'"):
        PostTable(folder / "posts.csv", table_columns=TableColumns(["text"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": ["sea", "sun"]}, "names 2 columns.*'multilabel' or 'regression'"),
        ({"label_column": "tags", "label_sep": "|"}, "label_sep is for task='multilabel'"),
        ({"label_column": "tags", "task": "multilabel"}, "no cell.*label_sep.*'multiclass'"),
        (
            {"label_column": ["sea", "sun"], "task": "multilabel", "label_sep": "|"},
            "label_sep takes one column of labels, got 2",
        ),
        (
            {"label_column": "tags", "task": "regression"},
            r"'tags' holds no number: 'sea\|sun' \(task='multiclass'\?\)",
        ),
        (
            {"label_column": ["price", "kg"], "task": "multilabel"},
            r"'price' holds '10.5', not 0, 1 or a probability \(task='regression'\?\)",
        ),
        ({"label_column": "tags", "task": "other"}, "task must be one of"),
    ],
)
def test_targets_of_another_kind(folder: Path, options: dict[str, Any], message: str) -> None:
    path = write(folder / "posts.csv", TAGS[:1] * 3)
    with pytest.raises(ValueError, match=message):
        read(path, **options)
