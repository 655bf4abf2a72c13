"""A small model, values that no file takes, and a check of every bit, for tests of files."""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfusion import DRFClassifier, DRFHead


def make_model(width: int = 6, seed: int = 0) -> DRFClassifier:
    torch.manual_seed(seed)
    encoders = {"image": nn.Linear(12, width), "text": nn.EmbeddingBag(50, 4)}
    head = DRFHead({"image": width, "text": 4}, 3, hidden_features=8)
    return DRFClassifier(encoders, head)


def batch(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "image": torch.randn(8, 12, generator=generator),
        "text": torch.randint(50, (8, 5), generator=generator),
    }
    return inputs, torch.randint(3, (8,), generator=generator)


def steps(model: Any, optimizer: Any, scheduler: Any, seeds: range) -> None:
    model.train()
    for seed in seeds:
        inputs, labels = batch(seed)
        optimizer.zero_grad()
        model.loss(model(inputs), labels).backward()
        optimizer.step()
        scheduler.step()


def parts() -> tuple[Any, Any, Any]:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def sparse() -> Tensor:
    return torch.eye(3).to_sparse()


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of these tensors
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def nested() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def flips(size: int, long: bool) -> Iterator[tuple[int, int]]:
    """Every bit in a long run, else one in each of some two hundred regions and at both ends."""
    places = range(size) if long else sorted({*range(0, size, max(1, size // 200)), *ends(size)})
    for place in places:
        yield from ((place, bit) for bit in (range(8) if long else (place % 8,)))


def ends(size: int) -> set[int]:
    return {*range(16), *range(size - 80, size)} & set(range(size))


def assert_every_flip_is_found(path: Path, load: Callable[[], Any], long: bool) -> None:
    content = path.read_bytes()
    load()
    for place, bit in flips(len(content), long):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=re.escape(path.name)):
            load()
    path.write_bytes(content)
    load()
