"""Small MVSA folders, written file by file so that each can be broken on purpose."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteMVSA = Callable[..., Path]


def save_photo(path: Path, seed: int, *, side: int = 48) -> None:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, "JPEG")


@pytest.fixture
def write_mvsa(tmp_path: Path) -> WriteMVSA:
    """Return a function that writes ``{id: labels}`` as an MVSA folder with good files."""

    def write(labels: dict[str, str], *, name: str = "mvsa", newline: str = "\n") -> Path:
        root = tmp_path / name
        (root / "data").mkdir(parents=True)
        votes = len(next(iter(labels.values())).split("\t"))
        header = "\t".join(["ID", *["text,image"] * votes])
        rows = [header, *(f"{post_id}\t{label}" for post_id, label in labels.items())]
        (root / "labelResultAll.txt").write_bytes((newline.join(rows) + newline).encode())
        for number, post_id in enumerate(labels):
            (root / "data" / f"{post_id}.txt").write_bytes(f"post number {post_id}\n".encode())
            save_photo(root / "data" / f"{post_id}.jpg", number)
        return root

    return write


@pytest.fixture
def three_posts(write_mvsa: WriteMVSA) -> Path:
    return write_mvsa({"1": "positive,positive", "2": "neutral,negative", "3": "neutral,neutral"})
