"""Gather the feature rows of all ranks of a distributed run."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


@torch.no_grad()
def gather_rows(
    features: Tensor, available: Tensor, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Concatenate the rows of all ranks in rank order; batches may differ in size or be empty.

    Every rank gets the same tensors as one process would have seen with the batches one after the
    other, without padding, so that whatever is computed from them has the same bits. Without an
    initialized process group, or with one rank, the input is returned.

    It is a collective call: every rank must make it equally often. DDP's ``join()`` does not
    ensure that, so under it this is an error unless ``throw_on_early_termination=True``.

    Args:
        features: (B, D); B may differ between ranks and be 0.
        available: (B,) bool.
        group: Process group; ``None`` is the default group.

    Returns:
        (R, D) rows and their (R,) mask, with R the sum of B over ranks.

    Raises:
        RuntimeError: Within ``DistributedDataParallel.join()``.

    Example:
        >>> import torch
        >>> from robustfusion.distributed import gather_rows
        >>> rows, mask = gather_rows(torch.ones(2, 3), torch.tensor([True, False]))
        >>> rows.shape
        torch.Size([2, 3])

    Reference:
        Sizes, padding, one gather, trimming: as ``gather_all_tensors`` of torchmetrics,
        https://github.com/Lightning-AI/torchmetrics.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return features, available
    ranks = dist.get_world_size(group)
    if ranks == 1:
        return features, available
    _refuse_join()
    size = torch.tensor([features.shape[0]], device=features.device)
    gathered = [torch.zeros_like(size) for _ in range(ranks)]
    dist.all_gather(gathered, size, group=group)
    # The host must know the sizes of the receiving buffers; this waits for the device once a step.
    sizes: list[int] = torch.cat(gathered).tolist()
    # The mask is sent as one more column, which saves a collective call.
    packed = torch.cat([features.detach(), available[:, None].to(features.dtype)], dim=1)
    padded = torch.nn.functional.pad(packed, (0, 0, 0, max(sizes) - features.shape[0]))
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    if max(sizes) > 0:
        dist.all_gather(parts, padded.contiguous(), group=group)
    rows = torch.cat([part[:count] for part, count in zip(parts, sizes, strict=True)])
    return rows[:, :-1].contiguous(), rows[:, -1] != 0


def _refuse_join() -> None:
    """Raise where a rank that has run out of batches would leave the others waiting."""
    if torch.compiler.is_compiling():
        return
    ddp: Any = (
        DistributedDataParallel._active_ddp_module
    )  # the model whose forward pass is running
    config = getattr(ddp, "_join_config", None)
    if config is not None and config.enable and not config.throw_on_early_termination:
        raise RuntimeError(
            "a head that gathers rows cannot train within DistributedDataParallel.join(): a rank "
            "without batches does not answer, and the others wait until they time out. Give every "
            "rank as many batches, as DistributedSampler does, or join with "
            "throw_on_early_termination=True, or build the head with gather_distributed=False"
        )
