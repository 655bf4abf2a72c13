"""A ViT and a BERT, or both towers of CLIP, from local folders, with a DRF head.

    python examples/gallery/transformers_encoders.py --models ~/models/vit ~/models/bert

Give the same CLIP folder twice to use its two towers. Without ``--models`` the example uses tiny
models with random weights: it shows the wiring, not the accuracy. Needs
``robustfusion[examples,hf]``.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    import torch
    from _gallery import BLUE, new_figure, save
    from _tiny_models import make_tiny_models
    from main_job.posts import make_posts
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    from robustfusion import DRFClassifier, DRFHead
    from robustfusion.datasets import MVSA
    from robustfusion.integrations.transformers import TransformersCollate, TransformersEncoder
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples,hf]"')


def load(folder: Path, modality: str) -> TransformersEncoder:
    """Load one encoder; of a CLIP model, load one tower."""
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    if hasattr(model.config, "vision_config"):
        tower = model.vision_model if modality == "image" else model.text_model
        return TransformersEncoder(tower, pooling="pooler")
    return TransformersEncoder(model, pooling="cls")


def main(
    folder: Path, models: tuple[Path, Path] | None = None, n: int = 300, epochs: int = 4
) -> list[float]:
    """Train encoders and head together on posts, a third of which lack a modality."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        image, text = models or make_tiny_models(Path(scratch))
        encoders = {"image": load(image, "image"), "text": load(text, "text")}
        processors = {
            "image": AutoImageProcessor.from_pretrained(image, local_files_only=True),
            "text": AutoTokenizer.from_pretrained(text, local_files_only=True),
        }
        posts = MVSA(make_posts(Path(scratch) / "posts", n=n))
        samples: list[dict[str, Any]] = [dict(posts[index]) for index in range(len(posts))]
    for index, sample in enumerate(samples):
        if index % 3 == 0:  # a missing modality is None
            sample["inputs"] = {**sample["inputs"], ("image", "text")[index % 2]: None}
    dims = {name: encoder.dim for name, encoder in encoders.items()}
    model = DRFClassifier(encoders, DRFHead(dims, len(posts.class_names)))
    collate = TransformersCollate(processors, max_length=64)
    loader = torch.utils.data.DataLoader(samples, 16, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            output = model(batch["inputs"], batch["available"])
            loss = model.loss(output, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # The loss also has a recovery term, so plot the classification loss by itself.
            losses.append(torch.nn.functional.cross_entropy(output.logits, batch["label"]).item())
    model.eval()
    batch = collate(samples[:2])  # the first one has no image
    output = model(batch["inputs"], batch["available"])
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, widths {dims}")
    print(f"weights of {model.head.candidates}, the image missing: {output.weights[0].tolist()}")
    figure, panel = new_figure()
    panel.plot(losses, color=BLUE)
    panel.set(xlabel="step", ylabel="cross-entropy", ylim=(0, None))
    save(figure, folder, "transformers_encoders")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A ViT and a BERT, or a CLIP, with a DRF head.")
    parser.add_argument("--models", type=Path, nargs=2, help="folders: an image and a text model")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="for the figure")
    options = parser.parse_args()
    main(options.output_dir, options.models and tuple(options.models))
