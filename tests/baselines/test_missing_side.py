"""Imputation, EmbraceNet and MMIN: each against an obvious version."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion.baselines import EmbraceNetHead, ImputationHead, MMINHead
from robustfusion.baselines._neighbors import nearest_neighbor_mean
from robustfusion.baselines.embracenet import embrace
from robustfusion.baselines.imputation import RunningMean
from robustfusion.baselines.mmin import ResidualCascade

DIMS = {"text": 5, "image": 4}


def make_features(rows: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(rows, dim) for name, dim in DIMS.items()}


def masks(text: list[int], image: list[int]) -> dict[str, Tensor]:
    return {"text": torch.tensor(text).bool(), "image": torch.tensor(image).bool()}


def test_running_mean_over_batches_is_the_mean_of_all_rows() -> None:
    torch.manual_seed(0)
    rows, available = torch.randn(50, 3), torch.rand(50) > 0.3
    running = RunningMean(3)
    for start in range(0, 50, 7):
        running.update(rows[start : start + 7], available[start : start + 7])
    torch.testing.assert_close(running.mean, rows[available].mean(0))
    assert running.count == available.sum()


def test_mean_imputation_uses_past_batches_only() -> None:
    head, features = ImputationHead(DIMS, 3, strategy="mean"), make_features()
    available = masks([1] * 6, [1, 1, 0, 1, 1, 0])
    first = head(features, available)
    assert (first.filled["image"][2] == 0).all()
    second = head(features, available)
    expected = features["image"][available["image"]].mean(0)
    torch.testing.assert_close(second.filled["image"][2], expected)
    assert torch.equal(second.filled["image"][0], features["image"][0])


def test_nearest_neighbor_mean_against_a_sort() -> None:
    torch.manual_seed(0)
    similarity, candidates = torch.randn(5, 9), torch.randn(9, 3)
    allowed = torch.rand(5, 9) > 0.6
    allowed[3] = False
    got = nearest_neighbor_mean(similarity, candidates, allowed, 3)
    for row in range(5):
        order = sorted(
            (j for j in range(9) if allowed[row, j]), key=lambda j: -float(similarity[row, j])
        )
        expected = candidates[order[:3]].mean(0) if order else torch.zeros(3)
        torch.testing.assert_close(got[row], expected)


def test_retrieval_finds_the_stored_partner() -> None:
    head, features = ImputationHead(DIMS, 3, strategy="nearest", neighbors=1), make_features()
    head(features)
    head.eval()
    out = head(
        {"text": 3 * features["text"], "image": torch.full((6, 4), torch.nan)},
        masks([1] * 6, [0] * 6),
    )
    torch.testing.assert_close(out.filled["image"], features["image"])


def test_retrieval_learns_from_incomplete_rows_only_what_they_hold() -> None:
    head, features = ImputationHead(DIMS, 3, strategy="nearest", neighbors=6), make_features()
    stored = masks([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0])
    head(features, stored)
    assert len(head.queue) == 5
    out = head.eval()(features, masks([1] * 6, [0] * 6))
    # Row 4 holds an image but no text to be found by; rows 2 and 3 hold no image.
    expected = features["image"][:2].mean(0).expand(6, 4)
    torch.testing.assert_close(out.filled["image"], expected)


def test_retrieval_from_an_empty_queue_is_zero() -> None:
    head, features = ImputationHead(DIMS, 3, strategy="nearest").eval(), make_features()
    assert (head(features, masks([1] * 6, [0] * 6)).filled["image"] == 0).all()


def test_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="strategy must be"):
        ImputationHead(DIMS, 3, strategy="median")  # type: ignore[arg-type]


def test_embrace_draws_whole_dimensions_at_the_stated_rates() -> None:
    torch.manual_seed(0)
    docked = torch.stack([torch.full((2, 40_000), float(m + 1)) for m in range(3)], dim=1)
    probability = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    drawn = embrace(docked, probability)
    rates = torch.stack([(drawn[0] == m + 1).float().mean() for m in range(3)])
    torch.testing.assert_close(rates, probability[0], atol=0.01, rtol=0)
    assert (drawn[1] == 2).all()
    assert (embrace(docked, torch.zeros(2, 3)) == 0).all()


def test_embracenet_evaluates_the_expectation() -> None:
    head, features = EmbraceNetHead(DIMS, 3).eval(), make_features()
    out = head(features, masks([1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 1]))
    text = head.docking["text"](features["text"])
    image = head.docking["image"](features["image"])
    expected = torch.stack([(text[0] + image[0]) / 2, text[1], image[2], 0 * text[3]])
    torch.testing.assert_close(out.fused[:4], expected)


def test_cascade_sums_residuals() -> None:
    torch.manual_seed(0)
    cascade, x = ResidualCascade(6, 4), torch.randn(3, 6)
    out, latents = cascade(x)
    residuals = torch.zeros(3, 6)
    for index, (encoder, decoder) in enumerate(
        zip(cascade.encoders, cascade.decoders, strict=True)
    ):
        latent = encoder(x + residuals)
        torch.testing.assert_close(latents[:, 4 * index : 4 * index + 4], latent)
        residuals = residuals + decoder(latent.relu())
    torch.testing.assert_close(out, x + residuals)


def test_imagination_is_only_asked_of_what_was_there_and_hidden() -> None:
    features = make_features()
    head = MMINHead(DIMS, 3, modality_dropout=1.0, cycle_weight=0.0, dropout=0.0)
    alone = masks([1] * 6, [0] * 6)
    assert head(features, alone).aux_loss == 0
    torch.manual_seed(3)
    out = head(features)
    # One modality is hidden in each row: the error is over that one's embedding.
    embedded = torch.stack([head.embeddings[name](features[name]) for name in DIMS], dim=1)
    torch.manual_seed(3)
    hidden = torch.rand(6, 2).argmin(1)
    terms = [F.mse_loss(out.imagined[i, m], embedded[i, m]) for i, m in enumerate(hidden)]
    torch.testing.assert_close(out.aux_loss, torch.stack(terms).mean())
    silent = MMINHead(DIMS, 3, cycle_weight=0.0).eval()
    assert silent(features).aux_loss == 0


def test_imagination_improves_with_training() -> None:
    torch.manual_seed(0)
    text = torch.randn(64, 5)
    features = {"text": text, "image": text @ torch.randn(5, 4)}
    labels = (text[:, 0] > 0).long()
    head = MMINHead(DIMS, 2, hidden_features=32, modality_dropout=0.5, dropout=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        out = head(features)
        history.append(out.aux_loss.item())
        head.loss(out, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert sum(history[-10:]) < 0.5 * sum(history[:10])
