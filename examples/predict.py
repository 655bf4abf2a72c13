"""Predict the posts of a table with a saved run of drf_mvsa.py.

    python examples/predict.py runs/drf_mvsa-001 posts.csv --output predictions.csv

``posts.csv`` (or ``.parquet``) has a column ``image`` with paths, relative to the table, and a
column ``text``; either cell may be empty. The result has a row for each row: the label, the
probability of each class, how likely each modality is intact, which were missing, which of these
the head recovered from the other, and what was wrong with the row. Needs
``robustfusion[examples]`` and, for Parquet, pyarrow.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from main_job.encoders import SetupError
    from main_job.predictor import Predictor
    from main_job.run_folder import check_device
    from main_job.training import catch_interrupt
    from tqdm.auto import tqdm

    from robustfusion.datasets.reading import BadFileError, read_image
except ImportError as error:
    sys.exit(f'{error}. The examples need: pip install "robustfusion[examples]"')

SHOWN = 20  # bad rows that are told one by one


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a CSV or Parquet file as one dictionary a row."""
    try:
        if path.suffix.lower() == ".parquet":
            return list(_parquet().read_table(path).to_pylist())
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"{path} cannot be read as a table ({reason})") from error


@contextmanager
def table_writer(path: Path, names: list[str]) -> Iterator[Any]:
    """Yield a function that takes rows: CSV is written as they come, Parquet at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".parquet":
        pq, kept = _parquet(), []
        yield kept.extend
        import pyarrow

        columns = {name: [row[name] for row in kept] for name in names}
        pq.write_table(pyarrow.table(columns), path)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        yield writer.writerows


def read_row(
    row: dict[str, Any], columns: dict[str, str], root: Path
) -> tuple[Any, str | None, str]:
    """Return the picture, the text and what is wrong: an empty cell is fine, a bad file is not."""
    cells = {}
    for name, column in columns.items():
        cell = row.get(column) if column else None
        # In Parquet an empty number is NaN, which is not equal to itself.
        cells[name] = "" if cell is None or cell != cell else str(cell).strip()
    image, problems = None, []
    if None in row:
        problems.append("more cells than columns")
    if cells["image"]:
        try:
            image = read_image(root / cells["image"])
        except (BadFileError, ValueError, OSError) as error:
            problems.append(str(error))
    if image is None and not cells["text"]:
        problems.append("neither image nor text")
    return image, cells["text"] or None, "; ".join(problems)


def predict_rows(
    predictor: Predictor, rows: list[dict[str, Any]], columns: dict[str, str], root: Path
) -> list[dict[str, Any]]:
    """Predict a batch of rows."""
    read = [read_row(row, columns, root) for row in rows]
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
        for name in columns:
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
        if output.exists() and (not overwrite or output.samefile(table)):
            raise SetupError(f"{output} is there already: choose another, or --overwrite")
        predictor = Predictor(run, device)
        root = table.parent if image_root is None else image_root
        names = ["row", *(c for c in columns.values() if c)]
        names += list(predict_rows(predictor, rows[:1], columns, root)[0])
        bar = tqdm(total=len(rows), unit="row", leave=False, disable=None)
        with catch_interrupt() as interrupted, bar, table_writer(output, names) as write:
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                results = predict_rows(predictor, part, columns, root)
                for number, (row, result) in enumerate(zip(part, results, strict=True), start + 1):
                    given = {c: row[c] for c in columns.values() if c}
                    result.update({"row": number, **given})
                    if result["problem"]:
                        problems.append((number, result["problem"]))
                    counts[result["label"] or "no prediction"] += 1
                write(results)
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


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError("Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow.parquet


if __name__ == "__main__":
    typer.run(main)
