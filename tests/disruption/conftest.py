"""No disruption may touch what is random elsewhere."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _global_randomness_untouched() -> Iterator[None]:
    """No test in this folder may advance or reset any global random state."""
    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index] # noqa: NPY002
    yield
    after = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # type: ignore[index] # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
