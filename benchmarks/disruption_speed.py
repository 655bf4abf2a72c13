"""The time that disrupting and collating posts adds to reading and decoding them.

Writes generated JPEG photos and texts to a temporary folder, then times in one thread: reading and
decoding them, and what `DisruptedDataset` and `collate` add. The two take turns, and the ratio is
the median over rounds, so that a busy machine slows both.

    python benchmarks/disruption_speed.py    # writes benchmarks/results/disruption_speed.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ratios import finish, row
from PIL import Image
from torch.utils.benchmark import Timer

from robustfusion.disruption import (
    DisruptedDataset,
    Disruption,
    ImageCorruption,
    TextCorruption,
    collate,
)

SIZES = ((340, 256), (800, 600))
CORRUPTIONS: dict[str, Any] = {"image": ImageCorruption(), "text": TextCorruption()}
NAMES = ("image", "text")
# The paper's settings that cost most: every image masked, and the mixture over both modalities.
DISRUPTIONS = {
    "fixed, image, C": Disruption(NAMES, setting="C", strategy="fixed", modality="image"),
    "fixed, text, C": Disruption(NAMES, setting="C", strategy="fixed", modality="text"),
    "random, C+D, rate 1.0": Disruption(NAMES, setting="C+D"),
}


def write_posts(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Write photos with the texture of a natural one (spectrum 1/f) and short texts."""
    rng = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(500)]
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) + 1 / width
    for index in range(count):
        spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency
        picture = np.fft.irfft2(spectrum, s=(height, width))
        picture = 128 + 55 * picture / picture.std()
        pixels = np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=88)
        text = " ".join(rng.choice(words, rng.integers(3, 25)))
        (folder / f"{index}.txt").write_text(text, encoding="utf-8")


def read(folder: Path, index: int) -> dict[str, Any]:
    """Read and decode one post."""
    with Image.open(folder / f"{index}.jpg") as opened:
        image = opened.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    text = (folder / f"{index}.txt").read_text(encoding="utf-8")
    return {"inputs": {"image": pixels, "text": text}, "label": index % 3}


def disrupt(posts: list[dict[str, Any]], disruption: Disruption, batch_size: int = 16) -> None:
    """Plan, disrupt and collate `posts`, batch by batch."""
    data = DisruptedDataset(posts, disruption, CORRUPTIONS)
    for start in range(0, len(posts), batch_size):
        collate([data[i] for i in range(start, min(start + batch_size, len(posts)))])


def milliseconds(statement: str, **names: object) -> float:
    """The time of one run of `statement`, after the caller has warmed it up."""
    return 1000 * Timer(statement, globals={**globals(), **names}).timeit(1).mean


def measure(folder: Path, count: int, rounds: int, size: str) -> list[dict[str, Any]]:
    """Return a row for every disruption."""
    posts = [read(folder, index) for index in range(count)]
    for disruption in DISRUPTIONS.values():
        disrupt(posts, disruption)
    reading: list[float] = []
    adding: dict[str, list[float]] = {name: [] for name in DISRUPTIONS}
    for _ in range(rounds):
        all_posts = "for i in range(count): read(folder, i)"
        reading.append(milliseconds(all_posts, folder=folder, count=count))
        for name, disruption in DISRUPTIONS.items():
            adding[name].append(milliseconds("disrupt(posts, d)", posts=posts, d=disruption))
    return [
        row(
            f"disrupting and collating {count:,} posts: {name}",
            statistics.median(times),
            statistics.median(reading),
            f"reading and decoding them, {size} JPEG",
            0.1,
            ratio=statistics.median(a / r for a, r in zip(times, reading, strict=True)),
        )
        for name, times in adding.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as name:
            write_posts(Path(name), arguments.posts, (width, height), seed=0)
            size = f"{width} × {height}"
            rows += measure(Path(name), arguments.posts, arguments.rounds, size)
    finish("disruption_speed", rows, data="generated posts")


if __name__ == "__main__":
    main()
