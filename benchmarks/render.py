"""Write the results pages of the docs, and the README's figures, from the records.

    python benchmarks/render.py
    python benchmarks/render.py --main-job runs/drf_mvsa-001
    python benchmarks/render.py --end-to-end runs/drf_mvsa-002

The others keep a finished run of `examples/drf_mvsa.py` as the record of the main job, or of the
run with trained encoders on real posts.
"""

import argparse
from pathlib import Path
from typing import Any

import _render_compare
import _render_folds
import _render_monitor
import _render_mvsa
import _render_paper_scale
import _render_protocol
import _render_quality
import _render_runs
import paper_choices
from _record import counted, dated, read_record
from speed import EPOCH, SHARE

PAGES = Path(__file__).parent.parent / "docs" / "pages" / "results"
README = Path(__file__).parent.parent / "README.md"


SPEED = {
    "speed": "The parts and the heads",
    "evaluation_speed": "The robustness report",
    "disruption_speed": "Disrupting posts",
}


def render_speed() -> None:
    """Each row of the speed records beside its goal."""
    lines = [
        "# Speed",
        "",
        "Ratios within one run; times hold for the machine of that run alone. Not measured on a "
        "GPU. Kernels are non-view ATen operators, about what a GPU would launch.",
        "",
        felt(),
    ]
    for name, title in SPEED.items():
        record = read_record(name)
        machine = record["machine"]
        lines += [
            "",
            f"## {title}",
            "",
            f"{machine['cores']} cores, {counted(machine['threads'], 'thread')}, "
            f"torch {machine['torch']}. "
            f"Written by `{record['command']}` at commit `{record['commit']}` on "
            f"{record['date']}.",
            "",
            "| what | beside | ratio | goal | met |",
            "|---|---|---:|---:|---|",
        ]
        for row in record["results"]["rows"]:
            goal = "" if row["goal"] is None else f"≤ {row['goal']:g}"
            met = {None: "", True: "yes", False: "**no**"}[row["met"]]
            lines.append(
                f"| {_with(row, 'what', '')} | {_with(row, 'beside', 'beside_')} | "
                f"{row['ratio']:.2f} | {goal} | {met} |"
            )
    page = "\n".join([*lines, *long_run()]) + "\n"
    (PAGES / "speed.md").write_text(dated(page, read_record("speed")))


def felt() -> str:
    """The paragraph on what a user waits for."""
    rows = [
        r for name in ("speed", "evaluation_speed") for r in read_record(name)["results"]["rows"]
    ]
    share, epoch, report = (
        next(row for row in rows if row["what"].startswith(what))
        for what in (SHARE, EPOCH, "full grid, 19,524")
    )
    seconds = [row[key] / 1000 for row in (epoch, report) for key in ("ms", "beside_ms")]
    return (
        "What you will feel: beside encoders that train, the head takes "
        f"{100 * share['ratio']:.1f} % of a step on a CPU. On ready features it is the whole "
        f"step: an epoch of 10,000 rows takes {seconds[0]:.0f} s, of a concatenation "
        f"{seconds[1]:.1f} s. A report over every condition, with five disruption seeds, takes "
        f"{seconds[3]:.1f} s for 450 posts and {seconds[2]:.0f} s for 19,524, once the features "
        "are there."
    )


def long_run() -> list[str]:
    """What a queue and a head were like after a long time."""
    record = read_record("long_run")
    queue, head = record["results"]["queue"], record["results"]["head"]
    return [
        "",
        "## A long run",
        "",
        f"`{record['command']}` at commit `{record['commit']}` on {record['date']}. Drift is the "
        "largest relative difference of the running moments from exact ones in float64; growth is "
        "that of the process's memory after warming up.",
        "",
        "| what | drift | memory, MiB | growth, MiB |",
        "|---|---:|---:|---:|",
        *(
            f"| {what} | {part['largest_relative_drift']:.1e} | {part['resident_mib']:.0f} | "
            f"{part['resident_growth_mib']:.2f} |"
            for what, part in (
                (f"{queue['enqueues']:,} enqueues", queue),
                (f"{head['steps']:,} training steps of DRFHead, all state finite", head),
            )
        ),
    ]


def _with(row: dict[str, Any], name: str, prefix: str) -> str:
    """A name with its measurement."""
    if f"{prefix}ms" in row:
        time = row[f"{prefix}ms"]
        return f"{row[name]} ({f'{time:.3g} ms' if time < 1000 else f'{time / 1000:.3g} s'})"
    if f"{prefix}count" in row:
        return f"{row[name]} ({row[f'{prefix}count']:,})"
    return f"{row[name]} ({row[f'{prefix}bytes'] / 2**20:.2f} MiB)"


def render_readme() -> None:
    """Write what stands between the marks of the README."""
    README.write_text(readme(README.read_text()))


def readme(text: str) -> str:
    """The README with the tables of its records and the main job's figure."""
    results = _render_folds.readme_lines()
    figure = _render_runs.caption(read_record(_render_runs.NAME))
    seeds = _render_runs.seeds_lines(read_record(_render_runs.SEEDS))
    retrofit = _render_folds.retrofit_lines()
    parts = {"retrofit": retrofit, "results": results, "figure": figure, "seeds": seeds}
    for mark, lines in parts.items():
        text = _between(text, mark, lines)
    return text


def _between(text: str, mark: str, lines: list[str]) -> str:
    """Put lines between two marks."""
    before, rest = text.split(f"<!-- {mark} -->", 1)
    after = rest.split(f"<!-- /{mark} -->", 1)[1]
    return before + "\n".join([f"<!-- {mark} -->", "", *lines, "", f"<!-- /{mark} -->"]) + after


def main() -> None:
    """Render every page and the README, or keep a run of the main job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--main-job", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--end-to-end", type=Path, metavar="RUN", help="folder of a finished run")
    given = vars(parser.parse_args())
    runs = {name: run for name, run in given.items() if run is not None}
    for name, run in runs.items():
        _render_runs.keep(name, run)
    if runs.keys() != {_render_runs.NAME}:
        render_speed()
        _render_compare.main()
        _render_protocol.render()
        _render_mvsa.render()
        _render_folds.render()
        _render_runs.render()
        paper_choices.render()
        _render_paper_scale.render()
        _render_quality.render()
        _render_monitor.render()
    render_readme()


if __name__ == "__main__":
    main()
