"""The text of a table: nothing is lost before the report has counted it."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from robustfusion._text import clean_text, is_missing, split_words
from robustfusion.datasets import MVSA, PostTable, TumEmo
from robustfusion.datasets.text_gate import decode, guess_encoding
from robustfusion.disruption import collate


def texts_of(path: Path, content: str | bytes, **options: Any) -> tuple[list[str], Any]:
    """Write a table of texts and labels; return the texts of its posts and the report."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    posts = PostTable(path, image_column=None, **options)
    return [posts[row]["inputs"]["text"] for row in range(len(posts))], posts.report()


def assert_counted(report: Any, lines: int) -> None:
    skipped = sum(problem.action == "skipped" for problem in report.problems)
    assert report.rows == report.posts + skipped
    assert sum(report.lines.values()) == lines


def test_a_quotation_mark_in_tsv_is_a_letter(tmp_path: Path) -> None:
    rows = [f"text {n}\tgood" for n in range(40)]
    rows[4], rows[15] = '"so it begins\tgood', 'he said "no"\tbad'
    rows[30] = '"no end\tbad'
    texts, report = texts_of(tmp_path / "a.tsv", "\n".join(["text\tlabel", *rows]))
    assert texts == [row.split("\t")[0] for row in rows]
    assert_counted(report, 41)


@pytest.mark.parametrize("ends", [(11,), (4, 15), (0,), (39,), (4, 5), (4, 15, 30)])
def test_a_quotation_mark_in_csv_costs_its_own_row_only(
    tmp_path: Path, ends: tuple[int, ...]
) -> None:
    rows = [f"text {n},good" for n in range(40)]
    for row in ends:
        rows[row] = f'"text {row} begins,bad'
    texts, report = texts_of(tmp_path / "a.csv", "\n".join(["text,label", *rows]))
    assert texts == [f"text {n}" for n in range(40) if n not in ends]
    reasons = [problem.reason for problem in report.problems if problem.kind == "label row"]
    assert len(reasons) == len(ends)
    assert report.lines == {"blank": 0, "header": 1, "rows": 40 - len(ends), "bad rows": len(ends)}


def test_a_cell_that_holds_rows_is_told(tmp_path: Path) -> None:
    rows = [f"text {n},good" for n in range(10)]
    rows[2], rows[6] = '"text 2,good', 'text 6",bad'  # quotes fit, and five rows are one cell
    texts, report = texts_of(tmp_path / "a.csv", "\n".join(["text,label", *rows]))
    assert texts == [f"text {n}" for n in (0, 1, 7, 8, 9)]
    (problem,) = (p for p in report.problems if p.kind == "label row")
    assert "a quoted cell holds the lines 4 to 8, 4 of which are rows" in problem.reason
    assert_counted(report, 11)
    assert report.lines["bad rows"] == 5


def test_cells_of_several_lines_stay_whole(tmp_path: Path) -> None:
    poem = 'Roses are red,\r\n"violets" are blue\n\nand so, on'
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text", "label"), ("1", poem, "x"), ("2", "hi", "y")])
    posts = PostTable(path, image_column=None)
    assert posts.ids == ["1", "2"]
    assert posts.rows[0]["text"] == poem
    report = posts.report()
    assert_counted(report, 6)
    assert report.warnings == ("1 rows are quoted over lines that may be rows: 2 to 5",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_byte_order_marks_decide(tmp_path: Path, encoding: str, suffix: str) -> None:
    words = ["négatif", "好", "😀"]
    if suffix == "jsonl":
        content = "".join(json.dumps({"text": word, "label": 1}) + "\n" for word in words)
    else:
        between = "\t" if suffix == "tsv" else ","
        content = "\r\n".join([f"text{between}label", *(f"{w}{between}1" for w in words)])
    texts, _ = texts_of(tmp_path / f"a.{suffix}", content.encode(encoding))
    assert texts == words


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Le café était très négatif et déjà vu"),
        ("cp1251", "очень плохой день сегодня"),
        ("shift_jis", "これはとてもいいです"),
        ("gb18030", "今天天气非常好我们去公园"),
        ("cp949", "오늘은 정말 좋은 하루입니다"),
        ("utf-16-le", "so happy today"),
        ("utf-16-be", "so happy today"),
    ],
)
def test_another_encoding_is_refused_by_name(tmp_path: Path, encoding: str, text: str) -> None:
    content = f"text,label\nplain,1\n{text},2\n".encode(encoding)
    assert guess_encoding(content) == encoding
    with pytest.raises(ValueError, match=f'a.csv is not UTF-8.*pass encoding="{encoding}"'):
        texts_of(tmp_path / "a.csv", content)
    texts, report = texts_of(tmp_path / "a.csv", content, encoding=encoding)
    assert texts == ["plain", text]
    assert report.lossy_texts == ()


def test_the_line_of_another_encoding_is_told(tmp_path: Path) -> None:
    lines = b"text,label\r\n" + b"fine,1\n" * 8 + b"caf\xe9,2\n"
    with pytest.raises(ValueError, match="line 10 has the byte 0xe9"):
        texts_of(tmp_path / "a.csv", lines)
    with pytest.raises(ValueError, match="encoding must name an encoding of Python, got 'utf-9'"):
        texts_of(tmp_path / "a.csv", lines, encoding="utf-9")


def test_one_broken_line_of_utf_8_is_one_bad_row(tmp_path: Path) -> None:
    content = "text,label\nça va,1\nbien sûr,2\n".encode() + b"caf\xe9,2\nok,1\n"
    texts, report = texts_of(tmp_path / "a.csv", content)
    assert texts == ["ça va", "bien sûr", "ok"]
    assert [p.reason for p in report.problems if p.kind == "label row"] == [
        "row 3: line 4 is not UTF-8"
    ]
    assert_counted(report, 5)


def test_half_an_emoji_is_mended_and_counted(tmp_path: Path) -> None:
    lines = ['{"text": "half \\ud83d", "label": 1}', '{"text": "\\ud83d\\ude00", "label": 1}']
    lines += ['{"text": "a\\u0000b", "label": "x\\udc00"}']
    texts, report = texts_of(tmp_path / "a.jsonl", "\n".join(lines))
    assert texts == ["half \ufffd", "😀", "ab"]
    assert report.cleaned == {"half an emoji": 2, "control characters": 1}
    assert "cells with half an emoji (cleaned): 2" in str(report)
    raw = "text,label\nraw \ud83d,1\nné,2\n".encode("utf-8", "surrogatepass")
    texts, report = texts_of(tmp_path / "a.csv", raw)
    assert texts == ["raw \ufffd", "né"]
    assert report.cleaned == {"half an emoji": 1}


WORDS = ["nan", "NaN", "None", "null", "N/A", "NA", "<NA>", "#N/A", " nan "]


@pytest.mark.parametrize("word", WORDS)
def test_words_for_missing_are_warned_of(tmp_path: Path, word: str) -> None:
    content = f"text,label\nfine,good\n{word},bad\nfine too,{word}\n"
    texts, report = texts_of(tmp_path / "a.csv", content)
    assert len(texts) == 3
    warnings = " ".join(report.warnings)
    for column in ("text", "label"):
        assert f"the column {column!r} holds the word {word.strip()!r} 1 times" in warnings
    texts, report = texts_of(tmp_path / "a.csv", content, missing_words=[word])
    assert texts == ["fine"]  # without a text or a label there is nothing left of the others
    assert report.warnings == ()


def test_ids_and_labels_that_are_nearly_equal_are_warned_of(tmp_path: Path) -> None:
    content = "id,text,label\nA1,x,Good\na1 ,y,good\n7,z,1\n7.0,z,1.0\n8,z,fine\n"
    _, report = texts_of(tmp_path / "a.csv", content)
    labels = "labels differ only by case, blanks or '.0': 'Good' (1), 'good' (1); '1' (1), '1.0'"
    assert any(warning.startswith(labels) for warning in report.warnings)
    assert any(warning.startswith("ids differ only") for warning in report.warnings)
    assert "warning: labels differ" in str(report)


@pytest.mark.parametrize("between", [";", "\t", "|"])
def test_other_separators_are_told(tmp_path: Path, between: str) -> None:
    content = f"text{between}label\nso, so{between}good\n"
    for head in ("", f"sep={between}\n"):
        texts, report = texts_of(tmp_path / "a.csv", head + content)
        assert texts == ["so, so"]
        assert "cells are separated by" in report.warnings[0]
        assert_counted(report, 2 + bool(head))


def test_a_header_in_the_middle_is_no_post(tmp_path: Path) -> None:
    content = "text,label\na,1\ntext,label\nb,2\n"
    texts, report = texts_of(tmp_path / "a.csv", content)
    assert texts == ["a", "b"]
    assert report.problems[0].reason == "row 2: the header occurs again"


def test_every_kind_of_missing_is_missing(tmp_path: Path) -> None:
    import decimal

    import numpy as np

    nan = (float("nan"), np.float32("nan"), decimal.Decimal("nan"))
    missing: list[Any] = [None, "", " \t", *nan, [], (), {}, b"", set()]
    assert all(map(is_missing, missing))
    there: list[Any] = [0, 0.0, False, "nan", [None], 10**400, 1j, object(), np.zeros(2)]
    assert not any(map(is_missing, there))


def test_collate_takes_the_same_values_for_missing() -> None:
    pandas: Any = pytest.importorskip("pandas")
    values: list[Any] = ["hi", pandas.NA, pandas.NaT, float("nan"), [], None, " "]
    batch = collate([{"inputs": {"text": value}} for value in values])
    assert batch["available"]["text"].tolist() == [True] + [False] * 6
    assert batch["inputs"]["text"] == ["hi"] + [""] * 6


def test_missing_values_of_pandas_and_parquet(tmp_path: Path) -> None:
    pandas: Any = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for value in (pandas.NA, pandas.NaT, pandas.Series([1.0, None])[1]):
        assert is_missing(value)
    frame = pandas.DataFrame(
        {
            "id": pandas.array([1, 2, 3], dtype="Int64"),
            "text": pandas.array(["a", pandas.NA, "c"], dtype="string"),
            "label": pandas.array([1, 0, pandas.NA], dtype="Int64"),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    posts = PostTable(tmp_path / "a.parquet", image_column=None)
    assert posts.ids == ["1"]
    assert posts.report().rows == 3


def test_files_of_texts_go_through_the_gate(three_posts: Path) -> None:
    data = three_posts / "data"
    (data / "1.txt").write_bytes("héllo 😀".encode("utf-16"))
    (data / "2.txt").write_bytes(b"so \x00good\x07")
    labels = three_posts / "labelResultAll.txt"
    labels.write_bytes(labels.read_text().encode("utf-16"))
    posts = MVSA(three_posts)
    assert [posts[row]["inputs"]["text"] for row in range(2)] == ["héllo 😀", "so good"]
    assert posts.report().cleaned == {"control characters": 1}
    assert_counted(posts.report(), 4)
    assert posts.report().lossy_texts == ()


def test_a_label_file_of_tumemo_in_utf_16(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "data").mkdir()
    Image.new("RGB", (9, 9), "navy").save(tmp_path / "data" / "0.jpg")
    (tmp_path / "data" / "0.txt").write_text("rain")
    (tmp_path / "all_data_id_and_label.txt").write_bytes("0 Sad\n".encode("utf-16"))
    assert TumEmo(tmp_path).ids == ["0"]
    (tmp_path / "all_data_id_and_label.txt").write_bytes(b"ID label\n\n0 Sad\n1\n")
    report = TumEmo(tmp_path).report()
    assert_counted(report, 4)
    assert report.lines == {"header": 1, "blank": 1, "rows": 1, "bad rows": 1}


def test_texts_that_are_lists_are_told(tmp_path: Path) -> None:
    row = {"text": ["a day", "a night"], "label": 1}
    texts, report = texts_of(tmp_path / "a.jsonl", json.dumps(row))
    assert texts == ["['a day', 'a night']"]
    assert report.warnings == ("1 texts are lists or mappings, read as they are written",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("so  happy\ntoday", ["so", "happy", "today"]),
        ("今天很好", ["今", "天", "很", "好"]),
        ("かなカナ", ["か", "な", "カ", "ナ"]),
        ("ดีมาก", ["ดี", "ม", "า", "ก"]),
        ("សួស្តី", ["សួ", "ស្", "តី"]),
        ("ສະບາຍ", ["ສ", "ະ", "บ".replace("บ", "ບ"), "າ", "ຍ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("오늘은 좋은", ["오늘은", "좋은"]),
        ("मैं तुमसे", ["मैं", "तुमसे"]),
        ("2024年 iPhone很好", ["2024", "年", "iPhone", "很", "好"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_of_every_script(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_clean_text_keeps_what_is_text() -> None:
    for text in ("", "a\tb\r\nc", "né 好 😀 e\u0301", "\u200d\u200f", "👩‍👩‍👧"):
        assert clean_text(text) == text
    assert clean_text(7) == "7"


NASTY = [
    *(
        "plain",
        'a "quoted" word',
        '"starts',
        'ends"',
        '"both"',
        '""',
        "comma, and more",
        "tab\there",
    ),
    *("two\nlines", 'two\r\nlines, "quoted"', "a;b|c", "négatif", "今天", "😀", "nan", "N/A", " "),
    *(
        "half \ud83d",
        "nul\x00bell\x07",
        "\ufeffmark",
        "line\u2028sep\x85",
        "=cmd",
        "'",
        "\\",
        "\\n",
    ),
]


def a_table(draw: random.Random, kind: str, most: int) -> tuple[str, list[str]]:
    """Return the content of a random table and the texts of its rows."""
    texts = [draw.choice(NASTY) for _ in range(draw.randint(2, most))]
    if kind == "tsv":
        texts = [" ".join(text.replace("\t", " ").splitlines()) or "x" for text in texts]
    rows = [(str(n), text, draw.choice("ab")) for n, text in enumerate(texts)]
    end = draw.choice(["\n", "\r\n", "\r"]) if kind != "jsonl" else "\n"
    if kind == "jsonl":
        lines = [json.dumps(dict(zip(("id", "text", "label"), row, strict=True))) for row in rows]
        return end.join(lines) + end * draw.randint(0, 2), texts
    between = "\t" if kind == "tsv" else draw.choice(",;|\t")
    table = [("id", "text", "label"), *rows]
    if kind == "tsv":
        return end.join(map(between.join, table)) + end * draw.randint(0, 2), texts
    quoted = draw.random() < 0.5

    def cell(text: str) -> str:
        needs = quoted or any(mark in text for mark in (between, '"', "\n", "\r"))
        return '"{}"'.format(text.replace('"', '""')) if needs else text

    lines = [between.join(map(cell, row)) for row in table]
    return end.join(lines) + end * draw.randint(0, 2), texts


def damage(draw: random.Random, content: bytes) -> bytes:
    """Change one byte or one line, which costs two rows at most."""
    at = draw.randrange(content.find(b"\n") + 1, len(content) + 1)
    lines = content.split(b"\n")
    match draw.randrange(5):
        case 0:
            return content[:at] + b'"' + content[at:]
        case 1:
            return content[:at] + bytes([draw.randrange(256)]) + content[at:]
        case 2:
            return content[:at] + content[at + 1 :]
        case 3:
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
            return b"\n".join(lines)
        case _:
            return content[:at] + b"\n" + content[at:]


def test_a_fuzz_of_tables_loses_no_row_that_is_not_counted(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(0)
    read = refused = 0
    for number in range(20_000 if request.config.getoption("--long") else 2_000):
        kind = draw.choice(["csv", "csv", "tsv", "jsonl"])
        whole = number % 2 == 0
        text, texts = a_table(draw, kind, 9 if whole else 20)
        # A byte more or less makes other characters of all that follows in UTF-16.
        encoding = draw.choice(["utf-8", "utf-8-sig", "cp1252", "utf-16" if whole else "utf-8"])
        options: dict[str, Any] = {}
        if encoding == "cp1252":
            text, options = (
                clean_text(text).encode(encoding, "replace").decode(encoding),
                {"encoding": encoding},
            )
        content = text.encode(encoding, "surrogatepass")
        if not whole:
            content = damage(draw, content)
        path = tmp_path / f"table.{kind}"
        path.write_bytes(content)
        try:
            posts = PostTable(path, image_column=None, **options)
        except ValueError:
            refused += 1
            continue
        read += 1
        report = posts.report()
        try:
            lines, _ = decode(content, path.name, options.get("encoding"))
        except ValueError:
            lines = []
        assert_counted(report, len(lines))
        lost = {str(n) for n in range(len(texts))} - set(posts.ids)
        told = sum(p.action == "skipped" for p in report.problems)
        if whole:
            wanted = (
                texts
                if encoding != "cp1252" or kind == "jsonl"
                else [clean_text(t).encode(encoding, "replace").decode(encoding) for t in texts]
            )
            good = [str(n) for n, t in enumerate(wanted) if clean_text(t).strip()]
            assert posts.ids == good, (content, posts.ids)
            for index, post_id in enumerate(posts.ids):
                cell = posts.posts[index].text
                assert cell == clean_text(wanted[int(post_id)]), (content, cell)
        else:
            blank = sum(not clean_text(text).strip() for text in texts)
            assert len(lost) <= 2 + blank + max(told, report.lines.get("bad rows", 0)), content
    assert read > 3 * refused
