"""Put your encoders in front of any head."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, keep_rows
from robustfusion._task_head import loss_options
from robustfusion._tree import map_tensors, tensors
from robustfusion._validation import check_available, check_names


class DRFClassifier(nn.Module):
    r"""Encode every modality with your encoders and classify with any head, DRF or not.

    The encoders are registered, so they train, move and are saved with the head. Floating inputs
    of missing rows are set to zero before the encoder sees them, also inside a dict of tensors.
    Token ids and strings of missing rows must hold a finite placeholder of your choice, such as a
    single [MASK]. Features of placeholders are masked before the head sees them. An encoder with
    batch statistics, such as batch norm, does see placeholders, and an encoder that divides by the
    norm of its input turns them into NaN gradients.

    Args:
        encoders: One module per modality that maps ``inputs[name]`` to (B, D_m).
        head: Any head, such as :class:`~robustfusion.DRFHead`: called with features and
            availability, with a ``loss(output, target)``.

    Shape:
        - ``inputs[name]``: whatever the encoder takes; ``available[name]``: (B,) bool, True where
          the modality is present; a modality that ``available`` leaves out is present everywhere
        - Output: the output of the head

    Raises:
        ValueError: If a modality is missing or unknown, its rows are not those of the others, or
            an encoder does not return one vector for each.
        TypeError: If an encoder or the head is not a module.

    Example:
        >>> import torch
        >>> from robustfusion import DRFClassifier, DRFHead
        >>> encoders = {"image": torch.nn.Linear(12, 8), "text": torch.nn.EmbeddingBag(100, 4)}
        >>> model = DRFClassifier(encoders, DRFHead({"image": 8, "text": 4}, num_classes=3))
        >>> inputs = {"image": torch.randn(5, 12), "text": torch.randint(100, (5, 7))}
        >>> available = {"image": torch.arange(5) > 1, "text": torch.ones(5, dtype=torch.bool)}
        >>> model(inputs, available).logits.shape
        torch.Size([5, 3])

    Reference:
        Encoders handed in by modality, as to the ``EarlyFusionModel`` of torchtune,
        https://github.com/pytorch/torchtune.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], head: nn.Module) -> None:
        super().__init__()
        for name, encoder in encoders.items():
            if not isinstance(encoder, nn.Module):
                raise TypeError(
                    f'encoders["{name}"] must be an nn.Module, got {type(encoder).__name__}'
                )
        if not isinstance(head, nn.Module):
            raise TypeError(f"head must be an nn.Module, got {type(head).__name__}")
        dims = getattr(head, "dims", None)
        if dims is not None:
            check_names(encoders, dims, "encoders")
        self.encoders = ModuleDict(dict(encoders))
        self.head = head

    def forward(
        self, inputs: Mapping[str, Any], available: Mapping[str, Tensor] | None = None
    ) -> Any:
        """Encode what is available and return the head's output."""
        check_names(inputs, self.encoders, "inputs", of_samples=True)
        return self.head(*self.encode(inputs, available))

    def encode(
        self, inputs: Mapping[str, Any], available: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return features, and availability on their devices: the arguments of the head.

        One encoding can be given to several heads, or to one head several times. If ``inputs``
        holds only some modalities, only these are encoded.
        """
        names = [name for name in self.encoders if name in inputs]
        check_names(inputs, names or self.encoders, "inputs", of_samples=True)
        batch, device = _batch_of(inputs, available)
        present = check_available(available, names, batch, device)
        features = {}
        for name in names:
            _check_rows(inputs[name], batch, f'inputs["{name}"]')
            encoded: Any = self.encoders[name](_blank(inputs[name], present[name]))
            if not isinstance(encoded, Tensor) or encoded.shape[:1] != (batch,):
                got = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded)
                raise ValueError(f'encoders["{name}"] must return ({batch}, D), got {got}')
            present[name] = present[name].to(encoded.device)
            features[name] = keep_rows(encoded, present[name])
        return features, present

    def loss(
        self,
        output: Any,
        target: Tensor,
        *,
        class_weight: Tensor | None = None,
        sample_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the head's training objective, see :meth:`DRFHead.loss`."""
        options = loss_options(class_weight, sample_weight, label_smoothing, reduction)
        loss: Tensor = self.head.loss(output, target, **options)  # type: ignore[operator]
        return loss


def _batch_of(
    inputs: Mapping[str, Any], available: Mapping[str, Tensor] | None
) -> tuple[int, torch.device]:
    for candidate in (*tensors(inputs), *tensors(available or {})):
        return candidate.shape[0], candidate.device
    return len(next(iter(inputs.values()))), torch.device("cpu")


def _check_rows(value: Any, batch: int, where: str) -> None:
    for tensor in tensors(value):
        if tensor.shape[:1] != (batch,):
            raise ValueError(f"{where} must have {batch} rows, got shape {tuple(tensor.shape)}")


def _blank(value: Any, present: Tensor) -> Any:
    """Zero the missing rows of floating tensors; leave ids, strings and the rest as they are."""
    return map_tensors(
        lambda x: keep_rows(x, present.to(x.device)) if x.is_floating_point() else x, value
    )
