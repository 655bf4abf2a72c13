"""Two ranks fill one feature cache, one is killed, and two go on where they were."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

import robustfusion.datasets.encoding as encoding
from robustfusion.datasets import Encoding, FeatureCache, encode
from robustfusion.disruption import TextCorruption

POSTS, KILLED_AFTER = 41, 12


class Posts:
    ids = tuple(range(POSTS))
    labels = tuple(row % 3 for row in range(POSTS))
    class_names = ("a", "b", "c")
    on_bad = "missing"

    def __len__(self) -> int:
        return POSTS

    def content_digest(self, row: int, name: str) -> str | None:
        return None if name == "text" and row == 5 else f"{name} {row}"

    def __getitem__(self, row: int) -> dict[str, Any]:
        text = f"post {row} says something of its own"
        there = {"image": row != 7, "text": row != 5}
        return {"inputs": {"image": torch.tensor([row, 1.0]), "text": text}, "available": there}


def letters(texts: list[str]) -> Tensor:
    return torch.tensor([[len(text), sum(map(ord, text))] for text in texts]).float()


def encode_posts(rank: int, world: int, folder: str, killed: int) -> dict[str, Any]:
    encoding._PIECE = 4
    log = os.open(Path(folder) / f"{rank}.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    seen = 0

    def images(rows: list[Tensor]) -> Tensor:
        nonlocal seen
        for row in rows:
            if seen == killed and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(log, f"{int(row[0])}\n".encode())
            seen += 1
        return torch.stack(rows)

    data = encode(
        Posts(),
        {"image": Encoding(images, name="images"), "text": Encoding(letters, name="letters")},
        corruptions={"text": TextCorruption()},
        seeds=(0, 1),
        cache=FeatureCache(Path(folder) / "cache"),
        batch_size=2,
    )
    return {"features": data.features, "available": data.available, "corrupted": data.corrupted}


def test_two_ranks_fill_one_cache_and_go_on_after_a_kill(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    expected = encode_posts(0, 1, str(alone), -1)
    with pytest.raises(AssertionError, match="a rank ended with"):
        run_ranks(2, encode_posts, str(both), KILLED_AFTER)
    results = run_ranks(2, encode_posts, str(both), -1)
    assert not expected["available"]["image"][7]
    for result in results:
        for part, values in expected.items():
            torch.testing.assert_close(result[part], values, rtol=0, atol=0, msg=part)
    rows = [[int(line) for line in (both / f"{r}.txt").read_text().split()] for r in (0, 1)]
    assert {row % 2 for row in rows[0]} == {0}  # each rank its share
    assert {row % 2 for row in rows[1]} == {1}
    again = sum(count - 1 for count in Counter(rows[0] + rows[1]).values())
    assert again <= 4  # the piece that the killed rank had not written yet
    assert set(rows[0] + rows[1]) == set(range(POSTS)) - {7}
