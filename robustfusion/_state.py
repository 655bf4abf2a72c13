"""State that a training step reads and then overwrites: copied, kept precise, written once."""

from collections.abc import Callable

import torch
from torch import Tensor


def snapshot(state: Tensor, *, training: bool) -> Tensor:
    """Copy a buffer, so that a later write in place cannot reach a pending backward.

    Evaluation writes nothing and needs no copy. Eagerly a copy is a ``clone``. Compiled, torch may
    copy anew in the backward, from the buffer as it is by then, and the gradient is wrong without
    a word (pytorch/pytorch#197039); what a custom operator returns is never computed twice.
    """
    if not training:
        return state
    return _opaque_copy(state) if torch.compiler.is_compiling() else state.clone()


@torch.library.custom_op("robustfusion::copy", mutates_args=())
def _opaque_copy(state: Tensor) -> Tensor:
    # Compiled code gets here when it runs, and can tell a repeated forward only now.
    refuse_recompute("A compiled head")
    return state.clone()


@_opaque_copy.register_fake
def _(state: Tensor) -> Tensor:
    return torch.empty_like(state)


def inside_backward() -> bool:
    """Whether this call runs within a backward pass, as a recomputed forward does.

    Traced code cannot ask, so there the answer is False: what is compiled asks as it copies state.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1


def refuse_recompute(module: str) -> None:
    """Raise if a forward that writes state runs a second time.

    Raises:
        RuntimeError: Within a backward pass.
    """
    if inside_backward():
        raise RuntimeError(
            f"{module} ran again within a backward pass, as activation checkpointing makes it do. "
            "By then its queues hold this very batch, so the gradients would belong to another "
            "output: checkpoint the encoders and leave the head out"
        )


# Beside state that must not be averaged. No floating point number: whoever averages buffers
# computes in those, and so leaves another integer behind, even as the average of equal ones.
SEAL = 2**62 + 1


def check_seal(seal: Tensor, *, wait: bool = False) -> None:
    """Raise if a seal was averaged, and so the state beside it.

    Args:
        seal: () long.
        wait: Also ask a device for which the host would have to wait.

    Raises:
        RuntimeError: If it is no ``SEAL``.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return
    # Nor within a transform of torch.func, where no tensor shows its data.
    if type(seal) is not Tensor or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    found = SEAL
    if seal.is_cpu:
        found = seal.numpy().item()  # without any operator
    elif wait and not seal.is_meta:
        found = int(seal)
    if found != SEAL:
        raise RuntimeError(
            "the slots of a queue were averaged, though each holds another sample at every "
            "update: average parameters and copy buffers, as AveragedModel does with "
            "use_buffers=False, or copy the buffers of the trained model over the averaged ones"
        )


def keep_float32(fn: Callable[[Tensor], Tensor], *buffers: Tensor) -> Callable[[Tensor], Tensor]:
    """Let ``nn.Module._apply`` change the dtype of all tensors but narrow that of statistics.

    Sums overflow in float16, and in bfloat16 they lose their last rows. Their module overrides

    .. code-block:: python

        def _apply(self, fn, recurse=True):
            return super()._apply(keep_float32(fn, self.totals), recurse)

    Then ``.half()`` moves ``totals`` and leaves it in float32, and ``.double()`` widens it.
    """
    kept = {id(buffer) for buffer in buffers}

    def change(tensor: Tensor) -> Tensor:
        changed = fn(tensor)
        if id(tensor) not in kept or changed.dtype.itemsize >= 4:
            return changed
        # Not from ``changed``, in which large sums are inf by now.
        return tensor.to(changed.device, torch.promote_types(tensor.dtype, torch.float32))

    return change
