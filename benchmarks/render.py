"""Write the results pages of the docs from the records: python benchmarks/render.py."""

from pathlib import Path
from typing import Any

import _render_compare
import _render_mvsa
import _render_recipe
from _record import read_record

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
        "Ratios within one run; times hold for the machine of that run alone.",
    ]
    for name, title in SPEED.items():
        record = read_record(name)
        machine = record["machine"]
        lines += [
            "",
            f"## {title}",
            "",
            f"{machine['cores']} cores, {machine['threads']} thread(s), torch {machine['torch']}. "
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
    (PAGES / "speed.md").write_text("\n".join(lines) + "\n")


def _with(row: dict[str, Any], name: str, prefix: str) -> str:
    """A name with its measurement."""
    if f"{prefix}ms" in row:
        return f"{row[name]} ({row[f'{prefix}ms']:.3g} ms)"
    return f"{row[name]} ({row[f'{prefix}bytes'] / 2**20:.2f} MiB)"


def render_readme() -> None:
    """Copy the first table of the recipe's page between the marks in the README."""
    page = (PAGES / "recipe.md").read_text().split("## MVSA-Single", 1)[1].splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith("|"))
    stop = next(i for i in range(start, len(page)) if not page[i].startswith("|"))
    record = read_record("recipe")
    lines = [
        "Accuracy in % on MVSA-Single, frozen encoders, 450 test posts, a modality corrupted (C),",
        "discarded (D), or half of each.",
        f"`{record['command'].split(' --')[0]}` at commit `{record['commit']}`;",
        "[the whole page](docs/pages/results/recipe.md) has the majority class, intervals,",
        "goals that were missed, and what did not help.",
        "",
        *page[start:stop],
    ]
    text = README.read_text()
    before, rest = text.split("<!-- results -->", 1)
    after = rest.split("<!-- /results -->", 1)[1]
    marked = "\n".join(["<!-- results -->", "", *lines, "", "<!-- /results -->"])
    README.write_text(before + marked + after)


def main() -> None:
    """Render every page, and the README's table."""
    render_speed()
    _render_compare.main()
    _render_mvsa.render()
    _render_recipe.render()
    render_readme()


if __name__ == "__main__":
    main()
