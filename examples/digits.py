"""Train a DRF classifier with a plain loop: digits cut into an upper and a lower half.

    python examples/digits.py

The examples for accelerate, FSDP2, Lightning and the Trainer import their data and model
from here. Needs ``robustfusion[examples]``.
"""

import sys

try:
    import torch
    import typer
    from sklearn.datasets import load_digits
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from robustfusion import DRFClassifier, DRFHead
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples]"')

WIDTH = 64
Sample = dict[str, Tensor]


class HalfDigits(Dataset[Sample]):
    """Scikit-learn's 1,797 digits of 8 × 8 pixels, where each half of the image is a modality.

    Args:
        part: "train" or "test"; every fourth digit is for testing.
        lost: the half that is missing in every sample, or None.
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
    """Split a batch into what the classifier takes: the inputs and the availability masks."""
    inputs = {name: batch[name] for name in ("upper", "lower")}
    return inputs, {name: batch[f"has_{name}"] for name in inputs}


def make_model() -> DRFClassifier:
    """Build the classifier: one small encoder per modality, and the head."""
    encoders = {
        name: nn.Sequential(nn.Linear(32, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        for name in ("upper", "lower")
    }
    return DRFClassifier(encoders, DRFHead({"upper": WIDTH, "lower": WIDTH}, num_classes=10))


def main(epochs: int = 20) -> None:
    """Train, then evaluate with both halves and with each half missing."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    model.train()
    for _ in range(epochs):
        for batch in DataLoader(HalfDigits("train"), batch_size=32, shuffle=True):
            loss = model.loss(model(*inputs_of(batch)), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    for lost in (None, "upper", "lower"):
        test: Sample = torch.utils.data.default_collate(list(HalfDigits("test", lost)))
        with torch.no_grad():
            predicted = model(*inputs_of(test)).logits.argmax(1)
        score = (predicted == test["labels"]).float().mean()
        print(f"accuracy, {lost or 'nothing'} missing: {score:.3f}")


if __name__ == "__main__":
    typer.run(main)
