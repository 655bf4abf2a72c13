"""Fill the tables of the docs and of the README from the records, and draw their figures.

    python benchmarks/render.py
    python benchmarks/render.py --main-job runs/drf_mvsa-001
    python benchmarks/render.py --end-to-end runs/drf_mvsa-002

The last two first keep a finished run of `examples/drf_mvsa.py` as a record: that of the main job,
or that with trained encoders on real posts. Prose is in the pages; only what stands between two
comments of one name is replaced.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _plots
import _render_compare
import _render_cross_validation
import _render_guides
import _render_paper
import _render_paper_parts
import _render_quality
import _render_readme
import _render_regimes
import _render_runs
from _pages import ASSETS, DOCS, ROOT, Blocks, counted, filled, folded, source, table
from _record import RESULTS, read_record
from speed import EPOCH, SHARE

README = ROOT / "README.md"
MAIN_JOB = "results/cross-validation.md"  # the page that shows the main job
SPEED = ("speed", "evaluation_speed", "disruption_speed")


def speed() -> dict[str, list[str]]:
    """The blocks of the page on speed: each ratio with its goal, and a long run."""
    blocks, every = {}, []
    for name in SPEED:
        record = read_record(name)
        rows = record["results"]["rows"]
        every += rows
        body = [
            [
                _measured(row, "what", ""),
                _measured(row, "reference", "reference_"),
                f"{row['ratio']:.2f}",
                "" if row["goal"] is None else f"≤ {row['goal']:g}",
                {None: "", True: "yes", False: "**no**"}[row["met"]],
            ]
            for row in rows
        ]
        lines = table(["what", "compared with", "ratio", "goal", "met"], body, left=(0, 1, 4))
        goals = [row["met"] for row in rows if row["goal"] is not None]
        title = f"All ratios; {sum(goals)} of {len(goals)} goals are met"
        cores = counted(record["machine"]["cores"], "core")
        blocks[name] = [*folded(title, lines), "", f"{source(record)} Machine: {cores}."]
    return {"cost": cost(every), **blocks, "stability": stability()}


def cost(rows: list[dict[str, Any]]) -> list[str]:
    """Say what a user feels, in three sentences."""
    share, epoch, report = (
        next(row for row in rows if row["what"].startswith(start))
        for start in (SHARE, EPOCH, "full grid, 19,524")
    )
    seconds = [row[key] / 1000 for row in (epoch, report) for key in ("ms", "reference_ms")]
    return [
        f"With encoders that train, the head takes {100 * share['ratio']:.1f} % of a step. With "
        f"ready features, an epoch of 10,000 posts takes {seconds[0]:.1f} s; a concatenation "
        f"takes {seconds[1]:.1f} s. A robustness report on 450 posts takes {seconds[3]:.1f} s, on "
        f"19,524 posts {seconds[2]:.0f} s."
    ]


def stability() -> list[str]:
    """Drift and memory after a million batches."""
    record = read_record("stability")
    queue, head = record["results"]["queue"], record["results"]["head"]
    parts = {
        f"{queue['enqueues']:,} batches enqueued": queue,
        f"{head['steps']:,} training steps of DRFHead, all state finite": head,
    }
    body = [
        [
            what,
            f"{part['largest_relative_drift']:.1e}",
            f"{part['resident_mib']:.0f}",
            f"{part['resident_growth_mib']:.2f}",
        ]
        for what, part in parts.items()
    ]
    return [*table(["", "drift", "memory, MiB", "growth, MiB"], body), "", source(record)]


def _measured(row: dict[str, Any], name: str, prefix: str) -> str:
    """A name with its measurement."""
    if f"{prefix}ms" in row:
        time = row[f"{prefix}ms"]
        return f"{row[name]} ({f'{time:.3g} ms' if time < 1000 else f'{time / 1000:.3g} s'})"
    if f"{prefix}count" in row:
        return f"{row[name]} ({row[f'{prefix}count']:,})"
    return f"{row[name]} ({row[f'{prefix}bytes'] / 2**20:.2f} MiB)"


PAGES: dict[str, Callable[[], Blocks]] = {
    "choosing-parts.md": lambda: {"retrofit": _render_cross_validation.fused_models()},
    "results/index.md": lambda: {"results": _render_cross_validation.readme_lines()},
    MAIN_JOB: lambda: {
        **_render_cross_validation.blocks(),
        **_render_runs.main_job(),
        **_render_runs.blocks(),
    },
    "results/comparison.md": lambda: {
        **_render_compare.comparison(),
        **_render_compare.protocol(),
    },
    "results/mvsa.md": lambda: {
        **_render_paper.blocks(),
        **_render_paper_parts.scale(),
        **_render_paper_parts.choices(),
        **_render_regimes.regimes(),
    },
    "results/quality.md": _render_quality.blocks,
    "results/speed.md": speed,
    "guides/damaged-inputs.md": _render_guides.damage,
    "guides/monitoring.md": _render_guides.monitor,
    "guides/more-inputs.md": _render_guides.pooling,
    "guides/missing-modalities.md": _render_guides.few_labels,
}


def pages() -> dict[Path, str]:
    """Every page of the docs with its tables as the records have them."""
    return {
        DOCS / page: filled((DOCS / page).read_text(encoding="utf-8"), blocks())
        for page, blocks in PAGES.items()
    }


def readme(text: str) -> str:
    """The README with its number and its table, as the records have them."""
    return filled(text, _render_readme.blocks())


def main() -> None:
    """Fill every page and the README, or keep a run of the main job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--main-job", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--end-to-end", type=Path, metavar="RUN", help="folder of a finished run")
    options = vars(parser.parse_args())
    runs = {name: run for name, run in options.items() if run is not None}
    for name, run in runs.items():
        _render_runs.keep(name, run)
    everything = runs.keys() != {_render_runs.NAME}
    for path, text in pages().items():
        if everything or path == DOCS / MAIN_JOB:
            path.write_text(text, encoding="utf-8")
    if everything:
        _render_paper.draw(RESULTS, ASSETS)
        _render_paper_parts.draw(ASSETS)
        _plots.draw(ASSETS)
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
