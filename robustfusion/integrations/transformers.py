"""Use models of transformers as encoders, and make batches for them with missing modalities."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustfusion._identity import register_identity
from robustfusion._optional import import_pillow, is_pillow
from robustfusion._text import clean_text
from robustfusion._validation import check_keys, check_positive
from robustfusion.datasets.pictures import to_rgb
from robustfusion.disruption import collate
from robustfusion.disruption.data import is_there, placeholder

Pooling: TypeAlias = Literal["cls", "last", "mean", "pooler", "projection"]
Padding: TypeAlias = bool | Literal["longest", "max_length"]
TOKENIZER = "PreTrainedTokenizerBase"
BATCHED = (TOKENIZER, "ImageProcessingMixin")  # these process a whole batch at once


class TransformersEncoder(nn.Module):
    r"""Turn a model of transformers into an encoder: inputs in, one vector (B, dim) out.

    By ``pooling``, the vector of a sample is

    - "cls": the first token of the last layer: BERT, RoBERTa, ViT, DINOv2;
    - "last": the last token that is not padding, on whichever side that is: embedding models
      built on Qwen, Llama, Mistral;
    - "mean": the mean over the tokens that are not padding, or over the places of a convolutional
      feature map: E5 and other sentence transformers, ResNet;
    - "pooler": the model's ``pooler_output``: the towers of CLIP and SigLIP;
    - "projection": ``image_embeds`` or ``text_embeds``: ``CLIPVisionModelWithProjection``.

    The pooling has no default, because a wrong one costs accuracy silently. Check a text encoder
    with :func:`robustfusion.testing.assert_batch_invariant`. A model that carries both modalities
    (``CLIPModel``) is two encoders: give ``model.vision_model`` and ``model.text_model``.

    To freeze it, call ``encoder.requires_grad_(False)``, and ``encoder.eval()`` after each
    ``train()`` of the whole model, which switches its dropout on. With "cls" or "mean" a BERT's
    pooler gets no gradient: load it with ``add_pooling_layer=False`` under
    ``DistributedDataParallel``.

    Args:
        model: What ``AutoModel.from_pretrained`` returns, for images or texts.
        pooling: One of the above.
        dim: Width D, for a model whose config does not state it, such as MobileNetV2.

    Attributes:
        dim: Width D of the vectors.

    Shape:
        - ``inputs``: a mapping that the model takes as keyword arguments, or one tensor, its main
          input
        - Output: (B, D)

    Raises:
        ValueError: If ``pooling`` is unknown, the model's output has no such vector, or it is
            "cls" of a causal model, whose first token has attended to no other.
        TypeError: If the model has no ``config``, or takes two modalities.

    Example:
        >>> import torch
        >>> from robustfusion.integrations.transformers import TransformersEncoder
        >>> from transformers import ViTConfig, ViTModel
        >>> size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> vit = ViTModel(ViTConfig(image_size=32, patch_size=16, intermediate_size=32, **size))
        >>> encoder = TransformersEncoder(vit, pooling="cls")
        >>> encoder.dim, encoder({"pixel_values": torch.zeros(4, 3, 32, 32)}).shape
        (16, torch.Size([4, 16]))

    Reference:
        The first token: Devlin et al., "BERT", NAACL 2019; the mean: Reimers and Gurevych,
        "Sentence-BERT", EMNLP 2019.
    """

    def __init__(self, model: nn.Module, *, pooling: Pooling, dim: int | None = None) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be in {list(get_args(Pooling))}, got {pooling!r}")
        config = getattr(model, "config", None)
        if config is None:
            raise TypeError(
                f"model must be a model of transformers, got {type(model).__name__}: any other "
                "module that returns (B, D) is an encoder already"
            )
        if hasattr(config, "vision_config") and hasattr(config, "text_config"):
            raise TypeError(
                f"model must be of one modality, got {type(model).__name__}: make two encoders, "
                "of model.vision_model and of model.text_model"
            )
        if pooling == "cls" and _is_causal(model):
            raise ValueError(
                f"{type(model).__name__} is causal: its first token has attended to no other and "
                'is the same for every text; use pooling="last", or "pooler" for a CLIP'
            )
        self.model = model
        self.pooling: Pooling = pooling
        # Before transformers 5, the towers of CLIP did not name their main input.
        first = next(iter(inspect.signature(model.forward).parameters))
        self.main_input: str = getattr(model, "main_input_name", first)
        if dim is not None:
            check_positive(dim, "dim")
        self.dim = _width(config, pooling) if dim is None else dim
        kind = getattr(config, "model_type", type(model).__name__)
        register_identity(self, model=kind, pooling=pooling, dim=self.dim)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encode a batch."""
        if isinstance(inputs, Tensor):
            inputs = {self.main_input: inputs}
        features = self._pool(self.model(**inputs), inputs.get("attention_mask"))
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"{type(self.model).__name__} with pooling={self.pooling!r} must give (B, "
                f"{self.dim}), got {tuple(features.shape)}"
            )
        return features

    def _pool(self, output: Any, attention_mask: Tensor | None) -> Tensor:
        if self.pooling == "projection":
            return self._field(output, "image_embeds", "text_embeds")
        if self.pooling == "pooler":
            return self._field(output, "pooler_output").flatten(1)
        states = self._field(output, "last_hidden_state")
        if self.pooling == "cls":
            if states.ndim != 3:
                raise ValueError(
                    f"{type(self.model).__name__} has no first token, its output has shape "
                    f'{tuple(states.shape)}: use pooling="mean" or "pooler"'
                )
            return states[:, 0]
        if self.pooling == "last":
            if states.ndim != 3:
                raise ValueError(
                    f"{type(self.model).__name__} has no last token, its output has shape "
                    f'{tuple(states.shape)}: use pooling="mean" or "pooler"'
                )
            if attention_mask is None:
                return states[:, -1]
            position = torch.arange(states.shape[1], device=states.device)
            last = (position * (attention_mask > 0)).amax(1)
            return states[torch.arange(len(states), device=states.device), last]
        if states.ndim == 4:
            return states.mean((2, 3))
        if attention_mask is None:
            return states.mean(1)
        mask = attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp_min(1)

    def _field(self, output: Any, *names: str) -> Tensor:
        for name in names:
            value = getattr(output, name, None)
            if isinstance(value, Tensor):
                return value
        raise ValueError(
            f"{type(self.model).__name__} returns no {' or '.join(names)}, which "
            f"pooling={self.pooling!r} needs"
        )

    def extra_repr(self) -> str:
        """Return the options that decide the output."""
        return f"pooling={self.pooling!r}, dim={self.dim}"


class TransformersCollate:
    """Collate samples in which any modality may be missing into tensors and masks.

    An input counts as missing as in :func:`robustfusion.disruption.collate`. It is replaced by a
    placeholder that keeps every model finite: zeros, a black image, or a single mask token (a
    transformer that attends to nothing returns NaN). Pillow images become RGB before any
    processor.

    Args:
        processors: For each modality that needs one, a tokenizer or an image processor of
            transformers, or any function of one input, such as a transform of torchvision, that
            returns a tensor (or a mapping of tensors) of always the same shape. Other inputs are
            stacked if they are tensors.
        placeholders: For each modality that may be missing in a whole batch, one result of its
            function. Without it, an earlier result is used for its shape.
        padding: The padding of texts, for all tokenizers or by modality: True pads to the longest
            text of the batch, "max_length" always to ``max_length``. ``None`` is the padding that
            the model was trained with: "max_length" for a tokenizer of SigLIP and for any that
            returns no attention mask, because such a model cannot ignore padding; else True. The
            side of the padding is the tokenizer's own.
        max_length: Largest number of tokens of a text; the tokenizer's own limit if that is less.

    Raises:
        TypeError: If a processor is none of these; a ``CLIPProcessor``, say, holds two of them.
        ValueError: If a tokenizer has no padding token, or ``padding`` is unknown.

    Example:
        >>> from transformers import ViTImageProcessor
        >>> from PIL import Image
        >>> from robustfusion.integrations.transformers import TransformersCollate
        >>> make_batch = TransformersCollate({"image": ViTImageProcessor()})
        >>> images = Image.new("RGB", (50, 40), "white"), None
        >>> batch = make_batch([{"inputs": {"image": image}, "label": 1} for image in images])
        >>> batch["inputs"]["image"]["pixel_values"].shape, batch["available"]["image"]
        (torch.Size([2, 3, 224, 224]), tensor([ True, False]))

    Reference:
        ``DataCollatorWithPadding`` of transformers, which does this for texts.
    """

    def __init__(
        self,
        processors: Mapping[str, Any],
        *,
        placeholders: Mapping[str, Any] | None = None,
        padding: Padding | Mapping[str, Padding] | None = None,
        max_length: int = 128,
    ) -> None:
        check_positive(max_length, "max_length")
        for name, processor in processors.items():
            if _is_a(processor, "ProcessorMixin"):
                raise TypeError(
                    f'processors["{name}"] is a {type(processor).__name__}, which holds several: '
                    "give its .tokenizer to the text and its .image_processor to the image"
                )
            if not callable(processor):
                raise TypeError(
                    f'processors["{name}"] must be a tokenizer, an image processor or a function '
                    f"of one input, got {type(processor).__name__}"
                )
            if _is_a(processor, TOKENIZER) and processor.pad_token is None:
                raise ValueError(
                    f'processors["{name}"] has no padding token, so texts of different length '
                    "make no batch: set tokenizer.pad_token = tokenizer.eos_token"
                )
        paddings = padding if isinstance(padding, Mapping) else dict.fromkeys(processors, padding)
        check_keys(paddings, processors, "padding")
        for name, value in paddings.items():
            if value not in (None, True, "longest", "max_length"):
                raise ValueError(
                    f"padding of {name} must be True, 'longest', 'max_length' or None, got "
                    f"{value!r}"
                )
        self.padding = dict(paddings)
        self.processors = dict(processors)
        self.placeholders = dict(placeholders or {})
        self.max_length = max_length

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch like :func:`robustfusion.disruption.collate`, with processed inputs."""
        bare = [self._prepared(sample) for sample in samples]
        batch = collate(bare, placeholders=self.placeholders)
        for name, processor in self.processors.items():
            if _is_a(processor, *BATCHED):
                present = batch["available"][name].tolist()
                values = [sample["inputs"].get(name) for sample in samples]
                if _is_a(processor, TOKENIZER):
                    padding = self.padding.get(name) or _own_padding(processor)
                    processed = self._tokenize(processor, values, present, padding)
                else:
                    processed = _process_images(processor, values, present)
                batch["inputs"][name] = dict(processed)
        return batch

    def _prepared(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sample as tensors, except for inputs that are processed as a batch."""
        inputs = {**sample["inputs"]}
        for name in self.processors:
            inputs.setdefault(name, None)
        available = {name: is_there(sample, name) for name in inputs}
        for name, processor in self.processors.items():
            if _is_a(processor, *BATCHED):
                inputs[name] = torch.zeros(())  # is replaced when the batch is processed
            elif not available[name]:
                inputs[name] = None
            else:
                inputs[name] = processor(_as_rgb(inputs[name]))
                # Its shape serves a later batch in which the modality is missing altogether.
                self.placeholders.setdefault(name, placeholder(inputs[name]))
        return {**sample, "inputs": inputs, "available": available}

    def _tokenize(
        self, tokenizer: Any, texts: list[Any], present: list[bool], padding: Padding
    ) -> Any:
        lone = tokenizer.mask_token or tokenizer.unk_token or tokenizer.eos_token or "."
        # Half an emoji stops many tokenizers, and control characters mean nothing to them.
        return tokenizer(
            [
                clean_text(text) if seen else lone
                for text, seen in zip(texts, present, strict=True)
            ],
            padding=padding,
            truncation=True,
            max_length=min(self.max_length, tokenizer.model_max_length),
            return_tensors="pt",
        )


def _own_padding(tokenizer: Any) -> Padding:
    """Return the padding that the model of a tokenizer was trained with."""
    kind = f"{type(tokenizer).__name__} {tokenizer.init_kwargs.get('processor_class')}".lower()
    masked = "attention_mask" in tokenizer.model_input_names
    return True if masked and "siglip" not in kind else "max_length"


def _is_causal(model: nn.Module) -> bool:
    """Return whether the tokens of a model attend to earlier ones only."""
    if getattr(model.config, "model_type", None) == "clip_text_model":
        return True
    return any(getattr(module, "is_causal", None) is True for module in model.modules())


def _process_images(processor: Any, images: list[Any], present: list[bool]) -> Any:
    black = next((x for x, seen in zip(images, present, strict=True) if seen), None)
    if isinstance(black, Tensor):  # processors do not take tensors and pictures in one batch
        black = torch.zeros_like(black)
    else:
        black = import_pillow().new("RGB", (64, 64))  # processors resize it
    batch = [_as_rgb(x) if seen else black for x, seen in zip(images, present, strict=True)]
    return processor(batch, return_tensors="pt")


def _as_rgb(value: Any) -> Any:
    """Convert a Pillow image to RGB; gray and palette images break many processors."""
    return to_rgb(value) if is_pillow(value) else value


def _is_a(value: Any, *names: str) -> bool:
    """Return whether a value is an instance of a class of transformers, without importing it."""
    bases = (base for base in type(value).__mro__ if base.__module__.startswith("transformers"))
    return any(base.__name__ in names for base in bases)


def _width(config: Any, pooling: Pooling) -> int:
    names = ("projection_dim",) if pooling == "projection" else ("hidden_size", "hidden_sizes")
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
        if isinstance(value, list | tuple) and value:
            return int(value[-1])
    raise ValueError(
        f"{type(config).__name__} has no {' or '.join(names)}, which pooling={pooling!r} needs: "
        "give dim="
    )
