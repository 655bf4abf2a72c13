"""Draw the first picture of the README: accuracy over the share of black pixels in the image.

    python benchmarks/hero.py --run runs/drf_mvsa-001

Reads both models of a finished run of `examples/drf_mvsa.py`, or makes one if no run is named, and
damages the image of each test post with black pixels at eleven shares. Writes the numbers to
`results/hero.json`, with the scores of the run for all kinds of damage, and the picture to
`docs/pages/assets/corrupted-image.png`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write_record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from main_job.reading import EncodedSamples, open_data
from main_job.run_folder import find_run
from main_job.settings import NAMES, Settings, make_encoders, make_model

from robustfusion.checkpoint import load_model
from robustfusion.disruption import ImageCorruption
from robustfusion.evaluation import damage_report

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pages" / "assets" / "corrupted-image.png"
SHARES = tuple(round(0.1 * step, 1) for step in range(11))
EXAMPLES = SHARES[::2]  # the shares of the example pictures
SEEDS = (0, 1, 2)  # seeds of the damage
KIND = "mask"
# These colors differ for color-blind readers, too.
OURS, THEIRS, GRAY = "#0072B2", "#D55E00", "#4d4d4d"


def new_run(folder: Path) -> Path:
    """Train both models of the main job with seed 0, and return the folder of the run."""
    program = ROOT / "examples" / "drf_mvsa.py"
    subprocess.run([sys.executable, str(program), "--output-dir", str(folder)], check=True)
    return max(folder.glob("drf_mvsa-*"))


def measure(run: Path) -> tuple[dict[str, Any], Any]:
    """Return the results of the record, and the dataset of the test posts."""
    run, saved = find_run(run, run)
    settings = Settings(**saved)
    if settings.data is not None:
        raise SystemExit(
            f"{run} was trained on posts of its own, the picture shows generated ones"
        )
    torch.set_num_threads(settings.threads)
    encoders = make_encoders(settings)
    root = run.parent / f"posts-{settings.limit or 1500}-seed{settings.seed}"
    dataset, splits = open_data(root, settings, encoders)
    test = dataset.select(splits.open_test("picture of a finished run"))
    models = {}
    for kind, title in NAMES.items():
        model = make_model(kind, make_encoders(settings), len(dataset.class_names), settings)
        load_model(model, run / "models" / kind)
        models[title] = model.eval()
    samples = EncodedSamples(test, encoders, settings)
    report = damage_report(models, samples, {"image": [KIND]}, severities=SHARES[1:], seeds=SEEDS)
    lines = {}
    for title in models:
        cells = [report[title, "image", "intact", 0.0]]
        cells += [report[title, "image", KIND, share] for share in SHARES[1:]]
        missing = report[title, "image", "missing", 1.0]
        lines[title] = {
            "accuracy": [percent(cell.accuracy) for cell in cells],
            "error": [percent(cell.accuracy_se) for cell in cells],
            "missing": percent(missing.accuracy),
        }
        if title == NAMES["drf"]:
            lines[title]["alarms"] = [percent(cell.alarms) for cell in cells]
            lines[title]["trust"] = [percent(cell.trust) for cell in cells]
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    results = {
        "commit_of_run": facts["commit"],
        "test_posts": len(report.labels),
        "shares": [percent(share) for share in SHARES],
        "majority": percent(report.majority[0]),
        "lines": lines,
        "kinds": kinds_of(run / "damage.csv"),
    }
    return results, test


def kinds_of(path: Path) -> list[dict[str, Any]]:
    """Return accuracy, alarms and trust under every kind of damage that the run measured."""
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    names = {title: name for name, title in NAMES.items()}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            where = (row["modality"], row["kind"], float(row["severity"]))
            words = dict(zip(("modality", "kind", "severity"), where, strict=True))
            cell = rows.setdefault(where, words)
            cell[names[row["model"]]] = percent(float(row["accuracy"]))
            if names[row["model"]] == "drf":
                for key in ("alarms", "trust"):
                    value = float(row[key] or "nan")
                    cell[key] = None if np.isnan(value) else percent(value)
    return list(rows.values())


def percent(share: float) -> float:
    """Return a share in percent, with one decimal."""
    return round(100 * share, 1)


def example(dataset: Any) -> list[np.ndarray]:
    """Return one test image of a positive post with each share of black pixels."""
    has_image = dataset.available["image"].tolist()
    chosen = next(k for k, label in enumerate(dataset.labels) if label == 0 and has_image[k])
    image = dataset[chosen]["inputs"]["image"].convert("RGB")
    damage = (ImageCorruption(kind=KIND, severity=share) for share in EXAMPLES)
    return [np.asarray(corruption(image, np.random.default_rng(0))) for corruption in damage]


def draw(results: dict[str, Any], pictures: list[np.ndarray], path: Path) -> None:
    """Draw the example pictures above the lines, each over its share of black pixels."""
    figure = Figure(figsize=(9.0, 5.4), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    left, width, low, high = 0.085, 0.89, 0.205, 0.72
    panel = figure.add_axes((left, low, width, high - low))
    panel.set_xlim(-9, 109)
    shares = np.asarray(results["shares"])
    ours, theirs = results["lines"].values()
    for line, color, marker, label in (
        (ours, OURS, "o", "DRFHead: nobody marks the damage"),
        (theirs, THEIRS, "s", "concatenation + modality dropout"),
    ):
        accuracy, reach = np.asarray(line["accuracy"]), 2 * np.asarray(line["error"])
        panel.fill_between(
            shares, accuracy - reach, accuracy + reach, color=color, alpha=0.15, lw=0
        )
        panel.plot(shares, accuracy, color=color, marker=marker, ms=6, lw=2.2, label=label)
    panel.axhline(
        ours["missing"], color=OURS, ls="--", lw=1.3, label="DRFHead: image declared missing"
    )
    panel.axhline(results["majority"], color=GRAY, ls=":", lw=1.6, label="most frequent class")
    panel.set(
        xlabel="black pixels in the image (%), text intact",
        ylabel="accuracy (%)",
        ylim=(25, 92),
        xticks=list(range(0, 101, 20)),
    )
    panel.xaxis.label.set_size(11)
    panel.yaxis.label.set_size(11)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(visible=True, color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=10.5,
        bbox_to_anchor=(0.53, 0.0),
    )  # fmt: skip
    side = 0.118
    for picture, share in zip(pictures, EXAMPLES, strict=True):
        center = left + width * (100 * share + 9) / 118
        tile = figure.add_axes((center - side / 2, 0.765, side, side * 9.0 / 5.4))
        tile.imshow(picture)
        tile.set(xticks=[], yticks=[])
        trust = ours["trust"][SHARES.index(share)]
        tile.set_xlabel(f"image trust {trust:.0f} %", fontsize=10, labelpad=3)
        for spine in tile.spines.values():
            spine.set(edgecolor="0.6", linewidth=1)
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor="white")
    # 255 colors are enough, and make the file small.
    Image.open(buffer).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path)


def main() -> None:
    """Measure, write the record, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a finished run of drf_mvsa.py")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="of a new run")
    options = parser.parse_args()
    results, test = measure(options.run or new_run(options.output_dir))
    write_record("hero", results, data="300 generated test posts, seed 0", seeds=list(SEEDS))
    draw(results, example(test), PICTURE)


if __name__ == "__main__":
    main()
