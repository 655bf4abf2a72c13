"""examples/predict.py: every row is answered or told why not."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

for _name in ("typer", "tqdm", "safetensors", "matplotlib", "PIL.Image"):
    pytest.importorskip(_name)

EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES = ("positive", "neutral", "negative")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import one of the example's modules."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the main job, small; its posts are beside it."""
    folder = tmp_path_factory.mktemp("predict")
    arguments = ["--limit", "60", "--epochs", "1", "--output-dir", str(folder)]
    done = start("drf_mvsa.py", *arguments)
    _, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors
    return folder / "drf_mvsa-001"


def start(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def write(path: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = ()) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header or ("image", "text"), *rows])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def invoke(example: Any, *arguments: object) -> Any:
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(example("predict").main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def picture(run: Path, tmp_path: Path) -> str:
    """A picture beside the table."""
    shutil.copy(run.parent / "posts-60-seed0" / "data" / "1.jpg", tmp_path / "picture.jpg")
    return "picture.jpg"


def test_every_row_is_answered_or_told_why_not(
    example: Any, run: Path, picture: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    posts = [
        (picture, "a lovely day"),
        ("", "what a grim day"),
        (picture, " "),
        ("broken.jpg", "so, a text"),
        ("nowhere.jpg", ""),
        ("", ""),
    ]
    table = write(tmp_path / "posts.csv", posts)
    result = invoke(example, run, table, "--output", tmp_path / "out.csv", "--batch-size", 4)
    assert result.exit_code == 1, result.output
    rows = read(tmp_path / "out.csv")
    assert [row["row"] for row in rows] == list("123456")
    assert [row["missing"] for row in rows] == [
        "", "image", "text", "image", "image text", "image text"
    ]  # fmt: skip
    for row in rows[:4]:
        scores = {name: float(row[f"probability_{name}"]) for name in CLASSES}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(scores, key=lambda name: scores[name])
    for row in rows:
        for name in ("image", "text"):
            there = name not in row["missing"].split()
            for column in (f"{name}_quality", f"{name}_p"):
                assert (row[column] != "") == there
                assert not there or 0 <= float(row[column]) <= 1
            if there:
                assert (name in row["alarm"].split()) == (float(row[f"{name}_p"]) <= 0.05)
    assert [row["problem"] for row in rows[:3]] == [""] * 3
    assert "broken.jpg cannot be decoded" in rows[3]["problem"]
    assert "neither image nor text: nowhere.jpg is missing" in rows[4]["problem"]
    assert [rows[4]["label"], rows[5]["label"]] == ["", ""]
    assert "3 bad rows:" in result.stderr
    assert "row 4: broken.jpg" in result.stderr
    assert "2 no prediction" in result.stdout


def test_predictions_are_the_models_own(example: Any, run: Path, tmp_path: Path) -> None:
    """Against the test split as the main job evaluates it, by another path."""
    import torch

    from robustfusion.datasets import MVSA, encode

    predictor = example("main_job.predictor").Predictor(run)
    dataset = MVSA(
        run.parent / "posts-60-seed0", image_transform=predictor.encoders["image"].resize
    )
    encoding = example("main_job.encoders").encoding
    encodings = {name: encoding(e, frozen=False) for name, e in predictor.encoders.items()}
    made = encode(dataset, encodings)
    with torch.no_grad():
        expected = predictor.model(made.features, made.available).logits.softmax(1)
    folder = run.parent / "posts-60-seed0" / "data"
    texts = [(folder / f"{name}.txt").read_text() for name in dataset.ids]
    table = write(
        tmp_path / "posts.csv",
        [(f"{name}.jpg", text) for name, text in zip(dataset.ids, texts, strict=True)],
    )
    options = ("--output", tmp_path / "out.csv", "--image-root", folder)
    result = invoke(example, run, table, *options)
    assert result.exit_code == 0, result.output
    got = [float(row["probability_positive"]) for row in read(tmp_path / "out.csv")]
    assert got == pytest.approx(expected[:, 0].tolist(), abs=1e-5)


def test_parquet_with_missing_values(
    example: Any, run: Path, picture: str, tmp_path: Path
) -> None:
    pandas: Any = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"photo": [picture, None], "text": [float("nan"), "a grim day"]})
    frame.to_parquet(tmp_path / "posts.parquet")
    out = tmp_path / "deep" / "out.parquet"
    result = invoke(
        example, run, tmp_path / "posts.parquet", "--output", out, "--image-column", "photo"
    )
    assert result.exit_code == 0, result.output
    made = pandas.read_parquet(out)
    assert made["missing"].tolist() == ["text", "image"]
    assert made["label"].notna().all()
    assert made["text_p"].isna().tolist() == [True, False]


def test_pictures_inside_a_table_and_lines_that_are_none(
    example: Any, run: Path, picture: str, tmp_path: Path
) -> None:
    pandas: Any = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    content = (tmp_path / picture).read_bytes()
    frame = pandas.DataFrame({"image": [{"bytes": content, "path": None}], "text": ["a day"]})
    frame.to_parquet(tmp_path / "posts.parquet")
    out = tmp_path / "out.csv"
    assert invoke(example, run, tmp_path / "posts.parquet", "--output", out).exit_code == 0
    assert read(out)[0]["missing"] == ""
    lines = ['{"image": "picture.jpg", "text": "a day", "id": 7}', "{broken", '{"text": null}']
    (tmp_path / "posts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "lines.csv"
    assert invoke(example, run, tmp_path / "posts.jsonl", "--output", out).exit_code == 1
    rows = read(out)
    assert [row["id"] for row in rows] == ["7", "", ""]
    assert [row["problem"] == "" for row in rows] == [True, False, False]
    assert "the line is no JSON" in rows[1]["problem"]


def test_the_exported_model_gives_the_same_predictions(
    example: Any, run: Path, picture: str, tmp_path: Path
) -> None:
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    runtime = pytest.importorskip("onnxruntime")
    from robustfusion.datasets import read_image

    # A post of its own: beside itself, among those it was calibrated by, rounding decides.
    image = read_image(tmp_path / picture).rotate(180)
    image.save(tmp_path / "turned.png")
    rows = [("turned.png", "so happy"), ("turned.png", ""), ("", "what a day")]
    table, out = write(tmp_path / "posts.csv", rows), tmp_path / "out.csv"
    assert invoke(example, run, table, "--output", out).exit_code == 0
    example("export_run").main(run, output=tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    opened = example("main_job.predictor").Predictor(run)
    inputs, here = opened.prepare([image, image, None], [text or None for _, text in rows])
    feed = {name: x.numpy() for name, x in inputs.items()}
    feed |= {f"has_{name}": x.numpy() for name, x in here.items()}
    probabilities, *p_values = session.run(["probabilities", "image_p", "text_p"], feed)
    for n, row in enumerate(read(out)):
        for name, value in zip(classes, probabilities[n], strict=True):
            assert float(row[f"probability_{name}"]) == pytest.approx(value, abs=1e-4)
        for name, values in zip(("image", "text"), p_values, strict=True):
            told = float(row[f"{name}_p"] or "nan")
            assert told == pytest.approx(values[n], abs=1e-4, nan_ok=True)


def test_half_an_emoji_and_other_encodings_cost_no_row(
    example: Any, run: Path, tmp_path: Path
) -> None:
    lines = ['{"image": null, "text": "a day \\ud83d"}', '{"image": null, "text": "a \\u0000day"}']
    (tmp_path / "posts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out.csv"
    result = invoke(example, run, tmp_path / "posts.jsonl", "--output", out)
    assert result.exit_code == 0, result.output
    assert [row["text"] for row in read(out)] == ["a day \ufffd", "a day"]
    assert all(row["label"] for row in read(out))
    assert "warning: 1 cells with half an emoji were cleaned" in result.stderr
    table, out = tmp_path / "posts.csv", tmp_path / "other.csv"
    table.write_bytes("image,text\n,très négatif\n".encode("cp1252"))
    result = invoke(example, run, table, "--output", out)
    assert result.exit_code == 2
    assert (
        "posts.csv is not UTF-8: line 2 has the byte 0xe8. It is probably cp1252" in result.stderr
    )
    result = invoke(example, run, table, "--output", out, "--encoding", "cp1252")
    assert result.exit_code == 0, result.output
    assert read(out)[0]["text"] == "très négatif"


def test_rows_that_are_none_keep_their_place(example: Any, run: Path, tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(12)]
    texts[4] = '"no end'  # the quotation mark is a letter
    table = tmp_path / "posts.csv"
    table.write_text("\n".join(["image,text", *(f",{text}" for text in texts)]))
    result = invoke(example, run, table, "--output", tmp_path / "out.csv")
    assert result.exit_code == 1, result.output
    rows = read(tmp_path / "out.csv")
    assert [row["text"] for row in rows] == [*texts[:4], "", *texts[5:]]
    assert rows[4]["problem"].startswith("in line 6 a quotation mark opens a cell")


def test_texts_alone(example: Any, run: Path, tmp_path: Path) -> None:
    with (tmp_path / "posts.csv").open("w", encoding="utf-8") as file:
        file.write("\ufefftext\na lovely day\n")  # as a spreadsheet saves it
    out = tmp_path / "out.csv"
    result = invoke(example, run, tmp_path / "posts.csv", "--output", out, "--image-column", "")
    assert result.exit_code == 0, result.output
    assert read(out)[0]["missing"] == "image"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "nowhere"}, "nowhere holds no model of drf_mvsa.py"),
        ({"table": "nowhere.csv"}, "nowhere.csv cannot be read as a table"),
        ({"header": ("image", "words")}, "text_column must be in posts.csv, which has"),
        ({"rows": []}, "no row of"),
        ({"exists": True}, "is there already: choose another --output-dir, or --overwrite"),
        ({"out": "posts.csv"}, "posts.csv is the table itself"),
        ({"header": ("text", "text")}, "must not name a column twice"),
        ({"folder": True}, "is a folder"),
        ({"device": "warp"}, "--device warp"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    example: Any, run: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    table = write(
        tmp_path / "posts.csv", change.get("rows", [("", "a text")]), change.get("header", ())
    )
    out = tmp_path / change.get("out", "out.csv")
    if change.get("exists"):
        out.write_text("kept")
    if change.get("folder"):
        out.mkdir()
    result = invoke(
        example,
        change.get("run", run),
        change.get("table", table),
        *("--output", out, "--device", change.get("device", "cpu")),
    )
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert out.exists() == any(change.get(key) for key in ("exists", "folder", "out"))


def problem_of(example: Any, run: Path, folder: Path, cell: str, *options: str) -> str:
    """Predict one row with a text and this picture; return what is wrong with it."""
    table = write(folder / "posts.csv", [(cell, "a text")])
    out = folder / "out.csv"
    out.unlink(missing_ok=True)
    result = invoke(example, run, table, "--output", out, *options)
    (row,) = read(out)
    assert result.exit_code == (1 if row["problem"] else 0), result.output
    assert row["missing"] == ("image" if row["problem"] else "")
    assert row["label"]
    return row["problem"]


def test_pictures_outside_of_the_folder_are_not_looked_at(
    example: Any, run: Path, picture: str, tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "real.jpg").write_bytes((tmp_path / picture).read_bytes())
    (folder / "leaves.jpg").symlink_to(tmp_path / picture)
    (folder / "stays.jpg").symlink_to("real.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "up").symlink_to(tmp_path)
    outside = "lies outside of the data folder"
    for cell in (
        f"../{picture}",
        str(tmp_path / picture),
        "../nowhere.jpg",
        str(tmp_path / "nowhere.jpg"),
        "/etc/passwd",
        "leaves.jpg",
        "device.jpg",
        f"up/{picture}",
        "up/nowhere.jpg",
        f"../{tmp_path.name}/../inside/../{picture}",
    ):
        # One reason, whether such a file exists or not.
        assert problem_of(example, run, folder, cell) == f"{Path(cell).name} {outside}", cell
    for cell in ("real.jpg", "stays.jpg", "./real.jpg", str(folder / "real.jpg")):
        assert problem_of(example, run, folder, cell) == ""
    assert problem_of(example, run, folder, f"../{picture}", "--allow-outside") == ""
    root = ("--image-root", str(tmp_path))
    assert problem_of(example, run, folder, f"inside/../{picture}", *root) == ""


def test_pictures_that_lie_elsewhere_are_asked_for(
    example: Any, run: Path, tmp_path: Path
) -> None:
    rows = [("gone.jpg", "a text"), ("../gone.jpg", "a text"), ("", "a text")]
    out = tmp_path / "out.csv"
    result = invoke(example, run, write(tmp_path / "posts.csv", rows, ()), "--output", out)
    assert result.exit_code == 1
    assert "Name it with --image-root" in result.stderr
    table = write(tmp_path / "posts.csv", [*rows, ("", "a text")], ())
    result = invoke(example, run, table, "--output", out, "--overwrite")
    assert "--image-root" not in result.stderr


def test_what_is_no_regular_file_of_modest_size_is_not_read(
    example: Any, run: Path, tmp_path: Path
) -> None:
    special = "cannot be read: it is no regular file"
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(64_000_001)
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    assert problem_of(example, run, tmp_path, "pipe.jpg") == f"pipe.jpg {special}"
    assert problem_of(example, run, tmp_path, "folder.jpg") == f"folder.jpg {special}"
    assert problem_of(example, run, tmp_path, "large.jpg") == "large.jpg has more than 64 MB"
    assert "round.jpg" in problem_of(example, run, tmp_path, "round.jpg")
    long_name = f"{'x' * 80}...{'x' * 30}"
    assert problem_of(example, run, tmp_path, "x" * 300) == f"{long_name} is missing"
    zero = ("/dev/zero", "--allow-outside")
    assert problem_of(example, run, tmp_path, *zero) == f"zero {special}"


def test_all_columns_come_along_and_none_is_a_formula(
    example: Any, run: Path, tmp_path: Path
) -> None:
    header = ("id", "text", "label", "=column")
    rows: Any = [("+a", "=cmd|'/c calc'!A0", "-1.5", "@x"), ("8", "long" * 300_000, "", "fine")]
    table = write(tmp_path / "posts.csv", rows, header)
    out = tmp_path / "out.csv"
    result = invoke(example, run, table, "--output", out, "--image-column", "")
    assert result.exit_code == 1, result.output
    first, second = read(out)
    assert list(first)[:5] == ["row", "id", "text", "label", "'=column"]
    assert list(first.values())[:5] == ["1", "'+a", "'=cmd|'/c calc'!A0", "-1.5", "'@x"]
    assert first["predicted_label"] in CLASSES
    assert "the text of row 2 has more than 1 MB" in second["problem"]
    assert (second["id"], second["missing"]) == ("8", "image text")
    assert not any(cell.startswith(("=", "@", "+")) for row in (first, second) for cell in row)


def test_lines_are_drawn_by_validation_posts(example: Any, run: Path, tmp_path: Path) -> None:
    predict = example("predict")
    predictor = example("main_job.predictor").Predictor(run)
    assert predictor.references == len(predictor.certainty) == 6
    assert predict.make_rule(predictor, 0.2, 0.0) == (0.2, 0.0)
    rule = predict.make_rule(predictor, 0.2, 0.5)
    assert sum(sure < rule.certainty for sure in predictor.certainty) == 3
    folder = run.parent / "posts-60-seed0" / "data"
    rows = [(f"{n}.jpg", (folder / f"{n}.txt").read_text()) for n in range(1, 41)]
    table = write(tmp_path / "posts.csv", [*rows, ("1.jpg", "0 1 1 0 1 0 0 1")])
    out = tmp_path / "out.csv"
    options = ("--image-root", folder, "--abstain", "0.5", "--alarm-rate", "0.2")
    result = invoke(example, run, table, "--output", out, *options)
    assert result.exit_code == 0, result.output
    answered = [row["label"] != "" for row in read(out)]
    scores = [max(float(row[f"probability_{n}"]) for n in CLASSES) for row in read(out)]
    assert answered == [score >= rule.certainty for score in scores]
    assert 0 < sum(answered) < 41
    assert "trained on generated posts" in result.stdout
    assert "about 20% of intact posts alarm" in result.stdout
    low = invoke(example, run, table, "--output", tmp_path / "low.csv", *options[:2])
    assert "no alarm is possible at --alarm-rate 0.05" in low.stderr


def test_a_disk_that_is_full_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    table = write(tmp_path / "posts.csv", [("", "a text")] * 2_000)
    out = tmp_path / "out.csv"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    arguments = [str(run), str(table), "--output", str(out)]
    process = start("predict.py", *arguments, preexec_fn=small_disk)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert re.fullmatch(r"error: .*out\.csv cannot be written \(.+\)", errors.splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["posts.csv"]


def test_ctrl_c_keeps_what_is_done(run: Path, picture: str, tmp_path: Path) -> None:
    table = write(tmp_path / "posts.csv", [(picture, "a text")] * 20_000)
    out = tmp_path / "out.csv"
    process = start("predict.py", str(run), str(table), "--output", str(out))
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size > 5_000 for p in tmp_path.glob("out.csv.*.partial")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        assert not out.exists()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("*.partial"))
    rows = read(out)
    assert f"Interrupted: {len(rows)} of 20000 rows are in" in errors
    assert 0 < len(rows) < 20_000
    assert all(row["label"] for row in rows)
