"""Opinions and their rules of combination, against set functions and torch.distributions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from robustfusion.baselines._evidence import (
    combine_dempster,
    combine_mean,
    dirichlet_kl_to_uniform,
    evidence_from_logits,
    evidential_loss,
    log_expected_probability,
    opinion,
)

CLASSES = 4


def as_masses(evidence: Tensor) -> dict[frozenset[int], float]:
    """The opinion as a mass on each single class and on the whole frame."""
    strength = float(evidence.sum()) + CLASSES
    masses = {frozenset([k]): float(evidence[k]) / strength for k in range(CLASSES)}
    masses[frozenset(range(CLASSES))] = CLASSES / strength
    return masses


def dempster(
    one: dict[frozenset[int], float], other: dict[frozenset[int], float]
) -> dict[frozenset[int], float]:
    """Dempster's rule over all pairs of subsets, with the conflict divided out."""
    combined = dict.fromkeys(one, 0.0)
    conflict = 0.0
    for (a, mass_a), (b, mass_b) in itertools.product(one.items(), other.items()):
        if a & b:
            combined[a & b] += mass_a * mass_b
        else:
            conflict += mass_a * mass_b
    return {subset: mass / (1 - conflict) for subset, mass in combined.items()}


def test_opinion_sums_to_one() -> None:
    belief, uncertainty = opinion(torch.rand(5, CLASSES) * 10)
    torch.testing.assert_close(belief.sum(-1) + uncertainty, torch.ones(5))


@pytest.mark.parametrize("views", [2, 3, 4])
def test_combination_is_dempsters_rule_over_subsets(views: int) -> None:
    torch.manual_seed(0)
    evidence = torch.rand(6, views, CLASSES, dtype=torch.float64) * 8
    belief, uncertainty = opinion(combine_dempster(evidence, torch.ones(6, views).bool()))
    for row in range(6):
        masses = as_masses(evidence[row, 0])
        for view in range(1, views):
            masses = dempster(masses, as_masses(evidence[row, view]))
        expected = [masses[frozenset([k])] for k in range(CLASSES)]
        assert belief[row].tolist() == pytest.approx(expected)
        assert uncertainty[row].item() == pytest.approx(masses[frozenset(range(CLASSES))])


def test_a_missing_view_is_the_vacuous_opinion() -> None:
    evidence = torch.rand(3, 3, CLASSES)
    available = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    got = combine_dempster(evidence, available)
    torch.testing.assert_close(got[0], combine_dempster(evidence[:, [0, 2]], available[:, ::2])[0])
    vacuous = evidence.clone()
    vacuous[0, 1] = 0
    everything = torch.ones(3, 3).bool()
    torch.testing.assert_close(got[0], combine_dempster(vacuous, everything)[0])
    assert (got[2] == 0).all()
    assert opinion(got)[1][2] == 1


@pytest.mark.parametrize("combine", [combine_dempster, combine_mean])
def test_combination_does_not_depend_on_the_order(combine: object) -> None:
    assert callable(combine)
    evidence, available = torch.rand(5, 4, CLASSES), torch.rand(5, 4) > 0.3
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        combine(evidence[:, order], available[:, order]), combine(evidence, available)
    )


def test_a_product_beyond_float32_keeps_order_and_shares() -> None:
    torch.manual_seed(0)
    evidence = 1000 * torch.rand(50, 6, CLASSES)
    got = combine_dempster(evidence, torch.ones(50, 6).bool())
    # In float64 the product itself: 1 + e / C = Π (1 + e_m / C).
    exact = CLASSES * ((1 + evidence.double() / CLASSES).prod(dim=1) - 1)
    assert (exact > 1e9).any(dim=-1).all()
    assert (got.argmax(-1) == exact.argmax(-1)).all()
    expected = ((exact + 1) / (exact + 1).sum(-1, keepdim=True)).float()
    torch.testing.assert_close(log_expected_probability(got).exp(), expected, rtol=1e-4, atol=1e-6)


def test_certain_views_in_total_conflict_stay_finite() -> None:
    evidence = torch.zeros(1, 6, CLASSES)
    evidence[0, ::2, 0] = evidence[0, 1::2, 1] = 1e7
    evidence.requires_grad_()
    combined = combine_dempster(evidence, torch.ones(1, 6).bool())
    loss = evidential_loss(combined, torch.tensor([0]), torch.tensor(1.0)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert combined.isfinite().all()
    assert loss.isfinite()
    assert evidence.grad is not None
    assert evidence.grad.isfinite().all()


def test_mean_of_two_is_the_cumulative_pair_formula() -> None:
    evidence = torch.rand(5, 2, CLASSES, dtype=torch.float64) * 5
    belief, uncertainty = opinion(combine_mean(evidence, torch.ones(5, 2).bool()))
    (b1, b2), (u1, u2) = (x.unbind(1) for x in opinion(evidence))
    torch.testing.assert_close(uncertainty, 2 * u1 * u2 / (u1 + u2))
    torch.testing.assert_close(belief, (b1 * u2[:, None] + b2 * u1[:, None]) / (u1 + u2)[:, None])


def test_mean_is_over_what_is_available() -> None:
    evidence = torch.rand(2, 3, CLASSES)
    available = torch.tensor([[True, False, True], [False, False, False]])
    got = combine_mean(evidence, available)
    torch.testing.assert_close(got[0], evidence[0, ::2].mean(0))
    assert (got[1] == 0).all()


def test_log_expected_probability() -> None:
    evidence = torch.rand(5, CLASSES)
    torch.testing.assert_close(
        log_expected_probability(evidence).softmax(-1), Dirichlet(evidence + 1).mean
    )


def test_kl_matches_torch_distributions() -> None:
    alpha = 1 + torch.rand(7, CLASSES, dtype=torch.float64) * 20
    expected = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
    torch.testing.assert_close(dirichlet_kl_to_uniform(alpha), expected)


def test_loss_is_the_expected_cross_entropy_and_the_pull() -> None:
    torch.manual_seed(0)
    evidence = torch.rand(2, CLASSES) * 5
    labels = torch.tensor([1, 3])
    draws = Dirichlet(evidence + 1).sample((200_000,))
    expected = torch.stack([-draws[:, row, y].log().mean() for row, y in enumerate(labels)])
    got = evidential_loss(evidence, labels, torch.tensor(0.0))
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.0)
    one_hot = F.one_hot(labels, CLASSES)
    misleading = one_hot + (1 - one_hot) * (evidence + 1)
    pull = kl_divergence(Dirichlet(misleading), Dirichlet(torch.ones(2, CLASSES)))
    torch.testing.assert_close(
        evidential_loss(evidence, labels, torch.tensor(0.5)), got + 0.5 * pull
    )


def test_loss_of_views_is_the_loss_of_each() -> None:
    evidence, labels, weight = torch.rand(5, 3, CLASSES), torch.arange(5) % 4, torch.tensor(0.3)
    got = evidential_loss(evidence, labels, weight)
    for view in range(3):
        torch.testing.assert_close(
            got[:, view], evidential_loss(evidence[:, view], labels, weight)
        )


def test_evidence_is_never_negative_and_leaves_half_precision() -> None:
    evidence = evidence_from_logits(torch.tensor([-1e4, 0.0, 1e4], dtype=torch.bfloat16))
    assert evidence.dtype == torch.float32
    assert (evidence >= 0).all()
