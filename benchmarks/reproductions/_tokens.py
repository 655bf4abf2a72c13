"""Token inputs: (B, L, D) per modality, where a vector (B, D) counts as one token."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustfusion._inputs import MAX_ABS_FEATURE
from robustfusion._modules import ModuleDict
from robustfusion._validation import (
    check_available,
    check_dims,
    check_mask,
    check_names,
    check_positive,
    check_vectors,
)
from robustfusion.baselines.head import cross_entropy
from robustfusion.output import HeadOutput


def masked_tokens(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
    token_mask: Mapping[str, Tensor] | None,
    dims: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Check the inputs and zero every token that is padding or belongs to a missing modality.

    A token that holds NaN, infinity or a value beyond 1e9 counts as padding.

    Returns:
        Tokens ``{name: (B, L_m, D_m)}``, their validity ``{name: (B, L_m)}`` and a mask (B, M) of
        the available modalities in the order of ``dims``: without a valid token one is missing.
    """
    if not isinstance(features, Mapping):
        raise TypeError(
            f"features must map modality names to tensors, got {type(features).__name__}"
        )
    check_names(features, dims, "features")
    first = next(iter(dims))
    tokens: dict[str, Tensor] = {}
    for name, dim in dims.items():
        x = features[name]
        check_vectors(x, dim, f'features["{name}"]')
        if x.ndim not in (2, 3):
            raise ValueError(
                f'features["{name}"] must have shape (B, {dim}) or (B, L, {dim}), '
                f"got {tuple(x.shape)}"
            )
        tokens[name] = x if x.ndim == 3 else x.unsqueeze(1)
        if x.shape[0] != features[first].shape[0]:
            raise ValueError(
                f'features["{name}"] has {x.shape[0]} rows, but features["{first}"] has '
                f"{features[first].shape[0]}"
            )
    batch, device = features[first].shape[0], features[first].device
    rows = check_available(available, dims, batch, device)
    masks = _token_masks(token_mask, tokens, dims)
    valid = {
        name: masks[name] & rows[name].unsqueeze(1) & (x.abs().amax(dim=-1) < MAX_ABS_FEATURE)
        for name, x in tokens.items()
    }
    clean = {name: tokens[name].where(valid[name].unsqueeze(-1), 0.0) for name in dims}
    return clean, valid, torch.stack([valid[name].any(dim=1) for name in dims], dim=1)


def _token_masks(
    token_mask: Mapping[str, Tensor] | None,
    tokens: Mapping[str, Tensor],
    dims: Mapping[str, int],
) -> dict[str, Tensor]:
    known = {} if token_mask is None else token_mask
    unknown = [name for name in known if name not in dims]
    if unknown:
        raise ValueError(f"token_mask has unknown modality {unknown[0]!r}; expected {list(dims)}")
    masks = {}
    for name in dims:
        shape = tuple(tokens[name].shape[:2])
        if name in known:
            check_mask(known[name], shape, f'token_mask["{name}"]')
            masks[name] = known[name].to(tokens[name].device)
        else:
            masks[name] = torch.ones(shape, dtype=torch.bool, device=tokens[name].device)
    return masks


def projections(dims: Mapping[str, int], width: int) -> ModuleDict[nn.Linear]:
    """Return one linear map per modality to a common width."""
    return ModuleDict({name: nn.Linear(dim, width) for name, dim in dims.items()})


def pick_text(dims: Mapping[str, int], text: str | None) -> str:
    """Return the leading modality: ``text`` if not None, else "text", else the first."""
    if text is None:
        return "text" if "text" in dims else next(iter(dims))
    if text not in dims:
        raise ValueError(f"text must be one of {list(dims)}, got {text!r}")
    return text


class TokenHead(nn.Module, ABC):
    """The base of the heads over tokens: how they are built, called and trained.

    ``forward`` zeroes every token that is padding or belongs to a missing modality, and only then
    calls ``fuse``. The docstring of a head names arguments, shapes and errors only where they
    differ from these.

    Args:
        dims: Width of each modality, ``{name: D_m}``; at least two.
        num_classes: Number of classes C.
        hidden_features: Width F of tokens and hidden layers.
        dropout: Dropout in the blocks, or after the hidden layer.

    Shape:
        - ``features[name]``: (B, dims[name]) or (B, L, dims[name])
        - ``available[name]``: (B,) bool; ``token_mask[name]``: (B, L) bool or None
        - ``logits``: (B, C); ``fused``: (B, F)

    Raises:
        ValueError: If an argument, a modality's name or a shape does not fit.
        TypeError: If features are not floating or a mask is not bool.
    """

    def __init__(
        self, dims: Mapping[str, int], num_classes: int, *, min_modalities: int = 2
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims, at_least=min_modalities)
        check_positive(num_classes, "num_classes")
        self.num_classes = num_classes

    def forward(
        self,
        features: Mapping[str, Tensor],
        available: Mapping[str, Tensor] | None = None,
        *,
        token_mask: Mapping[str, Tensor] | None = None,
    ) -> HeadOutput:
        """Fuse the available tokens; missing ones may hold anything."""
        return self.fuse(*masked_tokens(features, available, token_mask, self.dims))

    @abstractmethod
    def fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> HeadOutput:
        """Compute the output from tokens (B, L, D_m) that are zero where not valid (B, L)."""

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Return the cross-entropy plus the terms that need no labels."""
        return cross_entropy(output.logits, labels) + output.aux_loss
