"""A tiny ViT and BERT with random weights, so that the example runs without a download."""

from pathlib import Path
from typing import Any


def make_tiny_models(folder: Path) -> tuple[Path, Path]:
    """Save a ViT and a BERT with random weights by ``save_pretrained``."""
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizerFast,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    letters = "abcdefghijklmnopqrstuvwxyz',.!:"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *[f"##{c}" for c in letters]]
    vit, bert = folder / "vit", folder / "bert"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(bert / "vocab.txt")).save_pretrained(bert)
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(bert)
    ViTModel(ViTConfig(image_size=32, patch_size=8, **size)).save_pretrained(vit)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(vit)
    return vit, bert
