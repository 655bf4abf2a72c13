"""The layers of the package: the one table that the tests check and the architecture page shows.

    python docs/layers.py

writes the table into ``docs/pages/about/architecture.md``.
"""

from pathlib import Path

# A module may import modules of earlier layers only; ``tests/test_api.py`` checks that.
LAYERS = [
    (
        "Checks and helpers",
        ["_identity", "_markdown", "_modules", "_outputs", "_state", "_tree", "_validation"],
    ),
    ("Formulas, as pure functions", ["functional"]),
    ("Tasks: the loss and the calibration of each kind of target", ["tasks"]),
    (
        "Parts that take tensors",
        ["conversion", "distributed", "feature_queue", "fusion", "losses", "moments", "pooling"],
    ),
    ("Names of modalities, masks, outputs", ["_inputs", "_task_head", "candidates", "output"]),
    ("Scales, and replacements of missing features", ["_trust_fit", "stand_in", "standardize"]),
    ("Trust, and the base class of the quality estimators", ["quality", "trust"]),
    ("The quality estimators", ["gaussian_quality", "neighbor_quality"]),
    ("The heads", ["drf", "neighbor_vote", "paper"]),
    ("Whole models, and what follows training", ["calibration", "classifier"]),
]
# These may import everything above; ``import robustfusion`` does not import them.
TOOLS = [
    "_figures",
    "_files",
    "_optional",
    "_predictions",
    "_recoverability",
    "_text",
    "baselines",
    "checkpoint",
    "datasets",
    "diagnostics",
    "disruption",
    "evaluation",
    "explanation",
    "integrations",
    "monitor",
    "testing",
]

PAGE = Path(__file__).parent / "pages" / "about" / "architecture.md"
START, END = "<!-- layers: written by docs/layers.py -->\n", "<!-- layers: end -->"


def table() -> str:
    """Return the layers as a Markdown table."""
    rows = [*LAYERS, ("Tools around any model, imported on demand", TOOLS)]
    lines = [
        f"| {number} | {purpose} | {', '.join(f'`{name}`' for name in names)} |"
        for number, (purpose, names) in enumerate(rows, 1)
    ]
    return "\n".join(["| | layer | modules |", "|---:|---|---|", *lines])


def page(text: str) -> str:
    """Return the text of the architecture page with the present table in it."""
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
