"""Autocast, and the function transforms of torch.func where they make sense."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from robustfusion import (
    DRFHead,
    GaussianQualityEstimator,
    ModalityConverter,
    NeighborQualityEstimator,
    PaperDRFHead,
    QualityWeightedFusion,
)

DIMS = {"image": 6, "text": 4}
KINDS = pytest.mark.parametrize("kind", ["default", "paper"])


def make_head(kind: str) -> Any:
    return DRFHead(DIMS, 3, dropout=0.0) if kind == "default" else PaperDRFHead(DIMS, 3)


def trained(kind: str) -> Any:
    head = make_head(kind)
    for _ in range(3):
        head({m: torch.randn(16, d) for m, d in DIMS.items()})
    return head.eval()


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, None], ids=["float32 in", "half in"])
def test_autocast_trains_near_float32(
    kind: str, dtype: torch.dtype, given: torch.dtype | None
) -> None:
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        head = make_head(kind)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
        for _ in range(8):
            labels = torch.randint(3, (16,))
            inputs = {m: torch.randn(16, d) + labels[:, None] for m, d in DIMS.items()}
            inputs = {m: x.to(dtype).to(given or (dtype if enabled else torch.float32))
                      for m, x in inputs.items()}  # fmt: skip
            available = {m: torch.rand(16) > 0.3 for m in DIMS}
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                loss = head.loss(head(inputs, available), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, tensor in [*head.named_parameters(), *head.named_buffers()]:
            assert tensor.isfinite().all(), name
            assert not tensor.is_floating_point() or tensor.dtype == torch.float32, name
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_head_may_be_moved_to_another_dtype(kind: str, dtype: torch.dtype) -> None:
    head = make_head(kind).to(dtype)
    for _ in range(3):
        out = head({m: torch.randn(8, d, dtype=dtype) for m, d in DIMS.items()})
        loss = head.loss(out, torch.randint(3, (8,)))
        loss.backward()
    assert loss.isfinite()
    for name, p in head.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == dtype, name
        assert p.grad.isfinite().all(), name


@KINDS
def test_functional_call_and_grad_are_autograd(kind: str) -> None:
    head = trained(kind)
    parameters = {name: p.detach() for name, p in head.named_parameters()}
    features = {m: torch.randn(8, d) for m, d in DIMS.items()}
    labels = torch.randint(3, (8,))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        out: Any = functional_call(head, parameters, (features,))
        value: Tensor = nn.functional.cross_entropy(out.logits, labels)
        return value

    got = grad(loss)(parameters)
    value = nn.functional.cross_entropy(head(features).logits, labels)
    expected = torch.autograd.grad(value, list(head.parameters()), allow_unused=True)
    for (name, gradient), known in zip(got.items(), expected, strict=True):
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if known is None else known
        )
        assert gradient.isfinite().all(), name


@KINDS
def test_gradient_of_each_sample_by_vmap(kind: str) -> None:
    head = trained(kind)
    parameters = {name: p.detach() for name, p in head.named_parameters()}
    features = {m: torch.randn(5, d) for m, d in DIMS.items()}
    available = {m: torch.rand(5) > 0.4 for m in DIMS}
    labels = torch.randint(3, (5,))

    def loss(
        parameters: dict[str, Tensor], x: dict[str, Tensor], has: dict[str, Tensor], y: Tensor
    ) -> Tensor:
        one = {m: v[None] for m, v in x.items()}, {m: v[None] for m, v in has.items()}
        logits: Tensor = functional_call(head, parameters, one).logits
        return nn.functional.cross_entropy(logits, y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, features, available, labels)
    for row in range(5):
        x, has = (
            {m: v[row] for m, v in features.items()},
            {m: v[row] for m, v in available.items()},
        )
        one = grad(loss)(parameters, x, has, labels[row])
        for name, gradient in one.items():
            torch.testing.assert_close(each[name][row], gradient, rtol=1e-4, atol=1e-5)


def test_parts_under_vmap_are_the_parts_in_a_loop() -> None:
    x = torch.randn(7, 5, 6)
    parts: list[Any] = [
        GaussianQualityEstimator(6, covariance_type=kind).fit(torch.randn(50, 6)).eval()
        for kind in ("spherical", "diag", "full")
    ]
    parts += [NeighborQualityEstimator(6).fit(torch.randn(50, 6)).eval(), ModalityConverter(6, 3)]
    for part in parts:
        loop = torch.stack([part(rows) for rows in x])
        torch.testing.assert_close(vmap(part)(x), loop)
    fusion, candidates, scores = (
        QualityWeightedFusion(),
        torch.randn(7, 5, 3, 2),
        torch.randn(7, 5, 3),
    )
    loop = torch.stack([fusion(c, s) for c, s in zip(candidates, scores, strict=True)])
    torch.testing.assert_close(vmap(fusion)(candidates, scores), loop)


def test_an_ensemble_of_converters_by_vmap() -> None:
    converters = [ModalityConverter(6, 3) for _ in range(4)]
    parameters, state = torch.func.stack_module_state(converters)
    x = torch.randn(5, 6)

    def call(parameters: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(converters[0], (parameters, state), (x,))
        return out

    got = vmap(call)(parameters, state)
    torch.testing.assert_close(got, torch.stack([converter(x) for converter in converters]))
