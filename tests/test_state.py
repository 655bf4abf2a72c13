"""State under activation checkpointing, narrow dtypes and averaged weights."""

import copy
from typing import Any

import pytest
import torch
from conformance import CASES
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from robustfusion import DRFClassifier, DRFHead, FeatureQueue, PaperDRFHead
from robustfusion._state import (
    inside_backward,
    keep_float32,
    refuse_recompute,
)

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


@REENTRANT
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.head and c.writes == "forward"])
def test_every_head_that_keeps_statistics_refuses(name: str, reentrant: bool) -> None:
    case = CASES[name]
    head, given = case.build().train(), case.inputs(8)
    key = "features" if "features" in given else "inputs"  # of a head, or of a classifier
    features = {m: x.requires_grad_() for m, x in given.pop(key).items()}

    def logits(*rows: Tensor) -> Tensor:
        out: Tensor = head(**{key: dict(zip(features, rows, strict=True))}, **given).logits
        return out

    loss = checkpoint(logits, *features.values(), use_reentrant=reentrant).sum()
    with pytest.raises(RuntimeError, match=r"ran again .* checkpoint the encoders"):
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


class Sums(nn.Module):
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((2,), 1e6))
        self.register_buffer("rows", torch.ones(2))
        self.register_buffer("count", torch.tensor(3))
        self.layer = nn.Linear(2, 2)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(keep_float32(fn, self.total), recurse)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nested", [False, True])
def test_statistics_stay_in_float32(narrow: torch.dtype, nested: bool) -> None:
    module: Any = Sums()
    model = nn.Sequential(module) if nested else module
    module = copy.deepcopy(model.to(narrow))
    module = module[0] if nested else module
    assert module.layer.weight.dtype == module.rows.dtype == narrow
    assert module.total.dtype == torch.float32
    assert module.total.tolist() == [1e6, 1e6], "not by way of the narrow dtype, where it is inf"
    assert module.count.dtype == torch.int64
    again = Sums().half()
    again.load_state_dict(module.state_dict())
    assert again.total.dtype == torch.float32
    assert module.double().total.dtype == torch.float64
    assert module.to(narrow).total.dtype == torch.float64, "never narrowed, whatever it was"
    assert Sums().to("meta", narrow).total.is_meta


@pytest.mark.parametrize("kind", ["default", "paper"])
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_statistics_of_a_narrow_head_are_those_of_a_wide_one(
    kind: str, narrow: torch.dtype
) -> None:
    wide = DRFHead(DIMS, 3) if kind == "default" else PaperDRFHead(DIMS, 3)
    head = copy.deepcopy(wide).to(narrow)
    for step in range(100):
        # Squares beyond 65504, then a constant, after which a length is zero.
        features = {m: (300 * torch.randn(8, d)).to(narrow) for m, d in DIMS.items()}
        if step == 50:
            features["image"] = torch.full((8, 6), 3.0, dtype=narrow)
        with torch.no_grad():
            head(features)
            wide({m: x.float() for m, x in features.items()})
    for name, buffer in head.named_buffers():
        assert buffer.isfinite().all(), name
        if name.endswith("moments"):
            assert buffer.dtype == torch.float32
            expected = wide.get_buffer(name)
            if "queue" in name:
                torch.testing.assert_close(buffer, expected, rtol=1e-3, atol=1e-3)


EMA: Any = swa_utils.get_ema_multi_avg_fn
EMA_OF_ONE: Any = swa_utils.get_ema_avg_fn
AVERAGES: dict[str, Any] = {
    "mean": {},
    "ema": {"multi_avg_fn": EMA(0.9)},
    "slow ema": {"multi_avg_fn": EMA(0.9999)},
    "ema, one by one": {"avg_fn": EMA_OF_ONE(0.999)},
    "one that follows": {"multi_avg_fn": EMA(0.0)},
}


def train(head: Any, averaged: AveragedModel, steps: int = 4) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(steps):
        features = {m: torch.randn(8, d) for m, d in DIMS.items()}
        optimizer.zero_grad()
        loss: Any = head.loss(head(features), torch.randint(3, (8,)))
        loss.backward()
        optimizer.step()
        averaged.update_parameters(head)
    return features


@pytest.mark.parametrize("kind", ["default", "paper"])
@pytest.mark.parametrize("average", AVERAGES)
def test_averaged_weights_go_with_the_state_of_the_latest(kind: str, average: str) -> None:
    # AveragedModel's default copies buffers.
    head = DRFHead(DIMS, 3) if kind == "default" else PaperDRFHead(DIMS, 3)
    averaged = AveragedModel(head, **AVERAGES[average])
    features = train(head, averaged)
    for name, buffer in averaged.module.named_buffers():
        assert torch.equal(buffer, head.get_buffer(name)), name
    if average != "one that follows":
        pairs = zip(averaged.module.parameters(), head.parameters(), strict=True)
        assert any(not torch.equal(p, q) for p, q in pairs)
    assert averaged.eval()(features).logits.isfinite().all()
