"""What every DRF head shares: its output, its candidates, and how inputs are made safe."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from robustfusion._modules import keep_rows
from robustfusion._validation import check_available, check_features

LARGEST = 1e9  # of a valid feature; squares and cubes of larger ones overflow float32


class DRFOutput(NamedTuple):
    """What a DRF head returns.

    Attributes:
        logits: (B, C).
        fused: (B, F), the weighted sum of the candidates, for any other task head.
        candidate_logits: (B, K, C), the prediction from each candidate alone.
        weights: (B, K), in the order of ``head.candidates``; 0 for what is not available.
        log_quality: (B,) for each modality, −inf where it is not available.
        recovered: ``recovered[target][source]``, (B, D_target); empty where nothing is.
        aux_loss: Scalar, the loss terms that need no labels.
        usable: (B, K) bool, True where a candidate exists for the sample.
        member_logits: (B, K, E, C), what ``head.loss`` supervises; their mean over E is
            ``candidate_logits``. ``None`` in evaluation and where candidates have no members.

    Example:
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> available = {"image": torch.arange(5) > 0, "text": torch.ones(5, dtype=torch.bool)}
        >>> out = head({"image": torch.randn(5, 8), "text": torch.randn(5, 4)}, available)
        >>> head.candidates, out.usable[0]
        ((('image', 'text'), ('image',), ('text',)), tensor([False, False,  True]))
        >>> out.weights[0], out.log_quality["image"][0]
        (tensor([0., 0., 1.]), tensor(-inf))

    Reference:
        The qualities of (10) and (11), the expanded samples of (12) and the terms of (16) without
        labels, https://arxiv.org/abs/2511.18751.
    """

    logits: Tensor
    fused: Tensor
    candidate_logits: Tensor
    weights: Tensor
    log_quality: dict[str, Tensor]
    recovered: dict[str, dict[str, Tensor]]
    aux_loss: Tensor
    usable: Tensor
    member_logits: Tensor | None = None


def enumerate_candidates(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """List which modalities each candidate trusts: all, all but one, one alone.

    Up to three modalities these are all subsets. Beyond, they stay 2M + 1 in number where all
    subsets would be 2^M − 1, so that cost is quadratic in M.

    >>> enumerate_candidates(["image", "text"])
    (('image', 'text'), ('image',), ('text',))
    """
    names = tuple(names)
    sizes = sorted({len(names), len(names) - 1, 1}, reverse=True)
    return tuple(subset for size in sizes for subset in combinations(names, size))


def distinct_candidates(trusted: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Restrict candidates to what is present, and keep one of those that become the same.

    Args:
        trusted: (K, M) bool, which modalities each candidate trusts: all, all but one, one alone.
        present: (B, M) bool.

    Returns:
        (B, K, M) bool, the modalities that a candidate still trusts, and (B, K) bool, False for a
        candidate that trusts nothing or what a smaller one trusts too.
    """
    modalities = trusted.shape[1]
    size, here = trusted.sum(1), present.sum(1, keepdim=True)
    trusts_all_here = ~(present[:, None] & ~trusted).any(-1)
    trusts_absent = (trusted & ~present[:, None]).any(-1)
    alone = ~trusts_absent
    # It equals one of the smaller candidates unless nothing is absent, or too much.
    complete = (here == modalities) | ((here > 1) & (here < modalities - 1))
    # Without a modality that is absent anyway it stands for the complete rest.
    but_one = (trusts_all_here & (here > 1) & (here == modalities - 1)) | (
        ~trusts_all_here & (here > 2)
    )
    # Not torch.where: ONNX runtimes have none for bool.
    every, one = size == modalities, size == 1
    usable = (every & complete) | (one & alone) | (~every & ~one & but_one)
    return trusted & present[:, None], usable


def make_safe(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None,
    dims: Mapping[str, int],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Check shapes, zero unavailable rows, and count rows no statistics survive as unavailable."""
    batch = check_features(features, dims)
    device = next(iter(features.values())).device
    given = check_available(available, dims, batch, device)
    present = {name: given[name] & (features[name].abs().amax(-1) < LARGEST) for name in dims}
    return {name: keep_rows(features[name], present[name]) for name in dims}, present


def all_of(masks: Sequence[Tensor]) -> Tensor:
    """Elementwise ``and`` of at least one mask."""
    return torch.stack(list(masks)).all(0)
