"""The conditions of a report."""

from typing import Any

import pytest

from robustfusion.disruption import (
    robustness_grid,
)


def test_grid_has_the_papers_conditions() -> None:
    keys = [condition.key for condition in robustness_grid(("image", "text"))]
    assert len(keys) == len(set(keys)) == 1 + 2 * 3 + 5 * 3
    assert keys[:3] == ["clean", "fixed/image/C", "fixed/image/D"]
    assert keys[-1] == "random/1/C+D"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("image",)}, "at least two"),
        ({"settings": ("X",)}, "settings must be among"),
        ({"rates": (0.0,)}, "rates must lie in"),
        ({"rates": (1.2,)}, "rates must lie in"),
    ],
)
def test_grid_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness_grid(**{"modalities": ("image", "text"), **options})
