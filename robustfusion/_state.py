"""Read a buffer that the same step will overwrite."""

import torch
from torch import Tensor

from robustfusion._recompute import refuse_recompute


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
