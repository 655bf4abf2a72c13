"""Do today's data still look like yesterday's? A monitor whose false alarms are bounded.

After 2,000 intact samples some are damaged, or their halves are exchanged, which only the score of
the pair sees. The chance of a false alarm is at most 1 %. ``--features`` takes your own data.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from _gallery import BLUE, GRAY, GREEN, ORANGE, new_figure, save
from pairing import PairingScore
from sklearn.datasets import load_digits
from torch import Tensor

from robustfusion import NeighborQualityEstimator
from robustfusion.monitor import DriftMonitor

GOOD, ROWS, REFERENCES = 2_000, 4_000, 400
CHANGES = {"10 % damaged": 0.1, "30 % damaged": 0.3, "100 % damaged": 1.0, "exchanged": 1.0}


def load(path: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features of two modalities, and of the first one with its input damaged."""
    if path is None:
        pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
        image, text = pixels.chunk(2, dim=1)
        return image, text, image.where(torch.arange(32) % 8 < 4, 0.0)  # right side black
    with np.load(path) as file:
        arrays = file["image_clean"], file["text_clean"], file["image_corrupt"][0]
    image, text, damaged = (torch.from_numpy(x).float() for x in arrays)
    return image, text, damaged


class Watch:
    """Fit the scores on a third of the samples and draw streams from the others."""

    def __init__(self, image: Tensor, text: Tensor, damaged: Tensor) -> None:
        self.features, self.generator = (image, text, damaged), torch.Generator().manual_seed(0)
        order = torch.randperm(len(image), generator=self.generator)
        known, self.rows = order[: len(order) // 3], order[len(order) // 3 :]
        held_image, held_text = self.draw(REFERENCES)
        self.image = NeighborQualityEstimator(image.shape[1]).fit(image[known])
        self.text = NeighborQualityEstimator(text.shape[1]).fit(text[known])
        self.pairing = PairingScore(image.shape[1], text.shape[1]).fit(image[known], text[known])
        self.image.calibrate(held_image)
        self.text.calibrate(held_text)
        self.pairing.calibrate(held_image, held_text)

    def draw(self, count: int, share: float = 0.0, change: str = "") -> tuple[Tensor, Tensor]:
        """Draw samples with a little noise, and change a share of them."""
        rows = self.rows[torch.randint(len(self.rows), (count,), generator=self.generator)]
        image, text, damaged = (
            x[rows] + 0.1 * x.std(0) * torch.randn(count, x.shape[1], generator=self.generator)
            for x in self.features
        )
        changed = torch.rand(count, 1, generator=self.generator) < share
        exchanged = image, text.roll(1, 0).where(changed, text)
        return exchanged if change == "exchanged" else (damaged.where(changed, image), text)

    def p_values(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Return the p-values of both modalities and of the pairing."""
        p_values = {"image": self.image.p_value(image), "text": self.text.p_value(text)}
        return {**p_values, "pairing": self.pairing.p_value(image, text)}


def main(folder: Path, features: Path | None = None, good_rows: int = 10_000) -> dict[str, int]:
    """Return how many samples after each change the alarm was raised; -1 if it never was."""
    watch, waits = Watch(*load(features)), {}
    monitor = DriftMonitor(["image", "text", "pairing"], references=REFERENCES)  # delta=0.01
    for _ in range(good_rows // 500):
        monitor.update(watch.p_values(*watch.draw(500)))
    print(f"{good_rows} intact samples: {'a false alarm' if monitor.state.alarm else 'no alarm'}")
    figure, panel = new_figure()
    for color, (change, share) in zip((BLUE, ORANGE, GREEN, "k"), CHANGES.items(), strict=True):
        monitor.reset()
        evidence = []
        for start in range(0, ROWS, 100):
            drawn = watch.draw(100, share if start >= GOOD else 0.0, change)
            state = monitor.update(watch.p_values(*drawn))
            evidence.append(max(state.evidence.values()))
        panel.plot(range(100, ROWS + 1, 100), evidence, color=color, label=change)
        waits[change] = min(state.alarms.values(), default=GOOD - 1) - GOOD
        print(f"{change}: alarm of {list(state.alarms)} after {waits[change]} samples")
    panel.axhline(monitor.threshold, color=GRAY, linestyle=":", label="alarm")
    panel.axvline(GOOD, color=GRAY, linestyle="--", label="change begins")
    panel.set(xlabel="sample", ylabel="evidence (log10)", ylim=(-2, 60))
    panel.legend(frameon=False)
    save(figure, folder, "drift_monitor")
    return waits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A drift monitor.")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="for the figure")
    parser.add_argument("--features", type=Path, help="an .npz with image_clean, text_clean, ...")
    options = parser.parse_args()
    main(options.output_dir, options.features)
