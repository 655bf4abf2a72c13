"""Corruption of texts as token ids."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor

from robustfusion.disruption._draws import (
    Severity,
    check_kind,
    check_severity,
    choose,
    count_of,
    draw_severity,
)

TokenKind: TypeAlias = Literal["mask", "truncate"]
TokensT = TypeVar("TokensT")


@dataclass(frozen=True, kw_only=True)
class TokenCorruption:
    """Corrupt the token ids of one text, special tokens and padding excepted.

    `mask` replaces a share of the ordinary tokens by `mask_token_id`. `truncate` removes a share
    of them from the end: the special tokens move up and what becomes free is padding. Note that a
    share of the tokens is not quite a share of the words; to mask words as the paper does, give
    the string to `TextCorruption` and tokenize afterwards.

    Args:
        mask_token_id: Id of the mask token (`tokenizer.mask_token_id`).
        special_token_ids: Ids that are never touched (`tokenizer.all_special_ids`).
        pad_token_id: Id of padding, for `truncate`.
        kind: What is done to the ids.
        severity: A number, or a pair (low, high) from which each sample draws uniformly.

    Shape:
        A tensor (L,) of integer ids, or a mapping with `input_ids` (L,) and, optionally,
        `attention_mask` (L,), 0 where padded. The result has the same type; other entries of a
        mapping are passed on.

    Raises:
        ValueError: If `kind` is unknown, `severity` is no share or a shape is wrong.
        TypeError: If the input is neither a tensor of integers nor a mapping with one.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import TokenCorruption, sample_generator
        >>> corrupt = TokenCorruption(
        ...     mask_token_id=103, special_token_ids=(0, 101, 102), severity=1.0
        ... )
        >>> tokens = {
        ...     "input_ids": torch.tensor([101, 7, 8, 102, 0]),
        ...     "attention_mask": torch.tensor([1, 1, 1, 1, 0]),
        ... }
        >>> corrupt(tokens, sample_generator(0, "post-17", "text"))["input_ids"]
        tensor([101, 103, 103, 102,   0])

    Reference:
        After section 4.1 of https://arxiv.org/abs/2511.18751, which masks words; the mask token is
        that of Devlin et al., "BERT", NAACL 2019.
    """

    mask_token_id: int
    special_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    kind: TokenKind = "mask"
    severity: Severity = (0.4, 0.8)

    def __post_init__(self) -> None:
        check_kind(self.kind, get_args(TokenKind))
        check_severity(self.severity)
        object.__setattr__(self, "special_token_ids", tuple(self.special_token_ids))

    def __call__(self, tokens: TokensT, generator: np.random.Generator) -> TokensT:
        """Return a corrupted copy of `tokens`; all randomness comes from `generator`."""
        if isinstance(tokens, Tensor):
            return cast("TokensT", self._ids(tokens, torch.ones_like(tokens), generator)[0])
        if not isinstance(tokens, Mapping) or not isinstance(tokens.get("input_ids"), Tensor):
            raise TypeError(
                "tokens must be a tensor of ids or a mapping with a tensor input_ids, "
                f"got {type(tokens).__name__}"
            )
        ids = tokens["input_ids"]
        attention = tokens.get("attention_mask")
        attended = torch.ones_like(ids) if attention is None else attention
        new_ids, new_attention = self._ids(ids, attended, generator)
        result: Any = copy.copy(tokens)
        result["input_ids"] = new_ids
        if attention is not None:
            result["attention_mask"] = new_attention
        return cast("TokensT", result)

    def _ids(
        self, ids: Tensor, attention: Tensor, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        if ids.ndim != 1:
            raise ValueError(
                f"input_ids must have shape (L,), got {tuple(ids.shape)}: one sample at a time"
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"input_ids must be integers, got {ids.dtype}")
        if attention.shape != ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}, "
                f"got {tuple(attention.shape)}"
            )
        severity = draw_severity(self.severity, generator)
        values = ids.detach().cpu().numpy().copy()
        attended = attention.detach().cpu().numpy() != 0
        ordinary = np.flatnonzero(attended & ~np.isin(values, self.special_token_ids))
        count = count_of(severity, len(ordinary))
        if self.kind == "mask":
            values[ordinary[choose(len(ordinary), count, generator)]] = self.mask_token_id
            return torch.from_numpy(values).to(ids.device), attention.clone()
        dropped = np.zeros_like(attended)
        dropped[ordinary[len(ordinary) - count :]] = True
        kept = values[attended & ~dropped]
        places = np.flatnonzero(attended)
        free = len(places) - len(kept)
        # Padding grows on the side where it is: a tokenizer that pads left keeps its text right.
        left_padded = len(places) > 0 and places[0] > 0
        emptied = places[:free] if left_padded else places[len(kept) :]
        values[places[free:] if left_padded else places[: len(kept)]] = kept
        values[emptied] = self.pad_token_id
        new_attention = attention.clone()
        new_attention[torch.from_numpy(emptied).to(attention.device)] = 0
        return torch.from_numpy(values).to(ids.device), new_attention
