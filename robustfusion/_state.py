"""Copy state that a training step reads and then overwrites, and keep it precise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def snapshot(state: Tensor, *, training: bool) -> Tensor:
    """Copy a buffer, so that a later write in place cannot reach a pending backward.

    Evaluation writes nothing and needs no copy. In eager mode a copy is a ``clone``. Compiled code
    may repeat a ``clone`` in the backward pass, when the buffer has changed, and then the gradient
    is silently wrong (pytorch/pytorch#197039); the output of a custom operator is not recomputed.
    """
    if not training:
        return state
    return _opaque_copy(state) if torch.compiler.is_compiling() else state.clone()


def joined(states: Sequence[Tensor], *, training: bool) -> Tensor:
    """Concatenate buffers along their last dimension, as a copy like that of :func:`snapshot`."""
    copy = torch.cat(list(states), dim=-1)
    return _opaque_copy(copy) if training and torch.compiler.is_compiling() else copy


@torch.library.custom_op("robustfusion::copy", mutates_args=())
def _opaque_copy(state: Tensor) -> Tensor:
    # Compiled code can notice a repeated forward only when it runs, which is here.
    refuse_recompute("A compiled head")
    return state.clone()


@_opaque_copy.register_fake
def _(state: Tensor) -> Tensor:
    return torch.empty_like(state)


def inside_backward() -> bool:
    """Return whether this call runs within a backward pass, as a recomputed forward does.

    Traced code cannot ask and gets False; compiled code asks when it copies state. PyTorch has no
    public function for the question (pytorch/pytorch#144928).
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def refuse_recompute(module: str) -> None:
    """Raise if a forward that writes state runs a second time, within a backward pass.

    Raises:
        RuntimeError: Within a backward pass.
    """
    if inside_backward():
        raise RuntimeError(
            f"{module} ran again within a backward pass, as activation checkpointing makes it do. "
            "By then its queues hold this very batch, so the gradients would belong to another "
            "output: checkpoint the encoders and leave the head out"
        )


def keep_float32(fn: Callable[[Tensor], Tensor], *buffers: Tensor) -> Callable[[Tensor], Tensor]:
    """Let ``nn.Module._apply`` change every dtype, but never narrow that of statistics.

    Sums overflow in float16 and lose their last rows in bfloat16. A module with statistics
    overrides

    .. code-block:: python

        def _apply(self, fn, recurse=True):
            return super()._apply(keep_float32(fn, self.totals), recurse)

    Then ``.half()`` moves ``totals`` and leaves it in float32, and ``.double()`` widens it.
    """
    statistics = {id(buffer) for buffer in buffers}

    def change(tensor: Tensor) -> Tensor:
        changed = fn(tensor)
        if id(tensor) not in statistics or changed.dtype.itemsize >= 4:
            return changed
        # Start from the original: in ``changed`` large sums may be inf already.
        return tensor.to(changed.device, torch.promote_types(tensor.dtype, torch.float32))

    return change
