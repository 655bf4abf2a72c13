"""What the three training examples share: digits cut into an upper and a lower half."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

from robustfusion import DRFClassifier, DRFHead

WIDTH = 64
Sample = dict[str, Tensor]


class HalfDigits(Dataset[Sample]):
    """Scikit-learn's 1,797 digits of 8 × 8 pixels; each half of the image is one modality.

    Args:
        part: "train" or "test", every fourth digit.
        lost: the half that is missing everywhere, or None.
    """

    def __init__(self, part: str, lost: str | None = None) -> None:
        digits = load_digits()
        chosen = (torch.arange(len(digits.target)) % 4 == 3) == (part == "test")
        pixels = torch.tensor(digits.data, dtype=torch.float32)[chosen] / 16
        self.labels = torch.tensor(digits.target)[chosen]
        self.halves = {"upper": pixels[:, :32], "lower": pixels[:, 32:]}
        self.lost = lost

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        sample = {name: half[index] for name, half in self.halves.items()}
        sample |= {f"has_{name}": torch.tensor(name != self.lost) for name in self.halves}
        return {**sample, "labels": self.labels[index]}


def inputs_of(batch: Sample) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a batch as the classifier takes it: inputs, and which of them are there."""
    inputs = {name: batch[name] for name in ("upper", "lower")}
    return inputs, {name: batch[f"has_{name}"] for name in inputs}


def make_model() -> DRFClassifier:
    """Build the classifier: an encoder of your own for each modality, and the head."""
    encoders = {
        name: nn.Sequential(nn.Linear(32, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        for name in ("upper", "lower")
    }
    return DRFClassifier(encoders, DRFHead({"upper": WIDTH, "lower": WIDTH}, num_classes=10))
