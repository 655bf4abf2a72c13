"""Predict the posts of a table with a saved run of drf_mvsa.py.

    python examples/predict.py runs/drf_mvsa-001 posts.csv

``posts.csv`` (or ``.tsv``, ``.jsonl``, ``.parquet``) has a column of image paths and a column of
texts, named as in the run's own table (else ``image`` and ``text``); either cell may be empty.
Pictures are opened only in the folder of ``--image-root``: by default the run's, or the table's.
The result, ``predictions.csv`` in ``--output-dir`` (``.parquet`` for a Parquet table), has a row
for each row of the table, with all its columns and these:

- ``label`` (named as in the run's own table) and the probability of each class; with
  ``--abstain 0.1`` no label for posts less certain than the least certain tenth of the run's
  validation posts. With ``--task multilabel`` all labels that are predicted, separated as in the
  run's table, and with ``--task regression`` each number with its interval, ``price_low`` and
  ``price_high``, which covers 90 %;
- ``image_share``, ``text_share``: how much each modality contributed to the probability of the
  predicted class, its exact Shapley value, with ``--explain``;
- ``image_quality``, ``text_quality``: the quality of each modality, between 0 and 1 (a density
  with ``--recipe paper``), and ``table_quality`` of a run with ``--table-columns``, which must be
  in this table, too;
- ``image_p``, ``text_p``: the p-value, the share of intact posts that are at least as unusual;
- ``alarm``: the modalities with a p-value of at most ``--alarm-rate``; about that share of intact
  ones alarm by chance;
- ``missing`` modalities, those ``recovered`` from the other, and the ``problem`` with the row. The
  exit status is 1 if any row has a problem.

Where the table already has a column of such a name, the new one is called ``predicted_label`` and
so on.

Needs ``robustfusion[examples]`` and, for Parquet, pyarrow.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
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

    from robustfusion.datasets import PostTable, TableColumns
except ImportError as error:
    sys.exit(f'{error}. The examples need: pip install -e ".[examples]"')

GENERATED = "This model was trained on generated posts, so it flags real posts as unusual."
MAX_LISTED = 20  # bad rows that are listed one by one


class Rule(NamedTuple):
    """The limits of an alarm and of an answer."""

    alarm_rate: float  # p-values up to it are an alarm
    certainty: float  # a smaller probability gets no label


def open_table(
    path: Path,
    columns: dict[str, str],
    root: Path,
    allow_outside: bool,
    encoding: str,
    table_columns: TableColumns | None = None,
) -> PostTable:
    """Open a table of posts without labels; its pictures are read later, batch by batch."""
    try:
        table = PostTable(
            path,
            image_column=columns["image"] or None,
            text_column=columns["text"] or None,
            label_column=None,
            root=root,
            allow_outside=allow_outside,
            verify=False,
            encoding=encoding or None,
            table_columns=table_columns,
        )
    except (OSError, ValueError, ImportError) as error:
        reason, argument = str(error).splitlines()[0], str(error).partition("_column must be")
        if argument[1]:
            reason += f": name it with --{argument[0]}-column, or give '' for none"
        raise SetupError(f"{path} cannot be read as a table ({reason})") from error
    report = table.report()
    cleaned = [f"{count} cells with {what} were cleaned" for what, count in report.cleaned.items()]
    for warning in (*cleaned, *report.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    return table


def make_rule(predictor: Predictor, alarm_rate: float, abstain: float) -> Rule:
    """Set both limits by the validation posts of the run."""
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


def answer_rows(predictor: Predictor, output: Any, rule: Rule, label: str) -> list[dict[str, Any]]:
    """Return the prediction for each post: a class, labels or numbers, and how sure they are."""
    head, names = predictor.model.head, predictor.class_names
    if predictor.settings.task == "regression":
        low, high = head.interval(output)
        columns = {}
        for position, name in enumerate(names):
            columns[name] = output.logits[:, position]
            columns[f"{name}_low"], columns[f"{name}_high"] = low[:, position], high[:, position]
        values = [[round(x, 6) for x in column.tolist()] for column in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    several = predictor.settings.task == "multilabel"
    probabilities = output.logits.sigmoid() if several else output.logits.softmax(1)
    predicted, answers = head.predict(output).tolist(), []
    separator = predictor.settings.label_sep or "|"
    for row, choice in zip(probabilities.tolist(), predicted, strict=True):
        if several:
            answer = separator.join(n for n, chosen in zip(names, choice, strict=True) if chosen)
        else:
            answer = names[choice] if max(row) >= rule.certainty else None
        each = {f"probability_{n}": round(p, 6) for n, p in zip(names, row, strict=True)}
        answers.append({label: answer, **each})
    return answers


def predict_rows(
    predictor: Predictor,
    posts: Sequence[dict[str, Any]],
    rule: Rule,
    label: str,
    explained: bool = False,
) -> list[dict[str, Any]]:
    """Predict a batch of posts, each a mapping of the modalities that it has."""
    names = predictor.modalities
    columns = [[post.get(name) for post in posts] for name in names]
    output = predictor(*columns)
    answers = answer_rows(predictor, output, rule, label)
    shares = predictor.shares(*columns) if explained else {}
    quality = {name: q.exp().tolist() for name, q in output.log_quality.items()}
    p_value = {name: p.tolist() for name, p in predictor.p_values(output).items()}
    results = []
    for index, post in enumerate(posts):
        missing = [name for name in names if name not in post]
        result = {name: value if post else None for name, value in answers[index].items()}
        for name, values in shares.items():
            result[f"{name}_share"] = round(values[index], 6) if post else None
        for kind, values in (("quality", quality), ("p", p_value)):
            for name in names:
                value = round(values[name][index], 6) if name in post else None
                result[f"{name}_{kind}"] = value
        unusual = [n for n in names if n in post and p_value[n][index] <= rule.alarm_rate]
        recovered = [name for name in missing if post and name in output.recovered]
        words = {"alarm": unusual, "missing": missing, "recovered": recovered}
        results.append({**result, **{column: " ".join(names) for column, names in words.items()}})
    return results


def named(answer: Any, task: str) -> str:
    """Return the name under which an answer is counted."""
    if task == "regression":
        return "rows of numbers"
    none = "without any label" if task == "multilabel" and answer == "" else "no prediction"
    return answer or none


def report(problems: Iterable[tuple[int, str]], rows: int) -> str:
    """List bad rows with their reasons."""
    problems = list(problems)
    lines = [f"  row {number}: {reason}" for number, reason in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  and {len(problems) - MAX_LISTED} more, in the column problem")
    elsewhere = ("is missing", "lies outside")
    if 2 * sum(any(word in reason for word in elsewhere) for _, reason in problems) > rows:
        lines.append("Are the pictures in another folder? Name it with --image-root.")
    return "\n".join([f"{len(problems)} bad {'row' if len(problems) == 1 else 'rows'}:", *lines])


def check_output(output: Path, table: Path, overwrite: bool) -> None:
    """Raise SetupError where the output cannot or must not be written."""
    if output.is_dir():
        raise SetupError(f"--output {output} is a folder: give the name of a file")
    if output.exists() and table.exists() and output.samefile(table):
        raise SetupError(f"{output} is the table itself: choose another --output-dir")
    if output.exists() and not overwrite:
        raise SetupError(f"{output} is there already: choose another --output-dir, or --overwrite")


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/drf_mvsa-001.")],
    table: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines or Parquet.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of predictions.csv.")] = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(hidden=True, help="The file itself, as in former versions.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help='"" for none; by default the run\'s.')
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help='"" for none; by default the run\'s.')
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(help="Folder of all pictures; by default the run's, else the table's."),
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
    encoding: Annotated[
        str, typer.Option(help="Encoding of a table that is not UTF-8, such as cp1252.")
    ] = "",
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    explained: Annotated[
        bool, typer.Option("--explain", help="Add the contribution of each input (one class).")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
) -> None:
    """Predict the posts of a table; a cell that is empty is a missing modality."""
    problems, counts, alarms, done = [], Counter[str](), Counter[str](), 0
    try:
        check_device(device)
        ending = ".parquet" if table.suffix.lower() == ".parquet" else ".csv"
        output = output or output_dir / f"predictions{ending}"
        check_output(output, table, overwrite)
        predictor = Predictor(run, device)
        task = predictor.settings.task
        if task != "multiclass" and (abstain or explained):
            option = "--abstain" if abstain else "--explain"
            raise SetupError(f"{option} is for runs of one class a post; this one is of {task}")
        settings = predictor.settings
        options = {"image": image_column, "text": text_column}
        defaults = {"image": settings.image_column, "text": settings.text_column}
        columns = {n: defaults[n] if name is None else name for n, name in options.items()}
        if image_root is None and settings.image_root and Path(settings.image_root).is_dir():
            image_root = Path(settings.image_root)
            print(
                f"pictures are read from {image_root}, as in the run; --image-root names another"
            )
        root = image_root or table.parent
        posts = open_table(table, columns, root, allow_outside, encoding, predictor.columns)
        rule = make_rule(predictor, alarm_rate, abstain)
        label = settings.label_column
        # All columns of the table are copied; a new one of the same name is called predicted_*.
        new = ["row", *predict_rows(predictor, [{}], rule, label, explained)[0], "problem"]
        renamed = {name: f"predicted_{name}" if name in posts.columns else name for name in new}
        names = [renamed["row"], *posts.columns, *(renamed[name] for name in new[1:])]
        total = posts.row_count
        bar = tqdm(total=total, unit="row", leave=False, disable=None)
        with catch_interrupt() as interrupted, bar, table_writer(output, names) as write:
            for start in range(0, total, batch_size):
                numbers = range(start + 1, min(start + batch_size, total) + 1)
                cells, values, reasons = zip(*map(posts.read_row, numbers), strict=True)
                results = predict_rows(predictor, values, rule, label, explained)
                for number, reason, result in zip(numbers, reasons, results, strict=True):
                    if reason:
                        problems.append((number, reason))
                    counts[named(result.get(label), predictor.settings.task)] += 1
                    alarms.update(result["alarm"].split())
                    result |= {"row": number, "problem": reason}
                write(
                    {**row, **{renamed[name]: result[name] for name in new}}
                    for row, result in zip(cells, results, strict=True)
                )
                done += len(numbers)
                bar.update(len(numbers))
                if interrupted():
                    break
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise typer.Exit(130) from None
    if problems:
        print(report(problems, total), file=sys.stderr)
    print(", ".join(f"{count} {name}" for name, count in counts.most_common()))
    listed = ", ".join(f"{alarms[name]} for the {name}" for name in predictor.modalities)
    print(f"Alarms: {listed} (about {alarm_rate:.0%} of intact posts alarm, too)")
    if predictor.generated:
        print(GENERATED)
    if done < total:
        print(f"\nInterrupted: {done} of {total} rows are in {output}", file=sys.stderr)
        raise typer.Exit(130)
    print(f"{done} rows are in {output}")
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
