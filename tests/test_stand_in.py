"""What stands in for a modality: no peeking, whose gradient goes where, and that it recovers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfusion import (
    DRFHead,
    LearnedTokens,
    NeighborQualityEstimator,
    RecoveredFeatures,
    StandIn,
)
from robustfusion.stand_in import StandInOutput

DIMS = {
    2: {"image": 6, "text": 4},
    3: {"image": 6, "text": 4, "audio": 5},
    6: {"a": 3, "b": 4, "c": 5, "d": 2, "e": 3, "f": 6},
}
sizes = pytest.mark.parametrize("size", DIMS)
KINDS = pytest.mark.parametrize("kind", [LearnedTokens, RecoveredFeatures])


def given(dims: dict[str, int], batch: int = 8) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    features = {m: 3 + 2 * torch.randn(batch, d) for m, d in dims.items()}
    place = torch.arange(batch)
    return features, {m: place % (len(dims) + 1) != k for k, m in enumerate(dims)}


def warm(head: DRFHead, steps: int = 3) -> DRFHead:
    for _ in range(steps):
        head(given(head.dims, 32)[0])
    return head


@sizes
def test_recovered_is_by_target_and_source_in_the_units_of_the_features(size: int) -> None:
    dims = DIMS[size]
    head = warm(DRFHead(dims, 3, hidden_features=16)).eval()
    features, available = given(dims)
    recovered = head(features, available).recovered
    assert list(recovered) == list(dims)
    for target, sources in recovered.items():
        assert list(sources) == [m for m in dims if m != target]
        converters: Any = head.stand_in.converters
        for source, rows in sources.items():
            assert rows.shape == (8, dims[target])
            z = head.estimators[source].standardize(features[source]).clamp(-3, 3)
            z = z.where(available[source][:, None], head.estimators[source].standardize(
                torch.zeros(dims[source])
            ).clamp(-3, 3))  # fmt: skip
            made = converters[target].decode(converters[source].encode(z))
            mean, scale = head.estimators[target].moments.gaussian()
            torch.testing.assert_close(rows, mean + scale * made, rtol=1e-4, atol=1e-4)
    assert DRFHead(dims, 3, stand_in=LearnedTokens)(features).recovered == {}


@sizes
@KINDS
def test_what_a_missing_modality_holds_changes_nothing(kind: type[StandIn], size: int) -> None:
    dims = DIMS[size]
    features, available = given(dims)
    results = []
    for value in (0.0, 5.0, torch.nan, 1e6):
        torch.manual_seed(3)
        head = DRFHead(dims, 3, stand_in=kind, hidden_features=16)
        x = {m: f.where(available[m][:, None], value) for m, f in features.items()}
        torch.manual_seed(4)
        out = head(x, available)
        head.loss(out, torch.arange(8) % 3).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in head.parameters()]
        results.append([out.logits, out.candidate_logits, out.aux_loss, *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@sizes
@KINDS
def test_a_candidate_knows_only_what_it_trusts(kind: type[StandIn], size: int) -> None:
    dims = DIMS[size]
    head = warm(DRFHead(dims, 3, stand_in=kind, hidden_features=16)).eval()
    with torch.no_grad():
        for p in head.stand_in.parameters():
            p.normal_()
    features, _ = given(dims)
    before = head(features).candidate_logits
    for changed in dims:
        other = {m: f + 9 * (m == changed) for m, f in features.items()}
        after = head(other).candidate_logits
        for k, trusted in enumerate(head.candidates):
            same = torch.allclose(after[:, k], before[:, k], rtol=1e-4, atol=1e-5)
            assert same == (changed not in trusted), (changed, trusted)


def test_the_classifier_s_gradient_ends_at_what_was_made() -> None:
    head = warm(DRFHead(DIMS[2], 3, hidden_features=16))
    features, available = given(DIMS[2])
    for x in features.values():
        x.requires_grad_()
    converters: Any = head.stand_in.converters
    out = head(features, available)
    classification = head.loss(out, torch.arange(8) % 3) - out.aux_loss
    classification.backward(retain_graph=True)
    assert all(p.grad is None or (p.grad == 0).all() for p in converters.parameters())
    assert all((x.grad != 0).any() for x in features.values() if x.grad is not None)
    # And that of the recovery reaches the converters alone: without labels, without encoders.
    head.zero_grad()
    for x in features.values():
        x.grad = None
    out.aux_loss.backward()
    assert all(x.grad is None or (x.grad == 0).all() for x in features.values())
    touched = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert all(name.startswith("stand_in.converters.") for name in touched)


@sizes
def test_recovery_learns_without_labels_what_one_modality_tells_of_another(size: int) -> None:
    dims = DIMS[size]
    head = DRFHead(dims, 3, hidden_features=8)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    mixing = {m: torch.randn(2, d) for m, d in dims.items()}

    def draw(n: int) -> dict[str, Tensor]:
        cause = torch.randn(n, 2)
        return {m: 5 + cause @ a + 0.2 * torch.randn(n, a.shape[1]) for m, a in mixing.items()}

    for _ in range(150):
        here = {m: torch.rand(64) > 0.2 for m in dims}
        loss = head(draw(64), here).aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    features = draw(500)
    recovered = head(features).recovered
    for target, sources in recovered.items():
        truth = features[target]
        spread = (truth - truth.mean(0)).square().sum()
        for source, made in sources.items():
            r2 = 1 - float((truth - made.detach()).square().sum() / spread)
            assert r2 > 0.3, (target, source, r2)


def test_where_nothing_is_told_what_is_recovered_stays_near_the_mean() -> None:
    dims = DIMS[2]
    head = DRFHead(dims, 3, hidden_features=8)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        head({m: torch.randn(64, d) for m, d in dims.items()}).aux_loss.backward()
        optimizer.step()
    head.eval()
    made = head({m: torch.randn(500, d) for m, d in dims.items()}).recovered["text"]["image"]
    assert made.square().mean() < 0.3


@KINDS
def test_a_stand_in_may_be_called_alone(kind: type[StandIn]) -> None:
    dims = DIMS[3]
    part = kind(dims, 16)
    embed = nn.ModuleDict({m: nn.Linear(d, 16) for m, d in dims.items()})
    features = {m: torch.randn(5, d) for m, d in dims.items()}
    out = part(features, torch.ones(5, 3, dtype=torch.bool), embed)
    assert isinstance(out, StandInOutput)
    assert out.hidden.shape[1:] == (3, 2, 16)
    assert out.loss.shape == ()
    assert part.eval()(features, torch.ones(5, 3, dtype=torch.bool), embed).loss == 0
    with pytest.raises(ValueError, match="out_features must be at least 1, got 0"):
        kind(dims, 0)
    with pytest.raises(ValueError, match="dims must name at least 2 modalities"):
        kind({"image": 3}, 16)
    with pytest.raises(TypeError, match="abstract"):
        StandIn(dims, 16)  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": NeighborQualityEstimator(5)}, "quality must be a factory"),
        ({"quality": None}, "quality must be a factory, say a class, got NoneType"),
        (
            {"quality": lambda dim: nn.Linear(dim, 1)},
            "quality must make a QualityEstimator, got Linear",
        ),
        ({"stand_in": LearnedTokens({"a": 5, "b": 4}, 8)}, "stand_in must be a factory"),
        ({"stand_in": nn.Flatten}, "stand_in must make a StandIn, got Flatten"),
    ],
)
def test_a_head_wants_factories(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        DRFHead({"a": 5, "b": 4}, 3, **options)
