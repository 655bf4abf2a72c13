"""Pooling against plain loops, with padding that holds anything."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from robustfusion.pooling import AttentionPooling, MaskedMean


def tokens(batch: int = 6, length: int = 5, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Rows of 0, 1, ... tokens; what is no token is NaN."""
    mask = torch.arange(length) < torch.arange(batch)[:, None]
    return torch.randn(batch, length, dim).where(mask[..., None], torch.nan), mask


def attention(dim: int = 4) -> AttentionPooling:
    pool = AttentionPooling(dim)
    nn.init.normal_(pool.query, std=3)
    return pool


each = pytest.mark.parametrize("pool", [MaskedMean(), attention()], ids=["mean", "attention"])


def test_masked_mean_is_the_mean_of_each_rows_tokens() -> None:
    x, mask = tokens()
    out = MaskedMean()(x, mask)
    assert torch.equal(out[0], torch.zeros(4))
    for row in range(1, 6):
        torch.testing.assert_close(out[row], x[row][mask[row]].mean(0))


def test_attention_weighs_tokens_by_the_softmax_of_their_fit() -> None:
    x, mask = tokens()
    pool = attention()
    out, weights = pool(x, mask), pool.weights(x, mask)
    assert torch.equal(out[0], torch.zeros(4))
    for row in range(1, 6):
        there = x[row][mask[row]]
        fit = torch.tensor([float(token @ pool.query.detach()) / 2 for token in there])
        torch.testing.assert_close(weights[row][mask[row]], fit.softmax(0))
        torch.testing.assert_close(out[row], (fit.softmax(0)[:, None] * there).sum(0))
    assert torch.equal(weights[~mask], torch.zeros(int((~mask).sum())))


def test_attention_begins_as_the_mean_and_learns() -> None:
    x, mask = tokens()
    pool = AttentionPooling(4)
    torch.testing.assert_close(pool(x, mask), MaskedMean()(x, mask))
    # The label is told by one token among five, the one whose last coordinate is high.
    torch.manual_seed(0)
    x = torch.randn(400, 5, 4)
    place = torch.randint(5, (400,))
    x[torch.arange(400), place, 3] += 4
    labels = (x[torch.arange(400), place, 0] > 0).long()
    scores = {}
    for name, part in (("mean", MaskedMean()), ("attention", pool)):
        net = nn.Linear(4, 2)
        optimiser = torch.optim.Adam([*part.parameters(), *net.parameters()], lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(part(x)), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        scores[name] = float((net(part(x)).argmax(1) == labels).float().mean())
    assert scores["attention"] > 0.9 > scores["mean"] + 0.1


@each
def test_padding_reaches_no_output_and_no_gradient(pool: nn.Module) -> None:
    x, mask = tokens()
    results = []
    for value in (torch.nan, torch.inf, 7.0):
        given = x.where(mask[..., None], value).requires_grad_()
        pool.zero_grad()
        out = pool(given, mask)
        out.square().sum().backward()
        assert given.grad is not None
        parameters = [p.grad.clone() for p in pool.parameters() if p.grad is not None]
        results.append([out.detach(), given.grad, *parameters])
        assert all(t.isfinite().all() for t in results[-1])
        assert torch.equal(given.grad[~mask], torch.zeros_like(given.grad[~mask]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@each
def test_longer_padding_changes_nothing(pool: nn.Module) -> None:
    x, mask = tokens()
    wide = torch.cat([x, torch.full((6, 3, 4), torch.nan)], 1)
    torch.testing.assert_close(
        pool(wide, torch.cat([mask, torch.zeros(6, 3, dtype=torch.bool)], 1)), pool(x, mask)
    )


@each
def test_empty_batches_and_empty_sequences(pool: nn.Module) -> None:
    assert pool(torch.randn(0, 3, 4)).shape == (0, 4)
    assert torch.equal(pool(torch.randn(2, 0, 4)), torch.zeros(2, 4))


@each
def test_no_mask_means_that_all_tokens_are_there(pool: nn.Module) -> None:
    x = torch.randn(3, 5, 4)
    assert torch.equal(pool(x), pool(x, torch.ones(3, 5, dtype=torch.bool)))


@each
def test_dtypes(pool: nn.Module) -> None:
    x, mask = tokens()
    assert pool(x.bfloat16(), mask).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pool(x, mask).dtype == torch.float32
    double = copy.deepcopy(pool).double()
    torch.testing.assert_close(double(x.double(), mask).float(), pool(x, mask))
    assert double(x.double(), mask).dtype == torch.float64


@each
def test_compiles_as_one_graph(pool: nn.Module) -> None:
    x, mask = tokens()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask), pool(x, mask))


@each
def test_saved_copied_and_shown(pool: nn.Module) -> None:
    x, mask = tokens()
    assert torch.equal(pickle.loads(pickle.dumps(pool))(x, mask), pool(x, mask))
    assert repr(eval(repr(pool))) == repr(pool)


def test_errors_name_the_argument() -> None:
    x, mask = tokens()
    with pytest.raises(ValueError, match=r"features must have shape \(B, T, 5\), got \(6, 5, 4\)"):
        AttentionPooling(5)(x, mask)
    with pytest.raises(ValueError, match=r"features must have shape \(B, T, D\), got \(6, 4\)"):
        MaskedMean()(x[:, 0])
    with pytest.raises(ValueError, match=r"available must have shape \(6, 5\)"):
        MaskedMean()(x, mask[:, :2])
    with pytest.raises(
        TypeError, match=r"available must have dtype torch\.bool, got torch\.int64"
    ):
        MaskedMean()(x, mask.long())
    with pytest.raises(TypeError, match=r"features must be a floating tensor, got torch\.int64"):
        MaskedMean()(mask.long())
    with pytest.raises(ValueError, match="dim must be at least 1"):
        AttentionPooling(0)
