"""Predict the posts of a table with a saved run of drf_mvsa.py.

    python examples/predict.py runs/drf_mvsa-001 posts.csv --output predictions.csv

``posts.csv`` (or ``.tsv``, ``.jsonl``, ``.parquet``) has a column ``image`` with paths, relative
to the table, and a column ``text``; either cell may be empty. Pictures are opened in the table's
folder only, or that of ``--image-root``. The result has a row for each row, with all its columns
and beside them:

- ``label`` and the probability of each class; with ``--abstain 0.1`` no label for the least
  certain tenth, by the line that is a tenth for the run's validation posts;
- ``image_quality``, ``text_quality``: what the head weighs the modality by, between 0 and 1 (a
  density with ``--recipe paper``);
- ``image_p``, ``text_p``: the p-value, the share of intact posts that look at least as odd;
- ``alarm``: the modalities with a p-value of at most ``--alarm-rate``, as so many of the intact
  ones have by chance;
- which were ``missing``, which of these were ``recovered`` from the other, and the ``problem``
  with the row. The exit status is 1 if there is one in any.

Where the table has a column of that name already, ours is called ``predicted_label`` and so on.

Needs ``robustfusion[examples]`` and, for Parquet, pyarrow.
"""

import os
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
    from main_job.tables import table_writer
    from main_job.training import catch_interrupt
    from tqdm.auto import tqdm

    from robustfusion.datasets import BadFileError, read_image
    from robustfusion.datasets.pictures import decode
    from robustfusion.datasets.reading import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, check_size
    from robustfusion.datasets.tables import read_table
    from robustfusion.disruption.data import is_missing
except ImportError as error:
    sys.exit(f'{error}. The examples need: pip install "robustfusion[examples]"')

MADE_UP = "This model was trained on made-up posts: to it real ones look strange, as they should."
SHOWN = 20  # bad rows that are told one by one


def open_table(path: Path) -> tuple[list[dict[str, Any] | str], tuple[str, ...]]:
    """Return the rows of a table, or why one is none, and the names of the columns."""
    try:
        rows, columns = read_table(path)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"{path} cannot be read as a table ({reason})") from error
    if not columns:
        raise SetupError(f"{path} has no rows")
    return [row for _, row in rows], columns


class Source(NamedTuple):
    """Where a row has its picture and its text."""

    columns: dict[str, str]  # modality to column, "" for none
    root: Path
    confined: bool


class Rule(NamedTuple):
    """When to warn of a row, and when to give no label."""

    alarm_rate: float  # p-values up to it are an alarm
    certainty: float  # the least probability that is answered


def make_rule(predictor: Predictor, alarm_rate: float, abstain: float) -> Rule:
    """Draw both lines by the validation posts of the run."""
    least = 1 / (predictor.references + 1)
    if alarm_rate < least:
        print(
            f"no alarm is possible at --alarm-rate {alarm_rate}: by {predictor.references} "
            f"validation posts no p-value is below {least:.4f}",
            file=sys.stderr,
        )
    known = predictor.certainty
    left_out = round(abstain * len(known))
    return Rule(alarm_rate, known[left_out] if left_out else 0.0)


def read_row(row: dict[str, Any] | str, source: Source) -> tuple[Any, str | None, str]:
    """Return the picture, the text and what is wrong: an empty cell is fine, a bad file is not."""
    if isinstance(row, str):  # why it is none
        return None, None, row
    cells = {name: row.get(column) for name, column in source.columns.items()}
    image, text, problems = None, None, []
    try:
        if not is_missing(cells["image"]):
            image = read_picture(cells["image"], source)
    except BadFileError as error:
        problems.append(str(error))
    try:
        if not is_missing(cells["text"]):
            text = str(cells["text"]).strip()
            check_size(text.encode("utf-8", "replace"), MAX_TEXT_BYTES, "the text")
    except BadFileError as error:
        text = None
        problems.append(str(error))
    if image is None and text is None:
        problems.append("neither image nor text")
    return image, text, "; ".join(problems)


def read_picture(cell: Any, source: Source) -> Any:
    """Open what a cell holds: a path, or in Parquet the picture itself."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        check_size(cell, MAX_IMAGE_BYTES, "the picture")
        return decode(cell, "the picture")
    # Without its "..", by which a path could ask what there is outside and come back.
    path = os.path.normpath(source.root.absolute() / str(cell).strip())
    return read_image(path, within=source.root if source.confined else None)


def predict_rows(
    predictor: Predictor, rows: list[dict[str, Any] | str], source: Source, rule: Rule
) -> list[dict[str, Any]]:
    """Predict a batch of rows."""
    read = [read_row(row, source) for row in rows]
    output = predictor([r[0] for r in read], [r[1] for r in read])
    probabilities = [[round(p, 6) for p in row] for row in output.logits.softmax(1).tolist()]
    quality = {name: q.exp().tolist() for name, q in output.log_quality.items()}
    p_value = {name: p.tolist() for name, p in predictor.p_values(output).items()}
    results = []
    for index, (image, text, problem) in enumerate(read):
        here = [name for name, value in (("image", image), ("text", text)) if value is not None]
        missing = [name for name in source.columns if name not in here]
        best = max(range(len(predictor.class_names)), key=probabilities[index].__getitem__)
        certain = bool(here) and probabilities[index][best] >= rule.certainty
        result: dict[str, Any] = {"label": predictor.class_names[best] if certain else None}
        for name, p in zip(predictor.class_names, probabilities[index], strict=True):
            result[f"probability_{name}"] = p if here else None
        for kind, values in (("quality", quality), ("p", p_value)):
            for name in source.columns:
                found = round(values[name][index], 6) if name in here else None
                result[f"{name}_{kind}"] = found
        odd = [name for name in here if p_value[name][index] <= rule.alarm_rate]
        restored = [name for name in missing if here and name in output.recovered]
        words = {"alarm": odd, "missing": missing, "recovered": restored}
        result |= {column: " ".join(names) for column, names in words.items()}
        results.append({**result, "problem": problem})
    return results


def report(problems: Iterable[tuple[int, str]], rows: int) -> str:
    """List bad rows with their reasons."""
    problems = list(problems)
    lines = [f"  row {number}: {reason}" for number, reason in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more, in the column problem")
    elsewhere = ("is missing", "lies outside")
    if 2 * sum(any(word in reason for word in elsewhere) for _, reason in problems) > rows:
        lines.append("Do the pictures lie elsewhere? --image-root names their folder.")
    return "\n".join([f"{len(problems)} bad {'row' if len(problems) == 1 else 'rows'}:", *lines])


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/drf_mvsa-001.")],
    table: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines or Parquet.")],
    output: Annotated[Path, typer.Option(help="CSV or Parquet.")] = Path("runs/predictions.csv"),
    image_column: Annotated[str, typer.Option(help='"" for none.')] = "image",
    text_column: Annotated[str, typer.Option(help='"" for none.')] = "text",
    image_root: Annotated[
        Path | None, typer.Option(help="What paths are relative to; by default the table.")
    ] = None,
    alarm_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of intact posts that may alarm.")
    ] = 0.05,
    abstain: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of posts, the least certain, unanswered.")
    ] = 0.0,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Also open pictures outside of that folder.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
) -> None:
    """Predict the posts of a table; a cell that is empty is a missing modality."""
    problems, counts, alarms, done = [], Counter[str](), Counter[str](), 0
    try:
        check_device(device)
        rows, known = open_table(table)
        columns = {"image": image_column, "text": text_column}
        for name, column in columns.items():
            if column and column not in known:
                raise SetupError(
                    f"{table} has no column {column!r}, only {list(known)}: name it with "
                    f"--{name}-column, or give '' for none"
                )
        if output.is_dir():
            raise SetupError(f"--output {output} is a folder: give the name of a file")
        if output.exists() and output.samefile(table):
            raise SetupError(f"{output} is the table itself: choose another --output")
        if output.exists() and not overwrite:
            raise SetupError(f"{output} is there already: choose another --output, or --overwrite")
        predictor = Predictor(run, device)
        source = Source(columns, image_root or table.parent, confined=not allow_outside)
        rule = make_rule(predictor, alarm_rate, abstain)
        # Every column comes along; ours step aside where it has the name already.
        made = ["row", *predict_rows(predictor, rows[:1], source, rule)[0]]
        ours = {name: f"predicted_{name}" if name in known else name for name in made}
        names = [ours["row"], *known, *(ours[name] for name in made[1:])]
        bar = tqdm(total=len(rows), unit="row", leave=False, disable=None)
        with catch_interrupt() as interrupted, bar, table_writer(output, names) as write:
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                results = predict_rows(predictor, part, source, rule)
                for number, result in enumerate(results, start + 1):
                    if result["problem"]:
                        problems.append((number, result["problem"]))
                    counts[result["label"] or "no prediction"] += 1
                    alarms.update(result["alarm"].split())
                    result["row"] = number
                both = zip(part, results, strict=True)
                write(
                    {**(row if isinstance(row, dict) else {}), **{ours[n]: own[n] for n in made}}
                    for row, own in both
                )
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
        print(report(problems, len(rows)), file=sys.stderr)
    print(", ".join(f"{count} {label}" for label, count in counts.most_common()))
    told = ", ".join(f"{alarms[name]} for the {name}" for name in columns)
    print(f"alarms at {alarm_rate:.0%}: {told}")
    if predictor.generated:
        print(MADE_UP)
    if done < len(rows):
        print(f"\nInterrupted: {done} of {len(rows)} rows are in {output}", file=sys.stderr)
        raise typer.Exit(130)
    print(f"{done} rows are in {output}")
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
