"""Learned trust: its formula, what it learns from damage, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from robustfusion import DRFClassifier, DRFHead, LearnedTokens, LearnedTrust, calibrate

DIMS = {"image": 8, "text": 6}
Batch = dict[str, Any]


def draw(count: int, seed: int, dims: dict[str, int] = DIMS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    inputs = {name: torch.randn(count, dim, generator=generator) for name, dim in dims.items()}
    for x in inputs.values():
        x[torch.arange(count), label] += 2.5
    return {"inputs": inputs, "label": label, "id": list(range(count))}


def damaged(batch: Batch, kind: str, modality: str = "image") -> Batch:
    """A copy in which one modality is usual but wrong, or unusual and harmless."""
    x = batch["inputs"][modality].clone()
    if kind == "constant":  # the features of a class, the same for all samples
        x = torch.zeros_like(x)
        x[:, 0], x[:, 3] = 2.5, 1.5
    if kind == "noise":  # far away in a direction without meaning
        x[:, 5:] += 6
    return {
        **batch,
        "inputs": {**batch["inputs"], modality: x},
        "kind": kind,
        "modality": modality,
    }


KINDS = ("constant", "noise")


def trained(dims: dict[str, int] = DIMS, **options: Any) -> DRFHead:
    torch.manual_seed(0)
    head = DRFHead(dims, 3, hidden_features=32, stand_in=LearnedTokens, **options)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(150):
        batch = draw(64, 1000 + step, dims)
        optimizer.zero_grad()
        head.loss(head(batch["inputs"]), batch["label"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval()


@pytest.fixture(scope="module")
def learned() -> DRFHead:
    head, batch = trained(), draw(300, 1)
    calibrate(head, [batch], [damaged(batch, kind) for kind in KINDS])
    return head


@torch.no_grad()
def accuracy(head: torch.nn.Module, batch: Batch) -> float:
    return float((head(batch["inputs"]).logits.argmax(1) == batch["label"]).float().mean())


def test_evidence_and_weights_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    trust = LearnedTrust(DIMS)
    for buffer in (trust.bias, trust.slope, trust.offset):
        buffer.copy_(torch.rand_like(buffer))
    directions = {"image": torch.randn(8), "text": torch.randn(6)}
    trust.direction[:8, 0], trust.direction[8:, 1] = directions["image"], directions["text"]
    x = {name: torch.randn(5, dim) for name, dim in DIMS.items()}
    log_quality = -4 * torch.rand(5, 2)
    available = torch.tensor([[True, True]] * 3 + [[True, False], [False, False]])
    evidence = trust(x, log_quality)
    weights = trust.weights(evidence, available)
    for row in range(5):
        g = {}
        for m, name in enumerate(DIMS):
            q = float(log_quality[row, m])
            g[name] = float(x[name][row] @ directions[name] + trust.slope[m] * q + trust.bias[m])
            assert float(evidence[row, m]) == pytest.approx(g[name], abs=1e-4)
        scores = {}
        for k, subset in enumerate(trust.candidates):
            names = [
                n for n, there in zip(DIMS, available[row], strict=True) if there and n in subset
            ]
            smaller = [s for s in list(trust.candidates)[k + 1 :] if set(s) >= set(names)]
            if names and not any(
                {n for n in s if available[row][list(DIMS).index(n)]} == set(names)
                for s in smaller
            ):
                scores[k] = math.exp(sum(g[n] for n in names) + float(trust.offset[k]))
        expected = [scores.get(k, 0.0) / max(sum(scores.values()), 1e-9) for k in range(3)]
        assert weights[row].tolist() == pytest.approx(expected, abs=1e-4)


def test_before_a_fit_the_evidence_is_log_quality_minus_the_prior() -> None:
    trust = LearnedTrust(DIMS, log_prior=-2.0)
    log_quality = -torch.rand(7, 2)
    x = {name: torch.randn(7, dim) for name, dim in DIMS.items()}
    assert_close(trust(x, log_quality), log_quality + 2)
    assert trust.p_values(x, log_quality).isnan().all()


def test_what_is_harmful_loses_trust_and_what_is_harmless_keeps_it(learned: DRFHead) -> None:
    test, plain = draw(1000, 2), trained()
    calibrate(plain, [draw(300, 1)])
    assert accuracy(learned, test) >= accuracy(plain, test) - 0.01
    for kind in KINDS:
        copy = damaged(test, kind)
        assert accuracy(learned, copy) > accuracy(plain, copy), kind
        trust = [float(head(copy["inputs"]).trust["image"].mean()) for head in (plain, learned)]
        assert (trust[1] < trust[0]) == (kind == "constant"), kind


def test_p_values_of_intact_samples_are_valid(learned: DRFHead) -> None:
    test = draw(4000, 3)
    for p_value in learned.p_values(learned(test["inputs"])).values():
        for level in (0.05, 0.1, 0.5):
            # Three standard errors of a rate with 300 references.
            tolerance = 3 * math.sqrt(level * (1 - level) / 300)
            assert float((p_value <= level).float().mean()) <= level + tolerance


def test_it_is_saved_and_a_calibration_without_damage_forgets_it(learned: DRFHead) -> None:
    again = DRFHead(DIMS, 3, hidden_features=32, stand_in=LearnedTokens)
    again.load_state_dict(learned.state_dict())
    x = damaged(draw(20, 4), "constant")["inputs"]
    assert torch.equal(again.eval()(x).logits, learned(x).logits)
    calibrate(again, [draw(300, 1)])
    assert not again.trust.direction.any()
    assert int(again.trust.reference_count.sum()) == 0


def test_few_samples_without_a_lesson_change_nothing() -> None:
    head = trained()
    batch = draw(60, 5)
    shuffled = {**batch, "inputs": {**batch["inputs"], "image": batch["inputs"]["image"] + 0.01}}
    calibrate(head, [batch])
    before = accuracy(head, draw(2000, 6))
    calibrate(head, [batch], [{**shuffled, "kind": "nudge", "modality": "image"}])
    assert accuracy(head, draw(2000, 6)) >= before - 0.01


def test_three_modalities_and_a_model_around_the_head() -> None:
    dims = {**DIMS, "audio": 5}
    head = trained(dims)
    model = DRFClassifier({name: torch.nn.Identity() for name in dims}, head).eval()
    batch, test = draw(300, 7, dims), damaged(draw(1000, 8, dims), "constant", "audio")
    calibrate(model, [batch])
    before = accuracy(model, test)
    report = calibrate(model, [batch], [damaged(batch, kind, m) for kind in KINDS for m in dims])
    assert report.trust is not None
    assert report.trust.nll[1] < report.trust.nll[0]
    assert accuracy(model, test) >= before


def test_two_models_of_your_own() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (600,), generator=generator)
    logits = torch.randn(600, 2, 3, generator=generator)
    logits[torch.arange(600), :, label] += 2.0
    x = {name: torch.randn(600, dim, generator=generator) for name, dim in DIMS.items()}
    broken = torch.rand(600, generator=generator) < 0.35
    x["image"][broken, 0] += 4  # visible, and there the model of images knows nothing
    logits[broken, 0] = 3 * torch.randn(int(broken.sum()), 3, generator=generator)
    trust = LearnedTrust(DIMS, subsets=[("image",), ("text",)])
    kind = broken.long()
    trust.fit({m: v[:400] for m, v in x.items()}, logits[:400], label[:400], kind=kind[:400])
    weights = trust.weights(trust({m: v[400:] for m, v in x.items()}))
    fused = (weights[..., None] * logits[400:]).sum(1)
    mean = logits[400:].mean(1)
    losses = [float(F.cross_entropy(part, label[400:])) for part in (mean, fused)]
    assert losses[1] < losses[0]
    assert float(weights[broken[400:], 0].mean()) < 0.5 * float(weights[~broken[400:], 0].mean())


BATCH = draw(40, 9)


@pytest.mark.parametrize(
    ("copies", "error", "message"),
    [
        ([], ValueError, "damaged must hold at least one batch"),
        ([{"inputs": BATCH["inputs"]}], ValueError, "damaged needs a label in all batches"),
        ([BATCH], ValueError, "damaged must hold damaged copies of the samples, got the same"),
        (
            [{**damaged(BATCH, "noise"), "inputs": {"image": BATCH["inputs"]["image"]}}],
            ValueError,
            "lacks modality 'text'",
        ),
        (
            [
                {
                    **damaged(BATCH, "noise"),
                    "available": {"image": torch.zeros(40, dtype=torch.bool)},
                }
            ],
            ValueError,
            "damaged features of modality 'image', got none",
        ),
    ],
)
def test_what_cannot_teach_is_refused_before_anything_changes(
    copies: list[Batch], error: type[Exception], message: str
) -> None:
    head = DRFHead(DIMS, 3).eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(error, match=message):
        calibrate(head, [BATCH], copies)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_arguments_are_checked() -> None:
    trust = LearnedTrust(DIMS)
    x: dict[str, Tensor] = {name: torch.randn(10, dim) for name, dim in DIMS.items()}
    with pytest.raises(ValueError, match=r"logits must have shape \(10, 3, C\)"):
        trust.fit(x, torch.randn(10, 2, 3), torch.zeros(10, dtype=torch.long))
    with pytest.raises(ValueError, match="features lacks modality 'text'"):
        trust({"image": x["image"]})


def test_samples_that_lack_an_input_teach_trust_in_the_others() -> None:
    head, batch = trained(), draw(300, 3)
    batch["available"] = {"image": torch.arange(300) % 5 > 0, "text": torch.arange(300) % 7 > 0}
    calibrate(head, [batch], [damaged(batch, kind) for kind in KINDS])
    assert all(bool(value.isfinite().all()) for value in head.trust.buffers())
