"""Majority, unimodal, concatenation, late mean, and the hiding of modalities."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion.baselines import ConcatenationHead, LateMeanHead, MajorityHead, UnimodalHead
from robustfusion.baselines.head import drop_modalities

DIMS = {"text": 5, "image": 4}


def make_features(rows: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(rows, dim) for name, dim in DIMS.items()}


def test_majority_fit_is_the_log_frequency() -> None:
    head = MajorityHead(DIMS, 3).fit(torch.tensor([2, 2, 2, 0, 0, 2]))
    expected = torch.tensor([3.0, 1.0, 5.0]) / 9
    torch.testing.assert_close(head(make_features()).logits.softmax(1), expected.expand(6, 3))


def test_majority_learns_the_frequency_by_gradient() -> None:
    head, labels = MajorityHead(DIMS, 3), torch.tensor([2, 2, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(make_features()), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected = torch.tensor([1 / 6, 1 / 6, 4 / 6])
    torch.testing.assert_close(head.bias.softmax(0).detach(), expected, atol=1e-2, rtol=0)


def test_majority_fit_checks_labels() -> None:
    with pytest.raises(ValueError, match="target"):
        MajorityHead(DIMS, 2).fit(torch.tensor([0, 5]))


def test_unimodal_uses_one_modality_only() -> None:
    head, features = UnimodalHead(DIMS, 3, modality="text").eval(), make_features()
    changed = head({**features, "image": torch.randn(6, 4)})
    assert torch.equal(changed.logits, head(features).logits)
    assert not torch.equal(head({**features, "text": torch.randn(6, 5)}).logits, changed.logits)


def test_unimodal_without_its_modality_predicts_the_prior() -> None:
    head, features = UnimodalHead(DIMS, 2, modality="text"), make_features()
    labels = torch.tensor([1, 1, 1, 1, 0, 1])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        head.loss(head(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    nothing = {"text": torch.zeros(6).bool(), "image": torch.ones(6).bool()}
    assert head.eval()(features, nothing).logits.argmax(1).tolist() == [1] * 6


def test_unimodal_names_an_unknown_modality() -> None:
    with pytest.raises(ValueError, match=r"modality must be one of .*'audio'"):
        UnimodalHead(DIMS, 2, modality="audio")


def test_concatenation_puts_the_token_in_place_of_what_is_missing() -> None:
    head, features = ConcatenationHead(DIMS, 3).eval(), make_features()
    torch.nn.init.normal_(head.tokens["image"])
    available = {"text": torch.ones(6).bool(), "image": torch.arange(6) % 2 == 0}
    image = features["image"].clone()
    image[1::2] = head.tokens["image"].detach()
    torch.testing.assert_close(
        head(features, available).logits, head({**features, "image": image}).logits
    )


def test_missing_tokens_learn_from_missing_rows_and_from_modality_dropout() -> None:
    features, labels = make_features(), torch.arange(6) % 3
    available = {"text": torch.ones(6).bool(), "image": torch.arange(6) > 2}
    plain = ConcatenationHead(DIMS, 3)
    plain.loss(plain(features), labels).backward()  # type: ignore[no-untyped-call]
    assert all((token.grad == 0).all() for token in plain.tokens.values())
    plain.loss(plain(features, available), labels).backward()  # type: ignore[no-untyped-call]
    assert (plain.tokens["image"].grad != 0).any()
    assert (plain.tokens["text"].grad == 0).all()
    dropping = ConcatenationHead(DIMS, 3, modality_dropout=0.9)
    torch.manual_seed(1)
    dropping.loss(dropping(features), labels).backward()  # type: ignore[no-untyped-call]
    assert all((token.grad != 0).any() for token in dropping.tokens.values())


def test_modality_dropout_is_for_training_only() -> None:
    head, features = ConcatenationHead(DIMS, 3, modality_dropout=1.0).eval(), make_features()
    torch.nn.init.normal_(head.tokens["image"])
    plain = ConcatenationHead(DIMS, 3).eval()
    plain.load_state_dict(head.state_dict())
    assert torch.equal(head(features).logits, plain(features).logits)


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_modality_dropout_is_a_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="modality_dropout"):
        ConcatenationHead(DIMS, 3, modality_dropout=probability)


def test_late_mean_and_its_loss() -> None:
    head, features = LateMeanHead(DIMS, 3, unimodal_weight=0.5, dropout=0.0), make_features()
    labels = torch.arange(6) % 3
    available = {
        "text": torch.tensor([1, 1, 1, 0, 0, 1]).bool(),
        "image": torch.tensor([1, 0, 1, 1, 0, 1]).bool(),
    }
    out = head(features, available)
    text, image = out.extras["unimodal_logits"].unbind(1)
    expected = torch.stack(
        [
            (text[0] + image[0]) / 2,
            text[1],
            (text[2] + image[2]) / 2,
            image[3],
            torch.zeros(3),
            (text[5] + image[5]) / 2,
        ]
    )
    torch.testing.assert_close(out.logits, expected)
    loss = F.cross_entropy(expected, labels)
    for logits, mask in ((text, available["text"]), (image, available["image"])):
        loss = loss + 0.5 * F.cross_entropy(logits[mask], labels[mask])
    torch.testing.assert_close(head.loss(out, labels), loss)


def test_drop_modalities_keeps_one_and_restores_none() -> None:
    torch.manual_seed(0)
    available = torch.rand(5000, 3) > 0.4
    for probability in (0.0, 0.5, 1.0):
        kept = drop_modalities(available, probability)
        assert not (kept & ~available).any()
        assert torch.equal(kept.any(1), available.any(1))
    assert torch.equal(drop_modalities(available, 0.0), available)
    assert (drop_modalities(available, 1.0).sum(1) <= 1).all()


def test_drop_modalities_hides_at_the_stated_rate() -> None:
    torch.manual_seed(0)
    kept = drop_modalities(torch.ones(40_000, 2).bool(), 0.3)
    counts = kept.sum(1)
    # Both hidden (0.09) becomes one of the two, at equal shares.
    assert (counts == 2).float().mean().item() == pytest.approx(0.49, abs=0.01)
    assert kept.float().mean(0).tolist() == pytest.approx([0.745, 0.745], abs=0.01)


def test_drop_modalities_of_nothing() -> None:
    assert drop_modalities(torch.zeros(0, 2).bool(), 0.5).shape == (0, 2)
