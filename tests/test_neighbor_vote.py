"""The votes of training samples: by a plain formula, and only where they may count."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from robustfusion import DRFClassifier, DRFHead, NeighborVoteHead, calibrate
from robustfusion.baselines import ConcatenationHead

DIMS = {"image": 6, "text": 4, "audio": 5}
Features = dict[str, Tensor]


def draw(rows: int, labels: Tensor | None = None) -> Features:
    made = {name: torch.randn(rows, dim) for name, dim in DIMS.items()}
    if labels is not None:
        for x in made.values():
            x[torch.arange(rows), labels] += 3
    return made


def masks(rows: int) -> Features:
    return {name: torch.rand(rows) < 0.7 for name in DIMS}


def trained(capacity: int = 64, neighbors: int = 5) -> NeighborVoteHead:
    torch.manual_seed(0)
    head = NeighborVoteHead(
        DRFHead(DIMS, 3, hidden_features=8), capacity=capacity, neighbors=neighbors
    )
    with torch.no_grad():
        for _ in range(4):
            head(draw(32))
    return head


def plain_vote(head: NeighborVoteHead, x: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """The share of each class among the nearest rows, (B, 3)."""
    std = rows.std(0, unbiased=False)
    std = std + 0.01 * std.mean()
    query, known = (F.normalize((part - rows.mean(0)) / std, dim=1) for part in (x, rows))
    votes = []
    for row in query:
        cosine = known @ row
        near = cosine.argsort(descending=True)[: head.neighbors]
        share = (20 * cosine[near]).softmax(0)
        votes.append(share @ F.one_hot(labels[near], 3).to(share))
    return torch.stack(votes)


def test_votes_are_those_of_a_plain_formula() -> None:
    head = trained()
    rows, labels, mask = draw(30), torch.randint(3, (30,)), masks(30)
    head.fit(rows, labels, mask).eval()
    x, here = draw(9), masks(9)
    out, own = head(x, here), head.head(x, here)
    prior = (1 + labels.bincount(minlength=3)) / 33
    expected = own.logits.log_softmax(-1)
    for name in DIMS:
        trust = torch.zeros(9)
        for weight, candidate in zip(own.weights.T, head.candidates, strict=True):
            size = sum(here[m] for m in candidate)
            trust += torch.where(here[name] & (name in candidate), weight / size, 0)
        vote = plain_vote(head, x[name], rows[name][mask[name]], labels[mask[name]])
        expected = expected + 0.5 * trust[:, None] * (0.7 * vote + 0.3 * prior).log()
    assert_close(out.logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(out.weights, own.weights, strict=True))


def test_the_nearest_labels_decide_what_the_head_does_not() -> None:
    head = trained()
    labels = torch.randint(3, (60,))
    head.fit(draw(60, labels), labels).eval()
    asked = torch.randint(3, (200,))
    x = draw(200, asked)
    right = [float((m(x).logits.argmax(1) == asked).float().mean()) for m in (head.head, head)]
    assert right[0] < 0.6 < 0.8 < right[1]


def test_training_and_a_head_that_was_not_fitted_are_the_head() -> None:
    head = trained()
    x = draw(8)
    torch.manual_seed(1)
    alone = copy.deepcopy(head.head)(x).logits
    torch.manual_seed(1)
    assert torch.equal(head(x).logits, alone)
    head.eval()
    assert_close(head(x).logits.softmax(1), head.head(x).logits.softmax(1))


def test_of_many_rows_an_even_choice_is_kept_and_few_are_enough() -> None:
    head = trained(capacity=10)
    rows, labels = draw(101), torch.arange(101) % 3
    head.fit(rows, labels)
    assert head.labels[0].tolist() == [int(labels[round(11.111 * i)]) for i in range(10)]
    few = head.fit({name: x[:2] for name, x in rows.items()}, labels[:2]).eval()
    assert few(draw(4)).logits.isfinite().all()
    assert len(few.rows["image"]) == 2


def test_calibrate_fits_temperatures_with_the_votes() -> None:
    head = trained()
    model = DRFClassifier({name: torch.nn.Identity() for name in DIMS}, head)
    labels = torch.randint(3, (40,))
    head.fit(draw(40, labels), labels)
    held_out = [{"inputs": draw(60), "label": torch.randint(3, (60,))}]
    report = calibrate(model, held_out)
    assert report.patterns[0].temperature > 1  # labels are random, so the votes are far too sure
    assert head.head.get_buffer("temperature").eq(1).all()
    assert_close(head.temperature[0], torch.tensor(report.patterns[0].temperature))


def test_any_head_with_logits_can_have_votes() -> None:
    torch.manual_seed(0)
    head = NeighborVoteHead(ConcatenationHead(DIMS, 3), neighbors=5)
    labels = torch.randint(3, (60,))
    head.fit(draw(60, labels), labels).eval()
    expected = torch.randint(3, (200,))
    x = draw(200, expected)
    right = [float((m(x).logits.argmax(1) == expected).float().mean()) for m in (head.head, head)]
    assert right[0] < 0.6 < 0.8 < right[1]
    assert head.p_values(head(x)) == {}
    with pytest.raises(TypeError, match="got Linear"):
        NeighborVoteHead(torch.nn.Linear(3, 3))
