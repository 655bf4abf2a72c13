"""Activation checkpointing runs a forward twice: a queue must not notice, a head must refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustfusion import DRFClassifier, DRFHead, FeatureQueue, PaperDRFHead
from robustfusion._recompute import inside_backward, refuse_recompute

DIMS = {"image": 6, "text": 4}
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "hooks"])


class Spy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(inside_backward())
        out: Tensor = self.linear(x).relu()
        return out


@REENTRANT
def test_only_the_second_forward_is_inside_backward(reentrant: bool) -> None:
    spy = Spy()
    x = torch.randn(2, 3, requires_grad=True)
    checkpoint(spy, x, use_reentrant=reentrant).sum().backward()
    spy(x)
    assert spy.seen == [False, True, False]


def test_refusing_says_what_to_do_and_compiles_to_nothing() -> None:
    class Careful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            refuse_recompute("Careful")
            return x.sin()

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Careful ran again .* checkpoint the encoders"):
        checkpoint(Careful(), x, use_reentrant=False).sum().backward()
    compiled: Any = torch.compile(Careful(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x.sin())


@REENTRANT
def test_a_checkpointed_queue_stores_its_rows_once(reentrant: bool) -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), FeatureQueue(4, 16), nn.Linear(4, 2))
    x = torch.randn(5, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    queue = layer[2]
    assert isinstance(queue, FeatureQueue)
    assert len(queue) == 5
    assert torch.equal(queue.storage[:5], layer[:2](x))


@REENTRANT
@pytest.mark.parametrize("kind", ["default", "paper"])
def test_a_checkpointed_head_is_refused(kind: str, reentrant: bool) -> None:
    head = DRFHead(DIMS, 3) if kind == "default" else PaperDRFHead(DIMS, 3)

    def logits(image: Tensor, text: Tensor) -> Tensor:
        out: Tensor = head({"image": image, "text": text}).logits
        return out

    image, text = torch.randn(5, 6, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = checkpoint(logits, image, text, use_reentrant=reentrant).sum()
    with pytest.raises(RuntimeError, match=r"Head ran again .* checkpoint the encoders"):
        loss.backward()


@pytest.mark.parametrize("kind", ["default", "paper"])
def test_a_compiled_head_is_refused_too(kind: str) -> None:
    head: Any = DRFHead(DIMS, 3) if kind == "default" else PaperDRFHead(DIMS, 3)
    compiled: Any = torch.compile(head, backend="aot_eager")

    def logits(image: Tensor, text: Tensor) -> Tensor:
        out: Tensor = compiled({"image": image, "text": text}).logits
        return out

    image, text = torch.randn(5, 6, requires_grad=True), torch.randn(5, 4)
    loss = checkpoint(logits, image, text, use_reentrant=False).sum()
    with pytest.raises(RuntimeError, match=r"ran again .* checkpoint the encoders"):
        loss.backward()


@REENTRANT
@pytest.mark.parametrize("kind", ["default", "paper"])
def test_an_evaluated_head_may_be_checkpointed(kind: str, reentrant: bool) -> None:
    head = (DRFHead(DIMS, 3) if kind == "default" else PaperDRFHead(DIMS, 3)).eval()
    image, text = torch.randn(5, 6, requires_grad=True), torch.randn(5, 4)

    def logits(image: Tensor) -> Tensor:
        out: Tensor = head({"image": image, "text": text}).logits
        return out

    checkpoint(logits, image, use_reentrant=reentrant).sum().backward()
    (expected,) = torch.autograd.grad(logits(image).sum(), image)
    torch.testing.assert_close(image.grad, expected)


@pytest.mark.parametrize("kind", ["default", "paper"])
def test_checkpointed_encoders_change_nothing(kind: str) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=False)

    results = []
    for wrapper in (lambda inner: inner, Checkpointed):
        torch.manual_seed(0)
        encoders = {m: nn.Sequential(nn.Linear(d, d), nn.ReLU()) for m, d in DIMS.items()}
        head = DRFHead(DIMS, 3, dropout=0.0) if kind == "default" else PaperDRFHead(DIMS, 3)
        model = DRFClassifier({m: wrapper(e) for m, e in encoders.items()}, head)
        for _ in range(2):
            inputs = {m: torch.randn(8, d) for m, d in DIMS.items()}
            loss: Any = model.loss(model(inputs), torch.randint(3, (8,)))
            loss.backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    (gradients, state), (expected, expected_state) = results
    assert all(torch.equal(a, b) for a, b in zip(state, expected_state, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(gradients, expected, strict=True)
        if a is not None and b is not None
    )
