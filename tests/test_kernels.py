"""How many kernels the default head launches: counted, so that it is the same on every machine.

On a GPU a step of small kernels takes as long as their launches. The bounds are what is there;
whoever makes it less lowers them.
"""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from robustfusion import DRFHead
from robustfusion.baselines import ConcatenationHead

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TRAINING, EVALUATION = (308, 100), (157, 47)  # two modalities, each further one


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed")


def test_views_are_no_kernels(speed: ModuleType) -> None:
    rows = torch.ones(2, 3)
    assert speed.count_kernels(lambda: rows.T[None].expand(4, 3, 2)) == 0
    assert speed.count_kernels(lambda: (rows.T + 1).sum()) == 2


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("rows", [2, 16])
def test_kernels_of_the_default_head(speed: ModuleType, modalities: int, rows: int) -> None:
    torch.manual_seed(0)
    head = DRFHead({f"m{index}": 8 + index for index in range(modalities)}, num_classes=3)
    features = {name: torch.randn(rows, dim) for name, dim in head.dims.items()}
    labels = torch.randint(3, (rows,))

    def step() -> None:
        head.loss(head(features), labels).backward()  # type: ignore[no-untyped-call]

    step()  # gradients are there from now on
    counted = speed.count_kernels(step)
    assert counted == speed.count_kernels(step), "a step depends on what is queued"
    assert counted <= TRAINING[0] + (modalities - 2) * TRAINING[1]
    head.eval()
    with torch.inference_mode():
        counted = speed.count_kernels(lambda: head(features))
    assert 0 < counted <= EVALUATION[0] + (modalities - 2) * EVALUATION[1]


def test_multiply_adds_of_a_step_at_the_default_widths(speed: ModuleType) -> None:
    """They are 2.843 times those of a concatenation, however full the queues are."""
    counts = []
    heads = (speed.filled(DRFHead), DRFHead(speed.READY, 3), ConcatenationHead(speed.READY, 3))
    for head in heads:
        with FlopCounterMode(display=False) as counter:
            speed.step(head, speed.draw(16))
        counts.append(counter.get_total_flops())
    full, empty, plain = counts
    assert full == empty
    assert full / plain == pytest.approx(2.843, abs=1e-3)
