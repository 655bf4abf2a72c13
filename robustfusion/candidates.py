"""The subsets of modalities that a head predicts from."""

from collections.abc import Iterable, Iterator
from itertools import combinations

import torch
from torch import Tensor, nn


class Candidates(nn.Module):
    r"""The subsets of modalities that a head trusts in turn: all, all but one, each single one.

    Up to three modalities these are all subsets. Beyond, they stay 2M + 1 in number where all
    subsets would be 2^M − 1, so that the cost is quadratic in M. Iterating gives the names of each
    subset, from the largest to the smallest, in the order of ``names``.

    Args:
        names: Names of the M modalities.
        subsets: Other subsets than the default ones.

    Attributes:
        subsets: The K tuples of names.
        mask: (K, M), 1 where a candidate trusts a modality.

    Example:
        >>> import torch
        >>> from robustfusion.candidates import Candidates
        >>> candidates = Candidates(["image", "text"])
        >>> list(candidates)
        [('image', 'text'), ('image',), ('text',)]
        >>> trusted, usable = candidates.restrict(torch.tensor([[True, False]]))
        >>> usable  # without a text, the complete candidate equals the one of the image
        tensor([[False,  True, False]])
    """

    mask: Tensor

    def __init__(
        self, names: Iterable[str], subsets: Iterable[tuple[str, ...]] | None = None
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        if subsets is None:
            sizes = sorted({len(self.names), len(self.names) - 1, 1}, reverse=True)
            subsets = (subset for size in sizes for subset in combinations(self.names, size))
        self.subsets = tuple(subsets)
        # A float, because packages that average buffers cannot subtract bools.
        mask = torch.tensor([[float(m in subset) for m in self.names] for subset in self.subsets])
        self.register_buffer("mask", mask)

    def restrict(self, available: Tensor) -> tuple[Tensor, Tensor]:
        """Restrict the candidates to the available modalities and drop duplicates.

        Args:
            available: (B, M) bool.

        Returns:
            (B, K, M) bool, the modalities that each candidate still trusts, and (B, K) bool, False
            for a candidate that trusts nothing or the same as a smaller candidate.
        """
        trusted = (self.mask > 0) & available[:, None]
        same = (trusted[:, :, None] == trusted[:, None]).all(-1)
        # Candidates are ordered by decreasing size; of equal ones the last is kept.
        index = torch.arange(len(self.subsets), device=same.device)
        return trusted, trusted.any(-1) & ((same * index).amax(-1) == index)

    def pattern(self, available: Tensor) -> Tensor:
        """Return the candidate that trusts exactly what is available, (B, M) -> (B,).

        K stands for every pattern that is no candidate.
        """
        same = ((self.mask > 0) == available[:, None]).all(-1)
        index = torch.arange(len(self.subsets), device=same.device)
        return torch.where(same, index, len(self.subsets)).amin(-1)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.subsets)

    def __len__(self) -> int:
        return len(self.subsets)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return self.subsets[index]

    def extra_repr(self) -> str:
        """Return the names of the modalities."""
        return ", ".join(self.names)


def candidate_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Name the ``count`` candidates of a model after its ``candidates``, if it has so many.

    >>> from robustfusion import DRFHead
    >>> candidate_names(DRFHead({"image": 8, "text": 4}, num_classes=3), 3)
    ('image+text', 'image', 'text')
    """
    for module in model.modules():
        candidates = getattr(module, "candidates", None)
        if isinstance(candidates, Candidates | tuple) and len(candidates) == count:
            return tuple(c if isinstance(c, str) else "+".join(c) for c in candidates)
    return tuple(f"candidate {k}" for k in range(count))
