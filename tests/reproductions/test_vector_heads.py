"""The heads over vectors that left the package, each against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from reproductions import (
    DyMoHead,
    LateTransformerHead,
    MMINHead,
    NearestImputationHead,
    NearestVoteHead,
    StackingHead,
)
from reproductions._neighbors import nearest_neighbor_mean
from reproductions.dymo import log_tail, reward
from reproductions.mmin import ResidualCascade
from torch import Tensor

DIMS = {"text": 5, "image": 4}
THREE = {**DIMS, "audio": 3}


def make_features(rows: int = 6, dims: dict[str, int] = DIMS) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(rows, dim) for name, dim in dims.items()}


def masks(*columns: list[int], dims: dict[str, int] = DIMS) -> dict[str, Tensor]:
    return {name: torch.tensor(column).bool() for name, column in zip(dims, columns, strict=True)}


# ----------------------------------------------------------------------------------- stacking


def test_the_second_learner_sees_probabilities_and_flags_alone() -> None:
    head, features = StackingHead(DIMS, 3).eval(), make_features()
    out = head(features, masks([1] * 6, [1, 0, 1, 0, 1, 0]))
    text, image = out.extras["unimodal_logits"].softmax(-1).unbind(1)
    flags = torch.tensor([[1.0, 1.0 - row % 2] for row in range(6)])
    given = torch.cat([text, flags[:, 1:] * image, flags], dim=1)
    torch.testing.assert_close(out.fused, head.network(given))


def test_the_second_learner_trains_no_branch() -> None:
    head, features = StackingHead(DIMS, 3), make_features()
    head(features).logits.sum().backward()
    assert all(p.grad is None for p in head.branches.parameters())
    assert all(p.grad is not None for p in head.network.parameters())


# ------------------------------------------------------------------------------- nearest vote


def test_the_vote_against_a_loop() -> None:
    torch.manual_seed(0)
    head, features = NearestVoteHead(DIMS, 3, neighbors=4), make_features(20)
    labels = torch.arange(20) % 3
    stored = masks([1] * 15 + [0] * 5, [0] * 5 + [1] * 15)
    head.loss(head(features, stored), labels)
    new = {name: torch.randn(6, dim) for name, dim in DIMS.items()}
    available = masks([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0])
    out = head.eval()(new, available)
    vote = out.extras["vote"]
    for row in range(6):
        scored = []
        for other in range(20):
            shared = [m for m in DIMS if available[m][row] and stored[m][other]]
            if shared:
                cosines = [F.cosine_similarity(new[m][row], features[m][other], 0) for m in shared]
                scored.append((float(sum(cosines)) / len(shared), int(labels[other])))
        nearest = [label for _, label in sorted(scored, reverse=True)[:4]]
        expected = torch.tensor([nearest.count(c) / 4 for c in range(3)])
        torch.testing.assert_close(vote[row], expected if nearest else torch.zeros(3))
    network = head.network(new, available).logits.softmax(1)
    torch.testing.assert_close(out.logits[:5].exp(), (0.7 * network + 0.3 * vote)[:5])
    torch.testing.assert_close(out.logits[5].exp(), network[5])


def test_a_training_row_does_not_vote_for_itself() -> None:
    head, features = NearestVoteHead(DIMS, 3), make_features()
    for _ in range(2):
        out = head(features)
        assert (out.extras["vote"] == 0).all()
        head.loss(out, torch.arange(6) % 3)
    assert len(head.queue) == 12


def test_rows_without_any_modality_are_not_stored() -> None:
    head, features = NearestVoteHead(DIMS, 3), make_features()
    out = head(features, masks([1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 1, 0]))
    head.loss(out, torch.arange(6) % 3)
    assert len(head.queue) == 3


# --------------------------------------------------------------------------- late Transformer


def test_the_class_token_reads_what_is_there() -> None:
    head, features = LateTransformerHead(DIMS, 3).eval(), make_features()
    alone = head(features, masks([1] * 6, [0] * 6))
    assert not torch.allclose(alone.logits, head(features).logits)
    nothing = head(features, masks([0] * 6, [0] * 6)).logits
    torch.testing.assert_close(nothing, nothing[:1].expand(6, 3))
    with pytest.raises(ValueError, match="divisible by 4"):
        LateTransformerHead(DIMS, 3, hidden_features=10)


def test_modality_dropout_is_for_training_only() -> None:
    features = make_features()
    head = LateTransformerHead(DIMS, 3, modality_dropout=1.0, dropout=0.0)
    whole = head.eval()(features).logits
    assert not torch.allclose(head.train()(features).logits, whole)


# --------------------------------------------------------------------------------------- DyMo


def test_tail_is_that_of_a_normal_distribution() -> None:
    distance, spread = torch.tensor([0.0, 0.3, 1.0, 40.0]), torch.tensor([1.0, 0.2, 0.5, 1.0])
    normal = torch.distributions.Normal(torch.zeros(4), spread)
    expected = 2 * (1 - normal.cdf(distance))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_tail(distance, spread).exp(), expected)
    assert log_tail(distance, spread).isfinite().all()


def test_reward_discounts_what_became_less_typical() -> None:
    g, new_g = torch.tensor([0.5, 0.5, 1.0]).log(), torch.tensor([0.8, 0.25, 0.5]).log()
    got = reward(torch.full((3,), 0.4), torch.full((3,), 0.9), g, new_g)
    ratio = math.log(0.5) / math.log(0.25)
    torch.testing.assert_close(got, torch.tensor([0.9 - 0.4, ratio * 0.9 - 0.4, 0 - 0.4]))


def trained(dims: dict[str, int], steps: int = 40) -> DyMoHead:
    torch.manual_seed(0)
    head = DyMoHead(dims, 3, hidden_features=16, dropout=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    centers = {name: torch.randn(3, dim) for name, dim in dims.items()}
    for step in range(steps):
        labels = (torch.arange(48) + step) % 3
        features = {m: c[labels] + 0.5 * torch.randn(48, c.shape[1]) for m, c in centers.items()}
        optimizer.zero_grad()
        head.loss(head(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head


def test_selection_is_the_greedy_loop() -> None:
    head = trained(THREE).eval()
    features = make_features(30, THREE)
    available = {name: torch.rand(30) > 0.5 for name in THREE}
    mask = torch.stack(list(available.values()), dim=1)
    with torch.no_grad():
        out = head(features, available)
        recovered = head._recover(features, mask)
        filled = {
            name: x.where(mask[:, m, None], recovered[name])
            for m, (name, x) in enumerate(features.items())
        }

        def score(row: int, taken: set[int]) -> tuple[Tensor, Tensor]:
            one = {name: x[row : row + 1] for name, x in filled.items()}
            return head._score(one, torch.tensor([[m in taken for m in range(3)]]))

        for row in range(30):
            taken = {m for m in range(3) if mask[row, m]}
            bad: set[int] = set()
            while taken:
                quality, typicality = score(row, taken)
                rewards = {}
                for m in {0, 1, 2} - taken - bad:
                    new_quality, new_typicality = score(row, taken | {m})
                    rewards[m] = float(reward(quality, new_quality, typicality, new_typicality))
                bad |= {m for m, value in rewards.items() if value < 0}
                if not rewards or max(rewards.values()) <= 0:
                    break
                taken.add(max(rewards, key=lambda m: rewards[m]))
            got = {m for m in range(3) if out.extras["accepted"][row, m] or mask[row, m]}
            assert got == taken, row
    assert 0 < out.extras["accepted"].sum() < (~mask).sum()


def test_what_was_refused_once_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    head = DyMoHead(THREE, 3).eval()
    # Given modality 0, modality 2 has a positive reward only after 1, but was refused before.
    quality = torch.zeros(8)
    for subset, value in ((0b001, 0.5), (0b011, 0.6), (0b101, 0.4), (0b111, 0.9)):
        quality[subset] = value

    def score(inputs: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        subset = (mask * head.powers).sum(1)
        return quality[subset], torch.zeros(len(mask))

    monkeypatch.setattr(head, "_score", score)
    out = head(make_features(2, THREE), masks([1, 1], [0, 0], [0, 0], dims=THREE))
    assert out.extras["accepted"].tolist() == [[False, True, False]] * 2
    quality[0b101] = 0.5  # A reward of zero is no refusal.
    out = head(make_features(2, THREE), masks([1, 1], [0, 0], [0, 0], dims=THREE))
    assert out.extras["accepted"].tolist() == [[False, True, True]] * 2


def test_class_centers_are_running_means_per_subset() -> None:
    torch.manual_seed(0)
    head = DyMoHead(DIMS, 3, hidden_features=16, modality_dropout=0.0)
    features, labels = make_features(), torch.tensor([0, 0, 1, 1, 2, 2])
    out = head(features, masks([1] * 6, [1, 1, 1, 0, 0, 0]))
    head.loss(out, labels)
    unit = out.extras["projected"].detach()
    torch.testing.assert_close(head.centers[3, 0], unit[:2].mean(0))
    torch.testing.assert_close(head.centers[3, 1], unit[2])
    torch.testing.assert_close(head.centers[1, 2], unit[4:].mean(0))
    distance = 1 - unit[:2] @ head.centers[3, 0]
    torch.testing.assert_close(head.squares[3, 0], distance.square().mean())
    assert (head.updates > 0).nonzero().tolist() == [[1, 1], [1, 2], [3, 0], [3, 1]]
    prototypes, seen = head._prototypes()
    torch.testing.assert_close(prototypes[1], (unit[2] + unit[3]) / 2)
    assert seen


def test_recovery_uses_the_other_modalities_only() -> None:
    head, features = trained(DIMS).eval(), make_features()
    both = torch.ones(6, 2).bool()
    before = head._recover(features, both)
    after = head._recover({**features, "text": torch.randn(6, 5)}, both)
    torch.testing.assert_close(after["text"], before["text"])
    assert not torch.allclose(after["image"], before["image"])


def test_too_many_modalities_for_subsets() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        DyMoHead({str(i): 2 for i in range(9)}, 3)


# ------------------------------------------------------------------------- nearest imputation


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
    head, features = NearestImputationHead(DIMS, 3, neighbors=1), make_features()
    head(features)
    head.eval()
    out = head(
        {"text": 3 * features["text"], "image": torch.full((6, 4), torch.nan)},
        masks([1] * 6, [0] * 6),
    )
    torch.testing.assert_close(out.extras["image"], features["image"])


def test_retrieval_learns_from_incomplete_rows_only_what_they_hold() -> None:
    head, features = NearestImputationHead(DIMS, 3, neighbors=6), make_features()
    stored = masks([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0])
    head(features, stored)
    assert len(head.queue) == 5
    out = head.eval()(features, masks([1] * 6, [0] * 6))
    # Row 4 holds an image but no text to be found by; rows 2 and 3 hold no image.
    expected = features["image"][:2].mean(0).expand(6, 4)
    torch.testing.assert_close(out.extras["image"], expected)


def test_retrieval_from_an_empty_queue_is_zero() -> None:
    head, features = NearestImputationHead(DIMS, 3).eval(), make_features()
    assert (head(features, masks([1] * 6, [0] * 6)).extras["image"] == 0).all()


# --------------------------------------------------------------------------------------- MMIN


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
    imagined = out.extras["imagined"]
    terms = [F.mse_loss(imagined[i, m], embedded[i, m]) for i, m in enumerate(hidden)]
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
