"""Know a forward that is only a repetition: activation checkpointing runs it again in backward."""

import torch


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
