"""Small inputs that several tests share."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustfusion.disruption import sample_generator

BOTH = ("image", "text")
SETTINGS: tuple[Any, ...] = ("C", "D", "C+D")


def generator(name: str | int = "post", seed: int = 0) -> np.random.Generator:
    return sample_generator(seed, name, "any")


def photo(size: tuple[int, int] = (32, 24), channels: int = 3) -> Tensor:
    """A smooth picture with some texture, uint8, (C, H, W), values away from 0 and 255."""
    width, height = size
    ramp = torch.linspace(0, 6, height)[:, None] + torch.linspace(0, 9, width)
    planes = [(ramp * (1 + c)).sin() * 80 + 120 + (ramp * 40).cos() * 25 for c in range(channels)]
    return torch.stack(planes).round().to(torch.uint8)


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.movedim(0, -1).numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0)


def tokens() -> dict[str, Tensor]:
    ids = [101, 11, 12, 13, 14, 15, 102, 0, 0]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor([int(i != 0) for i in ids]),
        "token_type_ids": torch.zeros(9, dtype=torch.long),
    }
