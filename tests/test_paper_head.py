"""The paper's head and the head contract at its borders. Its equations are in test_paper."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfusion import DRFHead, FeatureQueue, PaperDRFHead
from robustfusion._modules import mlp

DIMS = {"image": 3, "text": 4}
heads = pytest.mark.parametrize("head", [DRFHead, PaperDRFHead])
Head = Callable[..., Any]


def batch(**changes: Any) -> dict[str, Any]:
    features = {m: torch.randn(6, d) / 2 for m, d in DIMS.items()}
    available = {m: torch.ones(6, dtype=torch.bool) for m in DIMS}
    features.update(changes.get("features", {}))
    available.update(changes.get("available", {}))
    return {"features": features, "available": available}


def test_paper_builds_the_paper_s_head() -> None:
    head = PaperDRFHead(DIMS, 3)
    assert type(head) is PaperDRFHead
    assert head.candidates.subsets == (("image", "text"), ("image",), ("text",))
    assert {q.capacity for q in head.queues.values()} == {512}
    assert not head.fusion.normalize
    assert not head.recovery.detach
    assert [m.out_features for m in head.network if isinstance(m, nn.Linear)] == [768] * 3


def test_candidates_of_more_modalities() -> None:
    three = PaperDRFHead({"a": 2, "b": 3, "c": 4}, 3).candidates.subsets
    assert three == (
        ("a", "b", "c"), ("a", "b"), ("a", "c"), ("b", "c"), ("a",), ("b",), ("c",)
    )  # fmt: skip
    six = PaperDRFHead(dict.fromkeys("abcdef", 2), 3).candidates.subsets
    assert len(six) == len(set(six)) == 13
    assert {len(candidate) for candidate in six} == {6, 5, 1}


def test_a_missing_modality_is_replaced_by_its_recovery() -> None:
    # Three modalities: the third is recovered by the mean over the sources that are there.
    dims = {"a": 2, "b": 3, "c": 4}
    head = PaperDRFHead(dims, 3, expansion=False).eval()
    features = {m: torch.randn(4, d) for m, d in dims.items()}
    available = {m: torch.ones(4, dtype=torch.bool) for m in dims}
    available["c"] = torch.zeros(4, dtype=torch.bool)
    available["b"] = torch.tensor([True, True, False, False])
    convert = head.recovery.convert
    from_a = convert("a", "c", features["a"])
    from_b = convert("b", "c", features["b"])
    c = torch.where(available["b"][:, None], (from_a + from_b) / 2, from_a)
    b = torch.where(available["b"][:, None], features["b"], convert("a", "b", features["a"]))
    by_hand = head.network(torch.cat([features["a"], b, c], 1))
    scores = zip(dims, (features["a"], b, c), strict=True)
    weight = sum(head.estimators[m].log_prob(x) for m, x in scores).exp()  # type: ignore[union-attr]
    output = head(features, available)
    torch.testing.assert_close(output.fused, weight[:, None] * by_hand)


def test_statistics_are_those_before_the_step() -> None:
    head = PaperDRFHead(DIMS, 3)
    given = batch()
    for _ in range(3):
        before = {m: e.distribution for m, e in head.estimators.items()}
        output = head(**given)
        for m, gaussian in before.items():
            squared = (given["features"][m] - gaussian.mean).square().sum(1)
            expected = -squared / gaussian.scale**2 / 2 - gaussian.scale.log() - 0.9189385
            torch.testing.assert_close(output.log_quality[m], expected)


def test_features_pull_on_the_encoders_in_the_paper() -> None:
    head, given = PaperDRFHead(DIMS, 3), batch()
    for x in given["features"].values():
        x.requires_grad_()
    head(**given).aux_loss.backward()
    assert all((x.grad != 0).any() for x in given["features"].values())


def test_training_lowers_the_classification_loss() -> None:
    for build in (DRFHead, PaperDRFHead):
        torch.manual_seed(0)
        head: Any = build(DIMS, 3)
        labels = torch.arange(48) % 3
        centres = {m: torch.randn(3, d) for m, d in DIMS.items()}
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
        losses = []
        for _ in range(25):
            features = {
                m: (c[labels] + torch.randn(48, DIMS[m]) / 4) / 4 for m, c in centres.items()
            }
            available = {"image": torch.rand(48) > 0.2, "text": torch.ones(48, dtype=torch.bool)}
            output = head(features, available)
            loss = head.loss(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # The other terms follow the queues, which fill and move.
            losses.append((loss - output.aux_loss).item())
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), build


@heads
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"features": {"text": torch.ones(6, 9)}},
            ValueError,
            r'features\["text"\] must have shape \(B, 4\), got \(6, 9\)',
        ),
        (
            {"features": {"text": torch.ones(6, 4).long()}},
            TypeError,
            r'features\["text"\] must have a floating dtype, got torch.int64',
        ),
        (
            {"features": {"text": torch.ones(5, 4)}},
            ValueError,
            r'features\["text"\] has 5 rows, but features\["image"\] has 6',
        ),
        (
            {"features": {"audio": torch.ones(6, 4)}},
            ValueError,
            r"features has unknown modality 'audio'; expected \['image', 'text'\]",
        ),
        (
            {"available": {"text": torch.ones(5).bool()}},
            ValueError,
            r'available\["text"\] must have shape \(6,\), got \(5,\)',
        ),
        (
            {"available": {"text": torch.ones(6)}},
            TypeError,
            r'available\["text"\] must have dtype torch.bool, got torch.float32',
        ),
        (
            {"available": {"text": [True] * 6}},
            TypeError,
            r'available\["text"\] must be a torch.Tensor, got list',
        ),
        (
            {"available": {"audio": torch.ones(6).bool()}},
            ValueError,
            r"available has unknown modality 'audio'",
        ),
    ],
)
def test_errors_name_the_modality(
    head: Head, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        head(DIMS, 3)(**batch(**changes))


@heads
def test_an_absent_modality_says_what_to_do(head: Head) -> None:
    given = batch()
    del given["features"]["text"]
    with pytest.raises(
        ValueError, match=r'features lacks modality .text.*available\["text"\] = F'
    ):
        head(DIMS, 3)(**given)
    with pytest.raises(
        TypeError, match=r"features must map modality names to tensors, got Tensor"
    ):
        head(DIMS, 3)(torch.ones(6, 3))
    with pytest.raises(TypeError, match=r"available must map modality names to bool tensors"):
        head(DIMS, 3)(batch()["features"], torch.ones(6).bool())


@heads
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 1]), ValueError, r"target must be in \[0, 3\) or .*got 3"),
        (torch.tensor([0, 1, 2, -1, 0, 1]), ValueError, r"target must be in \[0, 3\) .*got -1"),
        (torch.zeros(5).long(), ValueError, r"target must have shape \(6,\) .*got \(5,\)"),
        (torch.zeros(6), ValueError, r"does not fit task='multiclass': use 'regression'"),
        ([0] * 6, TypeError, r"target must be a torch.Tensor, got list"),
    ],
)
def test_label_errors_say_the_range(
    head: Head, labels: Any, error: type[Exception], message: str
) -> None:
    built = head(DIMS, 3)
    with pytest.raises(error, match=message):
        built.loss(built(**batch()), labels)


@heads
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_of_another_precision_are_taken(head: Head, dtype: torch.dtype) -> None:
    built, inputs = head(DIMS, 3).eval(), batch()
    features = {name: x.to(dtype) for name, x in inputs["features"].items()}
    expected = built({name: x.float() for name, x in features.items()}, inputs["available"])
    actual = built(features, inputs["available"])
    torch.testing.assert_close(actual.logits, expected.logits)


@heads
def test_weights_can_be_loaded_into_a_head_that_was_made_without_storage(head: Head) -> None:
    trained = head(DIMS, 3)
    trained(**batch())
    with torch.device("meta"):
        empty = head(DIMS, 3)
    restored = empty.to_empty(device="cpu")
    for tensor in restored.state_dict().values():
        tensor.fill_(1)  # whatever the memory held
    restored.load_state_dict(trained.state_dict())
    inputs = batch()
    expected = trained.eval()(**inputs).logits
    torch.testing.assert_close(restored.eval()(**inputs).logits, expected, rtol=0, atol=0)


@heads
def test_construction_is_checked(head: Head) -> None:
    with pytest.raises(ValueError, match=r"'type' is taken, by a method of torch.nn.Module"):
        head({"type": 3, "text": 4}, 3)
    with pytest.raises(ValueError, match=r"num_classes must be at least 1, got 0"):
        head(DIMS, 0)
    with pytest.raises(ValueError, match=r"dims must name at least 2 modalities, got \['image'\]"):
        head({"image": 3}, 3)
    with pytest.raises(
        TypeError, match=r"dims must map modality names to feature widths, got list"
    ):
        head([3, 4], 3)


HOSTILE: dict[str, Callable[[Tensor], Tensor]] = {
    "one row again and again": lambda x: x[:1].expand_as(x),
    "two rows again and again": lambda x: x[:2].repeat(len(x) // 2, 1),
    "all but alike": lambda x: 1 + 1e-5 * x,
    "alike far off": lambda x: 1e6 + x,
    "1e-20": lambda x: 1e-20 * x,
    "denormal": lambda x: 1e-42 * x,
    "zeros": lambda x: 0 * x,
    "constant": lambda x: torch.full_like(x, 1e4),
    "constant columns": lambda x: torch.cat([x[:, :1], torch.full_like(x[:, 1:], 5.0)], dim=1),
    "thousands apart": lambda x: 1e5 * x,
    "the largest": lambda x: 9e8 * x.sign(),
    "too large": lambda x: 1e18 * x,  # counts as missing
}


def hostile_steps(head: Any, kinds: list[str], change: Callable[[], None] = lambda: None) -> None:
    """Forward and backward over features of each kind, finite throughout."""
    for step, kind in enumerate(kinds):
        spoil: Callable[[Tensor], Tensor] = HOSTILE.get(kind, lambda x: x)
        features = {m: spoil(torch.randn(8, d)) for m, d in head.dims.items()}
        for x in features.values():
            x.requires_grad_()
        available = {m: torch.rand(8) < (0.6 if step % 3 == 2 else 1.1) for m in head.dims}
        output = head(features, available)
        loss = head.loss(output, torch.arange(8) % 3)
        head.zero_grad()
        loss.backward()
        for name in ("logits", "fused", "candidate_logits", "weights", "aux_loss"):
            assert getattr(output, name).isfinite().all(), (kind, step, name)
        assert loss.isfinite(), (kind, step)
        gradients = [tensor.grad for tensor in (*head.parameters(), *features.values())]
        given = [gradient for gradient in gradients if gradient is not None]
        assert len(given) > len(features)
        assert all(gradient.isfinite().all() for gradient in given), (kind, step)
        assert all(buffer.isfinite().all() for buffer in head.buffers()), (kind, step)
        change()
    head.eval()
    assert head({m: x.detach() for m, x in features.items()}).logits.isfinite().all()


def small_paper_head(modalities: int) -> PaperDRFHead:
    dims = {f"m{index}": 3 + index for index in range(modalities)}
    head = PaperDRFHead(dims, 3)
    head.network = mlp(sum(dims.values()), 32, 32, 768)
    for m, dim in dims.items():
        head.estimators[m].queue = FeatureQueue(dim, 24)
    return head


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_features_have_a_finite_loss_and_gradient(kind: str, modalities: int) -> None:
    for before in ([], ["ordinary"] * 3):
        hostile_steps(small_paper_head(modalities), [*before, *[kind] * 4, "ordinary"])


def test_hostile_features_in_every_order() -> None:
    kinds = list(HOSTILE)
    for shift in range(1, len(kinds)):
        order = [kinds[place * shift % len(kinds)] for place in range(len(kinds))]
        hostile_steps(small_paper_head(2), order)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("kind", HOSTILE)
def test_with_clipped_gradients_training_on_hostile_features_goes_on(
    kind: str, optimizer: Any
) -> None:
    head = small_paper_head(3)
    steps = optimizer(head.parameters(), lr=1e-3)

    def change() -> None:
        torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0, error_if_nonfinite=True)
        steps.step()

    hostile_steps(head, [kind] * 8, change)
