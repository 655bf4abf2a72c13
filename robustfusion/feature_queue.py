"""A first-in, first-out store of recent feature vectors, and rules for what may enter it."""

import math

import torch
from torch import Tensor, nn

from robustfusion._modules import arguments_of
from robustfusion._state import inside_backward, snapshot
from robustfusion._validation import check_between, check_mask, check_positive, check_vectors


class FeatureQueue(nn.Module):
    r"""Keep the most recent feature vectors of one modality.

    The contents are those of a ``deque(maxlen=capacity)`` to which the available rows are appended
    in order. As a layer it returns its input and, in training mode, stores it: put it behind any
    encoder. Stored rows are detached. Storing accepts any batch size and needs no host
    synchronization. A row is stored as it is: use ``available`` to keep NaN out, as the heads do.

    Args:
        dim: Width D of one feature vector.
        capacity: Number of rows N that are kept.

    Attributes:
        storage: (N, D), the rows in the order of their slots; zero where there is no data yet.
        valid: (N,) bool, True where a row of ``storage`` holds data.
        cursor: (), the slot of the next row.
        count: (), the number of rows that hold data.

    Shape:
        - ``features``: (B, D), any B
        - ``available``: (B,) bool, True where a row may be stored; ``None`` means all
        - Output: (B, D), the input itself

    Raises:
        ValueError: If a size is not positive or a shape does not fit.
        TypeError: If ``features`` is not floating or ``available`` not bool.

    Example:
        >>> import torch
        >>> from robustfusion import FeatureQueue
        >>> queue = FeatureQueue(dim=2, capacity=4)
        >>> _ = queue(torch.randn(3, 2))
        >>> _ = queue.enqueue(torch.randn(3, 2), torch.tensor([True, False, True]))
        >>> len(queue)
        4

    Note:
        All state is in persistent buffers, so a resumed run is the same run. The default buffer
        broadcast of ``DistributedDataParallel`` overwrites the queues of all ranks with those of
        rank 0: use ``forward_sync_buffers=False`` (``broadcast_buffers=False`` before torch 2.13)
        or gather the rows first, as :class:`~robustfusion.DRFHead` does. Averaging buffers mixes
        rows of different samples: average parameters only, or fill the queue again afterwards.

    Reference:
        The queues of section 3.2 of https://arxiv.org/abs/2511.18751, after MoCo,
        https://arxiv.org/abs/1911.05722.
    """

    slots: Tensor
    cursor: Tensor
    count: Tensor

    def __init__(self, dim: int, capacity: int = 512) -> None:
        super().__init__()
        check_positive(dim, "dim")
        check_positive(capacity, "capacity")
        self.dim = dim
        self.capacity = capacity
        # One spare slot behind the last takes the rows that are not stored.
        self.register_buffer("slots", torch.zeros(capacity + 1, dim))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @property
    def storage(self) -> Tensor:
        """(N, D), the rows in the order of their slots; zero where there is no data yet."""
        return self.slots[:-1]

    @property
    def valid(self) -> Tensor:
        """(N,) bool, True where a row of ``storage`` holds data."""
        count = snapshot(self.count, training=self.training)
        return torch.arange(self.capacity, device=count.device) < count

    @torch.no_grad()
    def enqueue(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Append the available rows, overwriting the oldest ones; also in evaluation mode.

        Returns:
            (B,) long, the slot of each row; N for a row that was not stored.
        """
        check_vectors(features, self.dim, "features", batched=True)
        if available is None:
            available = torch.ones(features.shape[0], dtype=torch.bool, device=features.device)
        check_mask(available, (features.shape[0],), "available")
        rank = available.cumsum(0)
        stored = rank[-1:].sum()  # also right for an empty batch
        # The n-th available row goes to the n-th slot from the cursor, every other row to the
        # spare slot, so that one indexed copy of fixed shape stores them all.
        if features.shape[0] > self.capacity:  # only the newest N rows have a slot
            available = available & (rank > stored - self.capacity)
        slots = (rank + (self.cursor - 1)).remainder_(self.capacity)
        slots = torch.where(available, slots, self.capacity)
        self.slots.index_copy_(0, slots, features.to(self.slots.dtype))
        self.slots[-1].zero_()
        self.cursor.add_(stored).remainder_(self.capacity)
        self.count.add_(stored).clamp_max_(self.capacity)
        return slots

    def reset(self) -> None:
        """Forget all rows."""
        self.slots.zero_()
        self.cursor.zero_()
        self.count.zero_()

    def forward(self, features: Tensor, available: Tensor | None = None) -> Tensor:
        """Store the available rows if in training mode, and return ``features``."""
        # Activation checkpointing repeats the forward in backward, when the rows are stored
        # already.
        if self.training and not inside_backward():
            self.enqueue(features, available)
        return features

    def __len__(self) -> int:
        return int(self.count)

    extra_repr = arguments_of


def admit_all(log_prob: Tensor, queue_log_prob: Tensor, valid: Tensor) -> Tensor:
    """Admit every row.

    Args:
        log_prob: (B,) log-density or log-quality of the new rows.
        queue_log_prob: (N,) the same of the rows in the queue.
        valid: (N,) bool, True where a queue row holds data.

    Returns:
        (B,) bool, a mask for :meth:`FeatureQueue.enqueue`.

    Example:
        >>> import torch
        >>> from robustfusion import admit_all
        >>> scores = torch.tensor([-2.0, -0.5])
        >>> queue_scores, valid = (
        ...     torch.tensor([-1.0, -1.0, 0.0]),
        ...     torch.tensor([True, True, False]),
        ... )
        >>> admit_all(scores, queue_scores, valid)
        tensor([True, True])
    """
    return torch.ones_like(log_prob, dtype=torch.bool)


def admit_above_mean(log_prob: Tensor, queue_log_prob: Tensor, valid: Tensor) -> Tensor:
    """Admit a row whose density exceeds the mean density of the queue: the paper's (13).

    Each admission tightens the queue around its mean, which raises the bar for the next: with a
    fixed encoder acceptance falls below 2 % and the queue's variance below its true value. Prefer
    :func:`admit_all` or :func:`admit_above_quantile` unless you reproduce the paper.

    The mean is taken over densities, in log space; with fewer than two valid rows everything
    enters. Arguments as in :func:`admit_all`.

    Example:
        >>> import torch
        >>> from robustfusion import admit_above_mean
        >>> scores = torch.tensor([-2.0, -0.5])
        >>> queue_scores, valid = (
        ...     torch.tensor([-1.0, -1.0, 0.0]),
        ...     torch.tensor([True, True, False]),
        ... )
        >>> admit_above_mean(scores, queue_scores, valid)
        tensor([False,  True])

    Reference:
        Equation (13) of https://arxiv.org/abs/2511.18751.
    """
    queue_log_prob = queue_log_prob.where(valid, -math.inf)
    log_mean = queue_log_prob.logsumexp(0) - valid.sum().log()
    # Fewer than two rows have no variance to compare with, and an empty queue would admit nothing.
    return (log_prob > log_mean) | (valid.sum() < 2)


def admit_above_quantile(
    log_prob: Tensor, queue_log_prob: Tensor, valid: Tensor, *, quantile: float = 0.05
) -> Tensor:
    """Admit a row that scores at least the given quantile of the queue's own scores.

    It keeps the least typical rows out and, unlike :func:`admit_above_mean`, keeps accepting about
    ``1 - quantile`` of them; with fewer than two valid rows everything enters. Set the quantile
    with ``functools.partial``. Arguments as in :func:`admit_all`.

    Example:
        >>> import torch
        >>> from robustfusion import admit_above_quantile
        >>> scores = torch.tensor([-2.0, -0.5])
        >>> queue_scores, valid = (
        ...     torch.tensor([-3.0, -1.0, 0.0]),
        ...     torch.tensor([True, True, False]),
        ... )
        >>> admit_above_quantile(scores, queue_scores, valid, quantile=1.0)
        tensor([False,  True])
    """
    check_between(quantile, 0.0, 1.0, "quantile")
    ordered = queue_log_prob.where(valid, math.inf).sort().values
    rank = (quantile * (valid.sum() - 1).clamp_min(0)).floor().long()
    return (log_prob >= ordered.gather(0, rank[None])[0]) | (valid.sum() < 2)
