"""Models of transformers as encoders, and batches for them in which a modality may be missing."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustfusion._optional import import_pillow, is_pillow
from robustfusion._validation import check_positive
from robustfusion.datasets.pictures import to_rgb
from robustfusion.disruption import collate
from robustfusion.disruption.data import is_there, placeholder

Pooling: TypeAlias = Literal["cls", "mean", "pooler", "projection"]
TOKENIZER = "PreTrainedTokenizerBase"
BATCHED = (TOKENIZER, "ImageProcessingMixin")  # take a batch at a time


class TransformersEncoder(nn.Module):
    r"""Turn a model of transformers into an encoder: inputs in, one vector (B, dim) out.

    By ``pooling``, the vector of a sample is

    - "cls": the first token of the last layer: BERT, RoBERTa, ViT, DINOv2;
    - "mean": the mean over the tokens that are not padding, or over the places of a convolutional
      feature map: sentence transformers, ResNet;
    - "pooler": the model's ``pooler_output``: the towers of CLIP and SigLIP;
    - "projection": ``image_embeds`` or ``text_embeds``: ``CLIPVisionModelWithProjection``.

    The pooling has no default, because the wrong one costs accuracy without a word: the first
    token of a CLIP text tower, say, has seen no other. A model that carries both modalities
    (``CLIPModel``) is two encoders: give ``model.vision_model`` and ``model.text_model``.

    To freeze it, ``encoder.requires_grad_(False)``, and ``encoder.eval()`` after each ``train()``
    of what holds it, which switches its dropout on. With "cls" or "mean" a BERT's pooler gets no
    gradient: load it with ``add_pooling_layer=False`` under ``DistributedDataParallel``.

    Args:
        model: What ``AutoModel.from_pretrained`` returns, for images or texts.
        pooling: One of the above.
        dim: Width D, for a model whose config does not tell, such as MobileNetV2.

    Attributes:
        dim: Width D of the vectors.

    Shape:
        - ``inputs``: a mapping that the model takes as keyword arguments, or one tensor, its main
          input
        - Output: (B, D)

    Raises:
        ValueError: If ``pooling`` is unknown, or the model's output has no such vector.
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
        self.model = model
        self.pooling: Pooling = pooling
        # Before transformers 5 the towers of CLIP did not name it.
        first = next(iter(inspect.signature(model.forward).parameters))
        self.main_input: str = getattr(model, "main_input_name", first)
        if dim is not None:
            check_positive(dim, "dim")
        self.dim = _width(config, pooling) if dim is None else dim

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
        """Return what decides the output."""
        return f"pooling={self.pooling!r}, dim={self.dim}"


class TransformersCollate:
    """A collate function for inputs of any modality that may be missing: tensors and masks out.

    What is missing, :func:`robustfusion.disruption.collate` says. In its place comes a placeholder
    that keeps every model finite: zeros, a black image, or a lone mask token (a transformer that
    attends to nothing returns NaN). Pillow images are brought to RGB before any processor.

    Args:
        processors: For each modality that needs one, a tokenizer or an image processor of
            transformers, or any function of one input, such as a transform of torchvision, that
            returns a tensor (or a mapping of tensors) of always the same shape. Other inputs are
            stacked if they are tensors.
        placeholders: For each modality that may be missing in a whole batch, one row of what its
            function returns. Without it a row that was seen before serves for its shape.
        max_length: Most tokens of a text.

    Raises:
        TypeError: If a processor is neither; ``CLIPProcessor`` has both inside.

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
        self.processors = dict(processors)
        self.placeholders = dict(placeholders or {})
        self.max_length = max_length

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of samples as :func:`robustfusion.disruption.collate` takes and returns.

        Its ``inputs[name]`` are what the processor made.
        """
        bare = [self._prepared(sample) for sample in samples]
        batch = collate(bare, placeholders=self.placeholders)
        for name, processor in self.processors.items():
            if _is_a(processor, *BATCHED):
                present = batch["available"][name].tolist()
                values = [sample["inputs"].get(name) for sample in samples]
                process = self._tokenize if _is_a(processor, TOKENIZER) else _process_images
                batch["inputs"][name] = dict(process(processor, values, present))
        return batch

    def _prepared(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sample as tensors, but for what is processed a batch at a time."""
        inputs = {**sample["inputs"]}
        for name in self.processors:
            inputs.setdefault(name, None)
        available = {name: is_there(sample, name) for name in inputs}
        for name, processor in self.processors.items():
            if _is_a(processor, *BATCHED):
                inputs[name] = torch.zeros(())  # holds the place
            elif not available[name]:
                inputs[name] = None
            else:
                inputs[name] = processor(_shown(inputs[name]))
                # For a batch without any: its shape is known from here on.
                self.placeholders.setdefault(name, placeholder(inputs[name]))
        return {**sample, "inputs": inputs, "available": available}

    def _tokenize(self, tokenizer: Any, texts: list[Any], present: list[bool]) -> Any:
        lone = tokenizer.mask_token or tokenizer.unk_token or tokenizer.eos_token or "."
        return tokenizer(
            [text if here else lone for text, here in zip(texts, present, strict=True)],
            padding=True,
            truncation=True,
            max_length=min(self.max_length, tokenizer.model_max_length),
            return_tensors="pt",
        )


def _process_images(processor: Any, images: list[Any], present: list[bool]) -> Any:
    black = next((x for x, here in zip(images, present, strict=True) if here), None)
    if isinstance(black, Tensor):  # beside tensors goes a tensor: no processor takes a mixture
        black = torch.zeros_like(black)
    else:
        black = import_pillow().new("RGB", (64, 64))  # of any size: processors resize
    shown = [_shown(x) if here else black for x, here in zip(images, present, strict=True)]
    return processor(shown, return_tensors="pt")


def _shown(value: Any) -> Any:
    """Gray and palette images are common in the wild, and processors stumble over them."""
    return to_rgb(value) if is_pillow(value) else value


def _is_a(value: Any, *names: str) -> bool:
    """Whether a value is of a class of transformers, which a function does not need."""
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
