"""Small models and data for the tests of the evaluation."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustfusion.disruption import CachedFeatures, robustness_grid
from robustfusion.evaluation import RobustnessReport, robustness_report

NAMES = ("image", "text", "audio")


def measure(
    model: nn.Module,
    data: Any,
    *,
    replicates: int = 0,
    settings: Sequence[Any] = ("C", "D", "C+D"),
    rates: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    independent: Sequence[Any] = (),
    **options: Any,
) -> RobustnessReport:
    """A report over a part of the grid."""
    grid = robustness_grid(
        data.modalities, settings=settings, rates=rates, independent=independent
    )
    return robustness_report(model, data, grid, **options).with_intervals(replicates=replicates)


class FakeHead(nn.Module):
    """Sums linear logits of what is available, weighted by a quality that falls with the norm."""

    candidates: tuple[tuple[str, ...], ...]

    def __init__(self, names: tuple[str, ...] = NAMES, dim: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.names = names
        self.candidates = tuple((name,) for name in names)
        generator = torch.Generator().manual_seed(seed)
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(len(names), generator=generator))
        self.dim = dim
        self.calls = 0
        self.rows = 0

    def forward(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Any:
        self.calls += 1
        self.rows += len(features[self.names[0]])
        seen = {m: torch.where(available[m][:, None], features[m], 0) for m in self.names}
        quality = {
            m: torch.where(available[m], -x.square().mean(-1) / 2, -torch.inf)
            for m, x in seen.items()
        }
        weights = torch.stack([quality[m] for m in self.names], 1).softmax(-1)
        logits = sum(
            weights[:, k, None] * self.scale[k] * seen[m][:, :3] for k, m in enumerate(self.names)
        )
        recovered = {t: {s: 0.5 * seen[s] for s in self.names if s != t} for t in self.names}
        return SimpleNamespace(
            logits=logits,
            weights=weights,
            log_quality=quality,
            recovered=recovered,
            features=seen,
        )


def make_data(
    samples: int = 90,
    names: tuple[str, ...] = NAMES,
    draws: int = 2,
    dim: int = 6,
    **options: Any,
) -> CachedFeatures:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(samples) % 3
    labels[:10] = 0
    one_hot = torch.nn.functional.one_hot(labels, dim).float()
    noise = {m: torch.randn(samples, dim, generator=generator) for m in names}
    clean = {m: 1.2 * one_hot + noise[m] for m in names}
    corrupted = {m: 2 * torch.randn(draws, samples, dim, generator=generator) for m in names}
    ids = [f"post-{i}" for i in range(samples)]
    return CachedFeatures(clean, labels, **{"ids": ids, "corrupted": corrupted, **options})


def drawn(data: CachedFeatures, name: str) -> Tensor:
    corrupted = data.corrupted[name]
    assert isinstance(corrupted, Tensor)
    return corrupted


class Encoded(nn.Module):
    """Encoders inside, then the head: as `DRFClassifier`."""

    def __init__(self) -> None:
        super().__init__()
        self.head = FakeHead(("image", "text"))

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
        features = {"image": inputs["image"].flatten(1) - 0.5}
        lengths = [[text.count(word) for word in "abcdef"] for text in inputs["text"]]
        features["text"] = torch.tensor(lengths, dtype=torch.float32)
        return self.head(features, available)


def add_noise(image: Tensor, generator: np.random.Generator) -> Tensor:
    return image + torch.from_numpy(generator.normal(size=tuple(image.shape))).float()


def reverse_half(text: str, generator: np.random.Generator) -> str:
    return "".join(letter for letter in text if generator.random() < 0.5)


def make_posts(count: int = 24) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "inputs": {
                "image": torch.rand(1, 2, 3, generator=generator),
                "text": "abc"[i % 3] * 2 + "def"[i % 2],
            },
            "label": i % 3,
            "id": f"post-{i}",
            "available": {"image": i != 5, "text": True},
        }
        for i in range(count)
    ]
