"""One test per equation of the paper, each against a slow oracle, and the ablations of Table 4."""

import math
from typing import Any, NamedTuple

import oracles
import pytest
import torch
from oracles import PaperOracle, PaperStep, rows_of
from torch import Tensor
from torch.testing import assert_close

from robustfusion import (
    DistributionConstraintLoss,
    DistributionRecoveryLoss,
    DRFOutput,
    GaussianQualityEstimator,
    PaperDRFHead,
    QualityWeightedFusion,
    admit_above_mean,
)
from robustfusion.functional import (
    Gaussian,
    distribution_constraint_loss,
    fit_gaussian,
    gaussian_log_prob,
    moment_matching_loss,
    sample_recovery_loss,
)
from robustfusion.paper import CrossModalRecovery

DIMS = {"v": 3, "t": 4}
SWITCHES = (
    "sample_recovery",
    "distribution_recovery",
    "gaussian_quality",
    "expansion",
    "distribution_constraint",
)


class Trace(NamedTuple):
    """One training step: what the head did and what the oracle says."""

    output: DRFOutput
    loss: Tensor
    expected: PaperStep


def train(steps: int = 6, *, without: str = "", head: PaperDRFHead | None = None) -> list[Trace]:
    """Run the paper's head and the oracle side by side on random rows, some missing."""
    options: dict[str, Any] = {switch: switch != without for switch in SWITCHES}
    if head is None:
        head = PaperDRFHead(DIMS, 3, **options).double()
    oracle = PaperOracle(head, **options)
    traces = []
    for _ in range(steps):
        features = {m: torch.randn(5, d).double() / 2 for m, d in DIMS.items()}
        available = {m: torch.rand(5) > 0.3 for m in DIMS}
        labels = torch.randint(3, (5,))
        output = head(features, available)
        expected = oracle.step(
            {m: rows_of(x) for m, x in features.items()},
            {m: mask.tolist() for m, mask in available.items()},
            labels.tolist(),
        )
        loss = head.loss(output, labels)
        traces.append(Trace(output, loss, expected))
        for m, queue in oracle.queues.items():
            stored = head.queues[m].storage[: len(queue)]
            assert_close(stored, torch.tensor(list(queue)).double())
    return traces


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_equation_01_queue_mean() -> None:
    samples, valid = torch.randn(7, 3).double(), torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()
    expected = oracles.mean(rows_of(samples[valid]))
    assert_close(fit_gaussian(samples, valid).mean, column(expected))
    estimator = GaussianQualityEstimator(3).double().fit(samples, valid)
    assert_close(estimator.distribution.mean, column(expected))


def test_equation_02_queue_spread() -> None:
    samples, valid = torch.randn(7, 3).double(), torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()
    expected = oracles.spread(rows_of(samples[valid]))
    assert fit_gaussian(samples, valid).scale.item() == pytest.approx(expected)
    estimator = GaussianQualityEstimator(3).double().fit(samples, valid)
    assert estimator.distribution.scale.item() == pytest.approx(expected)


@pytest.mark.parametrize("widths", [(3,), (3, 3), (5, 2)], ids=["M=2", "M=3", "unequal"])
def test_equation_03_distribution_constraint(widths: tuple[int, ...]) -> None:
    features, own = torch.randn(6, 3).double(), torch.randn(3).double()
    others = [torch.randn(width).double() for width in widths]
    available = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    expected = oracles.constraint(
        rows_of(features), own.tolist(), [o.tolist() for o in others], available.tolist()
    )
    actual = distribution_constraint_loss(features, own, others, available)
    assert actual.item() == pytest.approx(expected)
    module = DistributionConstraintLoss()(features, own, others, available)
    assert torch.equal(module, actual)


def test_equation_04_sample_recovery() -> None:
    recovered, target = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    paired = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    expected = oracles.sample_recovery(rows_of(recovered), rows_of(target), paired.tolist())
    assert sample_recovery_loss(recovered, target, paired).item() == pytest.approx(expected)
    unused = Gaussian(torch.zeros(3), torch.ones(()))
    loss = DistributionRecoveryLoss(distribution_weight=0)
    actual = loss(recovered, target, unused, unused, paired=paired)
    assert actual.item() == pytest.approx(expected)


def converted_queue() -> tuple[Tensor, list[list[float]]]:
    """Queue rows through a converter, by the library and by the oracle."""
    recovery = CrossModalRecovery(DIMS).double()
    queue = torch.randn(9, 3).double()
    convert = oracles.mlp_of(recovery.converters["t"]["v"].layers)  # type: ignore[arg-type]
    return recovery.convert("v", "t", queue), [convert(row) for row in rows_of(queue)]


def test_equation_05_converted_mean() -> None:
    converted, expected = converted_queue()
    assert_close(fit_gaussian(converted).mean, column(oracles.mean(expected)))


def test_equation_06_converted_spread() -> None:
    converted, expected = converted_queue()
    assert fit_gaussian(converted).scale.item() == pytest.approx(oracles.spread(expected))


def test_equation_07_distribution_recovery() -> None:
    generated, reference = torch.randn(9, 4).double(), 2 + 3 * torch.randn(6, 4).double()
    expected = oracles.moment_matching(rows_of(generated), rows_of(reference))
    actual = moment_matching_loss(fit_gaussian(generated), fit_gaussian(reference))
    assert actual.item() == pytest.approx(expected)
    loss = DistributionRecoveryLoss(sample_weight=0)
    alone = loss(generated, generated + 1, fit_gaussian(generated), fit_gaussian(reference))
    assert torch.equal(alone, actual)


def test_equation_08_recovery_loss() -> None:
    for trace in train(without="distribution_constraint"):
        expected = trace.expected.sample_recovery + trace.expected.distribution_recovery
        assert trace.output.aux_loss.item() == pytest.approx(expected)


def test_equation_09_gaussian_density() -> None:
    features, centre, sigma = torch.randn(6, 3).double(), torch.randn(3).double(), 1.7
    expected = [oracles.density(x, centre.tolist(), sigma) for x in rows_of(features)]
    gaussian = Gaussian(centre, torch.tensor(sigma).double())
    assert_close(gaussian_log_prob(features, gaussian).exp(), column(expected), rtol=1e-6, atol=0)
    samples = torch.randn(20, 3).double()
    estimator = GaussianQualityEstimator(3).double().fit(samples)
    moments = oracles.mean(rows_of(samples)), oracles.spread(rows_of(samples))
    expected = [oracles.density(x, *moments) for x in rows_of(features)]
    assert_close(estimator.log_prob(features).exp(), column(expected))


def check_qualities(real: str, source: str) -> None:
    """(10) and (11): a modality's queue scores its real and its recovered features."""
    head = PaperDRFHead(DIMS, 3).double()
    train(head=head)
    head.eval()
    features = {m: torch.randn(8, d).double() / 4 for m, d in DIMS.items()}
    available = {real: torch.arange(8) > 2, source: torch.ones(8, dtype=torch.bool)}
    output = head(features, available)
    queue = rows_of(head.queues[real].storage[: len(head.queues[real])])
    moments = oracles.mean(queue), oracles.spread(queue)
    expected = [oracles.density(x, *moments) for x in rows_of(features[real])]
    actual = output.log_quality[real].exp()
    assert_close(actual[3:], column(expected)[3:])
    assert (actual[:3] == 0).all()
    # The recovered features' density is what the candidate's weight holds beside the source's.
    convert = oracles.mlp_of(head.recovery.converters[real][source].layers)  # type: ignore[arg-type]
    recovered = [oracles.density(convert(x), *moments) for x in rows_of(features[source])]
    weight = output.weights[:, head.candidates.subsets.index((source,))]
    assert_close(weight / output.log_quality[source].exp(), column(recovered))


def test_equation_10_image_qualities() -> None:
    check_qualities("v", "t")


def test_equation_11_text_qualities() -> None:
    check_qualities("t", "v")


def test_equation_12_fusion() -> None:
    head = PaperDRFHead(DIMS, 3).double()
    assert head.candidates.subsets == (("v", "t"), ("v",), ("t",))
    for trace in train(head=head):
        expected = torch.tensor(trace.expected.weights).double()
        assert_close(trace.output.weights, expected)
        assert_close(trace.output.fused, torch.tensor(trace.expected.fused).double())
    candidates, log_quality = torch.randn(4, 3, 5).double(), torch.randn(4, 3).double()
    fused = QualityWeightedFusion(normalize=False)(candidates, log_quality)
    for i in range(4):
        by_hand = sum(math.exp(log_quality[i, k]) * candidates[i, k] for k in range(3))
        assert_close(fused[i], by_hand)


def test_equation_13_admission() -> None:
    rows, queue = torch.randn(8, 3).double(), torch.randn(6, 3).double()
    gaussian = fit_gaussian(queue)
    moments = oracles.mean(rows_of(queue)), oracles.spread(rows_of(queue))
    expected = oracles.admitted(
        [oracles.density(x, *moments) for x in rows_of(rows)],
        [oracles.density(x, *moments) for x in rows_of(queue)],
    )
    valid = torch.ones(6, dtype=torch.bool)
    actual = admit_above_mean(
        gaussian_log_prob(rows, gaussian), gaussian_log_prob(queue, gaussian), valid
    )
    assert actual.tolist() == expected
    assert any(expected)
    assert not all(expected)
    # In the head: `train` compares the queues with the oracle's after every step.
    head = PaperDRFHead(DIMS, 3).double()
    traces = train(12, head=head)
    offered = sum(int(trace.output.log_quality["v"].isfinite().sum()) for trace in traces)
    assert 2 < len(head.queues["v"]) < offered


def test_equation_14_classifier() -> None:
    for trace in train(3):
        probabilities = [oracles.softmax(row, [True] * 3) for row in trace.expected.logits]
        assert_close(trace.output.logits.softmax(-1), torch.tensor(probabilities).double())


def test_equation_15_classification_loss() -> None:
    for trace in train(3):
        classification = trace.loss - trace.output.aux_loss
        assert classification.item() == pytest.approx(trace.expected.classification)


def test_equation_16_objective() -> None:
    for trace in train(8):
        assert trace.loss.item() == pytest.approx(trace.expected.loss)
        assert trace.expected.loss > 0


@pytest.mark.parametrize("switch", SWITCHES)
def test_table_4(switch: str) -> None:
    """Each switch removes its equation and nothing else."""
    for trace in train(6, without=switch):
        assert trace.loss.item() == pytest.approx(trace.expected.loss)
        assert_close(trace.output.weights, torch.tensor(trace.expected.weights).double())
        assert_close(trace.output.fused, torch.tensor(trace.expected.fused).double())


def test_table_4_switches_matter() -> None:
    losses = {}
    for switch in ("", *SWITCHES):
        torch.manual_seed(0)
        losses[switch] = round(train(4, without=switch)[-1].loss.item(), 6)
    assert len(set(losses.values())) == 1 + len(SWITCHES), losses


def test_three_modalities_sum_over_all_directions() -> None:
    dims = {"a": 2, "b": 3, "c": 4}
    head = PaperDRFHead(dims, 3).double()
    for _ in range(4):
        head({m: torch.randn(5, d).double() for m, d in dims.items()})
    head.eval()
    features = {m: torch.randn(5, d).double() for m, d in dims.items()}
    available = {m: torch.rand(5) > 0.3 for m in dims}
    rows = {m: rows_of(x.where(available[m][:, None], 0.0)) for m, x in features.items()}
    queue = {m: rows_of(head.queues[m].storage[: len(head.queues[m])]) for m in dims}
    expected = 0.0
    for target in dims:
        others = [m for m in dims if m != target]
        means = [oracles.mean(queue[m]) for m in others]
        expected += oracles.constraint(
            rows[target], oracles.mean(queue[target]), means, available[target].tolist()
        )
        for source in others:
            layers = head.recovery.converters[target][source].layers
            convert = oracles.mlp_of(layers)  # type: ignore[arg-type]
            paired = (available[source] & available[target]).tolist()
            recovered = [convert(x) for x in rows[source]]
            expected += oracles.sample_recovery(recovered, rows[target], paired)
            converted = [convert(x) for x in queue[source]]
            expected += oracles.moment_matching(converted, queue[target])
    assert head(features, available).aux_loss.item() == pytest.approx(expected)
