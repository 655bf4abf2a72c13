"""The hand-built example equals ``PaperDRFHead`` bit for bit."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustfusion import PaperDRFHead

EXAMPLE = Path(__file__).parents[1] / "examples" / "compose_drf.py"
# The example's names for the head's parts.
NAMES = {
    "image_quality": "estimators.image",
    "text_quality": "estimators.text",
    "to_image": "recovery.converters.image.text",
    "to_text": "recovery.converters.text.image",
    "network": "network",
    "classifier": "classifier",
}


def pairs(example: nn.Module, head: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every parameter and buffer of the example beside the head's."""
    mine, theirs = example.state_dict(keep_vars=True), head.state_dict(keep_vars=True)
    for name in ("identity", "candidates.mask", "thresholds"):  # what the example does without
        del theirs[name]
    count = 0
    for name, prefix in NAMES.items():
        # Within a part the order is the same, though the head's network counts dropout layers.
        here = [value for key, value in mine.items() if key.startswith(f"{name}.")]
        there = [value for key, value in theirs.items() if key.startswith(f"{prefix}.")]
        for a, b in zip(here, there, strict=True):
            yield name, a, b
        count += len(here)
    assert count == len(mine) == len(theirs)


@pytest.fixture(scope="module")
def example() -> dict[str, object]:
    return runpy.run_path(str(EXAMPLE))


def test_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 100


def test_equals_the_paper_head_bit_for_bit(example: dict[str, object]) -> None:
    head: PaperDRFHead = PaperDRFHead({"image": 6, "text": 5}, 3)
    composed: nn.Module = example["ImageTextDRF"](6, 5, 3)  # type: ignore[operator]
    with torch.no_grad():
        for _, mine, his in pairs(composed, head):
            mine.copy_(his)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (head, composed)]
    entered = 0
    for step in range(8):
        image, text = (torch.randn(7, d).div(4).requires_grad_() for d in (6, 5))
        has_image, has_text = torch.rand(7) > 0.3, torch.rand(7) > 0.3
        if step == 3:
            has_image.zero_()
        labels = torch.randint(3, (7,))
        # Evaluation first, so that it too is compared at every state of the queues.
        for training in (False, True):
            head.train(training)
            composed.train(training)
            output = head({"image": image, "text": text}, {"image": has_image, "text": has_text})
            logits, aux_loss = composed(image, text, has_image, has_text)
            assert torch.equal(logits, output.logits), step
            assert torch.equal(aux_loss, output.aux_loss), step
        expected = head.loss(output, labels)
        # The head divides the sum over samples, so that an empty batch has a loss.
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = losses.sum() / 7 + aux_loss
        assert torch.equal(loss, expected), step
        for optimizer in optimizers:
            optimizer.zero_grad()
        of_head = torch.autograd.grad(expected, [image, text], retain_graph=True)
        of_mine = torch.autograd.grad(loss, [image, text], retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(of_mine, of_head, strict=True)), step
        expected.backward()  # type: ignore[no-untyped-call]
        loss.backward()
        for name, mine, his in pairs(composed, head):
            assert torch.equal(mine, his), (step, name)
            if mine.requires_grad:
                assert mine.grad is not None
                assert his.grad is not None
                assert torch.equal(mine.grad, his.grad), (step, name)
        for optimizer in optimizers:
            optimizer.step()
        entered = len(head.queues["image"])
    assert entered > 2


def test_main_learns(example: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    example["main"](20)  # type: ignore[operator]
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[3]) for line in lines]
    assert losses[-1] < losses[0]
