"""Predict the posts of a table with a saved run of drf_mvsa.py.

    python examples/predict.py runs/drf_mvsa-001 posts.csv --output predictions.csv

``posts.csv`` (or ``.parquet``) has a column ``image`` with paths, relative to the table, and a
column ``text``; either cell may be empty. Pictures are opened in the table's folder only, or that
of ``--image-root``. The result has a row for each row with all its columns, and beside them the
label, the probability of each class, how likely each modality is intact, which were missing, which
of these the head recovered from the other, and what was wrong with the row; the exit status is 1
if that is so for any. Needs ``robustfusion[examples]`` and, for Parquet, pyarrow.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

try:
    import typer
    from main_job.encoders import SetupError
    from main_job.predictor import Predictor
    from main_job.run_folder import check_device
    from main_job.tables import MAX_TEXT, read_picture, read_table, table_writer
    from main_job.training import catch_interrupt
    from tqdm.auto import tqdm

    from robustfusion.datasets.reading import BadFileError
except ImportError as error:
    sys.exit(f'{error}. The examples need: pip install "robustfusion[examples]"')

SHOWN = 20  # bad rows that are told one by one


class Source(NamedTuple):
    """Where a row has its picture and its text."""

    columns: dict[str, str]  # modality to column, "" for none
    root: Path
    confined: bool


def read_row(row: dict[str, Any], source: Source) -> tuple[Any, str | None, str]:
    """Return the picture, the text and what is wrong: an empty cell is fine, a bad file is not."""
    cells = {}
    for name, column in source.columns.items():
        cell = row.get(column) if column else None
        # In Parquet an empty number is NaN, which is not equal to itself.
        cells[name] = "" if cell is None or cell != cell else str(cell).strip()
    image, text, problems = None, cells["text"], []
    if None in row:
        problems.append("more cells than columns")
    if len(text) > MAX_TEXT:
        problems.append(f"the text has {len(text):,} characters, more than {MAX_TEXT:,}")
        text = ""
    if cells["image"]:
        try:
            image = read_picture(cells["image"], source.root, confined=source.confined)
        except BadFileError as error:
            problems.append(str(error))
    if image is None and not text:
        problems.append("neither image nor text")
    return image, text or None, "; ".join(problems)


def predict_rows(
    predictor: Predictor, rows: list[dict[str, Any]], source: Source
) -> list[dict[str, Any]]:
    """Predict a batch of rows."""
    read = [read_row(row, source) for row in rows]
    output = predictor([r[0] for r in read], [r[1] for r in read])
    probabilities = output.logits.softmax(1).tolist()
    quality = {name: q.exp().tolist() for name, q in output.log_quality.items()}
    results = []
    for index, (image, text, problem) in enumerate(read):
        missing = [n for n, value in (("image", image), ("text", text)) if value is None]
        empty = len(missing) == 2
        best = max(range(len(predictor.class_names)), key=probabilities[index].__getitem__)
        result: dict[str, Any] = {"label": None if empty else predictor.class_names[best]}
        for name, p in zip(predictor.class_names, probabilities[index], strict=True):
            result[f"probability_{name}"] = None if empty else round(p, 6)
        for name in source.columns:
            result[f"quality_{name}"] = None if name in missing else round(quality[name][index], 6)
        result["missing"] = " ".join(missing)
        restored = [] if empty else [name for name in missing if name in output.recovered]
        results.append({**result, "recovered": " ".join(restored), "problem": problem})
    return results


def report(problems: Iterable[tuple[int, str]]) -> str:
    """List bad rows with their reasons."""
    problems = list(problems)
    lines = [f"  row {number}: {reason}" for number, reason in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more, in the column problem")
    return "\n".join([f"{len(problems)} bad rows:", *lines])


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/drf_mvsa-001.")],
    table: Annotated[Path, typer.Argument(help="CSV or Parquet with images and texts.")],
    output: Annotated[Path, typer.Option(help="CSV or Parquet.")] = Path("runs/predictions.csv"),
    image_column: Annotated[str, typer.Option(help='"" for none.')] = "image",
    text_column: Annotated[str, typer.Option(help='"" for none.')] = "text",
    image_root: Annotated[
        Path | None, typer.Option(help="What paths are relative to; by default the table.")
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Also open pictures outside of that folder.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
) -> None:
    """Predict the posts of a table; a cell that is empty is a missing modality."""
    problems, counts, done = [], Counter[str](), 0
    try:
        check_device(device)
        rows, columns = read_table(table), {"image": image_column, "text": text_column}
        if not rows:
            raise SetupError(f"{table} has no rows")
        known = [column for column in rows[0] if column is not None]
        for name, column in columns.items():
            if column and column not in known:
                raise SetupError(
                    f"{table} has no column {column!r}, only {known}: name it with "
                    f"--{name}-column, or give '' for none"
                )
        if output.is_dir():
            raise SetupError(f"--output {output} is a folder: give the name of a file")
        if output.exists() and (not overwrite or output.samefile(table)):
            raise SetupError(f"{output} is there already: choose another, or --overwrite")
        predictor = Predictor(run, device)
        source = Source(columns, image_root or table.parent, confined=not allow_outside)
        # Every column of the table comes along; ours step aside where it has the name already.
        made = ["row", *predict_rows(predictor, rows[:1], source)[0]]
        ours = {name: f"predicted_{name}" if name in known else name for name in made}
        names = [ours["row"], *known, *(ours[name] for name in made[1:])]
        bar = tqdm(total=len(rows), unit="row", leave=False, disable=None)
        with catch_interrupt() as interrupted, bar, table_writer(output, names) as write:
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                results = predict_rows(predictor, part, source)
                for number, result in enumerate(results, start + 1):
                    if result["problem"]:
                        problems.append((number, result["problem"]))
                    counts[result["label"] or "no prediction"] += 1
                    result["row"] = number
                both = zip(part, results, strict=True)
                write({**row, **{ours[name]: own[name] for name in made}} for row, own in both)
                done += len(part)
                bar.update(len(part))
                if interrupted():
                    break
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise typer.Exit(130) from None
    if problems:
        print(report(problems), file=sys.stderr)
    print(", ".join(f"{count} {label}" for label, count in counts.most_common()))
    if done < len(rows):
        print(f"\nInterrupted: {done} of {len(rows)} rows are in {output}", file=sys.stderr)
        raise typer.Exit(130)
    print(f"{done} rows are in {output}")
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
