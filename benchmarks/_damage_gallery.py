"""One generated post under every kind of damage, with its alarms and accuracy from the record."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from _pages import ROOT, canvas, table
from _record import read_record
from PIL import Image

sys.path.append(str(ROOT / "examples"))

from main_job.drawing import draw_post
from main_job.wording import write_post

from robustfusion.disruption import IMAGE_DAMAGE, ImageCorruption, TextCorruption
from robustfusion.disruption.texts import TextKind

SEVERITY = 0.6
COLUMNS, LINES = 5, 3
POST = 3  # a post with a face and a few clauses
OURS = "#0072B2"


def cells_of(modality: str) -> dict[str, Mapping[str, Any]]:
    """The intact inputs, and each kind of damage at the severity, the most alarms first."""
    rows = read_record("hero")["results"]["kinds"]
    cells = [row for row in rows if row["modality"] == modality]
    intact = next(row for row in cells if row["kind"] == "intact")
    damaged = [row for row in cells if row["severity"] == SEVERITY]
    damaged.sort(key=lambda row: -float(row["alarms"]))
    return {row["kind"]: row for row in (intact, *damaged)}


def pictures() -> dict[str, Any]:
    """The intact image of the post, and a copy of it under each kind of damage."""
    image = draw_post("positive", 96, np.random.default_rng(POST))
    other = draw_post("negative", 96, np.random.default_rng(POST + 1))
    copies = {"intact": image}
    for kind in IMAGE_DAMAGE:
        corruption = ImageCorruption(kind=cast("Any", kind), severity=SEVERITY)
        copies[kind] = corruption(image, np.random.default_rng(0), other)
    return copies


def draw(path: Path) -> None:
    """Draw the pictures, each with the alarms and the accuracy below it."""
    cells, copies = cells_of("image"), pictures()
    figure, panels = canvas(LINES, COLUMNS, (9.5, 8.4))
    for panel in panels.flat[len(cells) :]:
        panel.set_axis_off()
    for panel, (kind, cell) in zip(panels.flat, cells.items(), strict=False):
        panel.imshow(np.asarray(copies[kind]), interpolation="nearest")
        panel.grid(visible=False)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(visible=True, edgecolor="0.6", linewidth=1)
        panel.set_title(kind.replace("_", " "), fontsize=12, fontweight="bold")
        panel.set_xlabel(
            f"alarms {cell['alarms']:.0f} %\nDRFHead {cell['drf']:.0f} %\n"
            f"concatenation {cell['concatenation']:.0f} %",
            fontsize=10.5,
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor="white")
    # 255 colors are enough, and make the file small.
    Image.open(buffer).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path)


def texts() -> list[str]:
    """The text of the post under each kind of damage, with alarms and accuracy."""
    text = write_post("positive", np.random.default_rng(POST))
    other = write_post("negative", np.random.default_rng(POST + 1))
    copies = {"intact": text}
    for kind in get_args(TextKind):
        corruption = TextCorruption(kind=kind, severity=SEVERITY)
        copies[kind] = corruption(text, np.random.default_rng(0), other)
    body = [
        [
            kind,
            copies[kind].strip().replace("|", "\\|").replace("[", "\\[") or "(nothing)",
            f"{cell['alarms']:.0f}",
            f"{cell['drf']:.0f}",
            f"{cell['concatenation']:.0f}",
        ]
        for kind, cell in cells_of("text").items()
    ]
    head = ["damage", "the text", "alarms (%)", "DRFHead (%)", "concatenation (%)"]
    return table(head, body, left=(0, 1))
