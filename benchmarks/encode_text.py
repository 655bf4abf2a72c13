"""The features of a data pack, with its texts encoded by another encoder.

    python benchmarks/encode_text.py --mvsa DIR --text MODEL --output mpnet.npz
    python benchmarks/encode_text.py --harmeme DIR --text MODEL --output mpnet-harmeme.npz

MODEL is a folder or a name of transformers. Images, labels, splits and the number of draws are the
pack's; texts are encoded intact and with 40 to 80 % of their words masked, as the mean over the
attention mask. `cross_validate.py` and `paper_tables.py` take the file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion.datasets import MVSA
from robustfusion.disruption import TextCorruption, sample_generator
from robustfusion.integrations.transformers import TransformersEncoder

BATCH = 32

TextEncoder = Callable[[Sequence[str]], Tensor]


def text_encoder(model: str) -> tuple[TextEncoder, str]:
    """The mean over the attention mask of a model of transformers, and its mask token."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    network = TransformersEncoder(AutoModel.from_pretrained(model), pooling="mean").eval()

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        features: Tensor = network(tokens)
        return features

    return encode, tokenizer.mask_token


def encoded(texts: Sequence[str], encode: TextEncoder, title: str) -> NDArray[np.float16]:
    """Features of all texts; texts of similar length share a batch, because padding costs time."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    parts, begun = [], time.monotonic()
    for start in range(0, len(order), BATCH):
        parts.append(encode([texts[index] for index in order[start : start + BATCH]]))
        if start % (20 * BATCH) == 0:
            print(f"{title}: {start}/{len(order)}, {time.monotonic() - begun:.0f} s", flush=True)
    features = torch.cat(parts)
    return features[torch.tensor(order).argsort()].numpy().astype(np.float16)


def texts_of(mvsa: Path | None, harmeme: Path | None) -> dict[str, str]:
    """The text of each post by its id."""
    if mvsa is not None:
        posts = MVSA(mvsa)
        return {post_id: posts[index]["inputs"]["text"] for index, post_id in enumerate(posts.ids)}
    assert harmeme is not None
    lines = [
        line
        for name in ("train", "val")
        for line in (harmeme / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {str(row["id"]): row["text"] for row in map(json.loads, lines)}


def main() -> None:
    """Encode and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    pack = parser.add_mutually_exclusive_group(required=True)
    pack.add_argument("--mvsa", type=Path, help="folder of MVSA-Single, with features.npz")
    pack.add_argument("--harmeme", type=Path, help="folder of HarMeme, with features.npz")
    parser.add_argument("--text", required=True, help="folder or name of a transformers model")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encode, mask_token = text_encoder(arguments.text)
    with np.load((arguments.mvsa or arguments.harmeme) / "features.npz") as file:
        arrays = {
            key: file[key] for key in file if key.startswith(("image_", "id", "label", "spl"))
        }
        draws = len(file["text_corrupt"])
    texts = texts_of(arguments.mvsa, arguments.harmeme)
    ids = [str(post_id) for post_id in arrays["id"]]
    ours = [texts[post_id] for post_id in ids]
    mask = TextCorruption(mask_token=mask_token)
    arrays["text_clean"] = encoded(ours, encode, "intact")
    corrupt = []
    for seed in range(draws):
        masked = [
            mask(text, sample_generator(seed, post_id, "text"))
            for text, post_id in zip(ours, ids, strict=True)
        ]
        corrupt.append(encoded(masked, encode, f"masked, draw {seed}"))
    arrays["text_corrupt"] = np.stack(corrupt)
    np.savez(arguments.output, **arrays)
    print(f"wrote {arguments.output}: text {arrays['text_clean'].shape[1]} wide, {draws} draws")


if __name__ == "__main__":
    main()
