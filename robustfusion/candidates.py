"""Which modalities each candidate of a sample trusts."""

from collections.abc import Iterable
from itertools import combinations

import torch
from torch import Tensor, nn


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


def trusted_by(modalities: int, device: torch.device) -> Tensor:
    """Which modalities each of the candidates above trusts, (K, M) bool.

    >>> trusted_by(2, torch.device("cpu"))
    tensor([[ True,  True],
            [ True, False],
            [False,  True]])
    """
    alone = torch.eye(modalities, dtype=torch.bool, device=device)
    # All but one in the order of what they keep: the last modality goes first.
    but_one = [~alone.flip(0)] if modalities > 2 else []
    return torch.cat([torch.ones_like(alone[:1]), *but_one, alone])


def distinct_candidates(trusted: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Restrict candidates to what is present, and keep one of those that become the same.

    Args:
        trusted: (K, M) bool, which modalities each candidate trusts: all, all but one, one alone.
        present: (B, M) bool.

    Returns:
        (B, K, M) bool, the modalities that a candidate still trusts, and (B, K) bool, False for a
        candidate that trusts nothing or what a smaller one trusts too.
    """
    members = trusted & present[:, None]
    same = (members[:, :, None] == members[:, None]).all(-1)
    # Candidates come in the order of ever smaller sets; of equal ones the last is kept.
    later = same.new_ones(same.shape[1:]).triu(1)
    return members, members.any(-1) & ~(same & later).any(-1)


def pattern_temperature(temperature: Tensor, here: Tensor, trusted: Tensor) -> Tensor:
    """What the logits of samples that have just these modalities are divided by.

    Args:
        temperature: (K + 1,), for what each candidate trusts, then for every other pattern.
        here: (B, M) bool.
        trusted: (K, M) bool.

    Returns:
        (B, 1).
    """
    same = (trusted == here[:, None]).all(-1)
    own = (same * temperature[:-1]).sum(-1, keepdim=True)
    return own.where(same.any(-1, keepdim=True), temperature[-1])


def candidate_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Name the ``count`` candidates of a model: those of its ``candidates``, if it has so many.

    >>> from robustfusion import DRFHead
    >>> candidate_names(DRFHead({"image": 8, "text": 4}, num_classes=3), 3)
    ('image+text', 'image', 'text')
    """
    for module in model.modules():
        candidates = getattr(module, "candidates", None)
        if isinstance(candidates, tuple) and len(candidates) == count:
            return tuple(c if isinstance(c, str) else "+".join(c) for c in candidates)
    return tuple(f"candidate {k}" for k in range(count))
