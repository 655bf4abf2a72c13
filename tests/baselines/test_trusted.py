"""TMC, ETMC, ECML, QMF and PDF: weights and losses against loops over rows and modalities."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustfusion.baselines import ECMLHead, PDFHead, QMFHead, TMCHead
from robustfusion.baselines._evidence import conflict, evidential_loss
from robustfusion.baselines.pdf import co_belief, relative_calibration
from robustfusion.baselines.qmf import energy_confidence, ranking_loss

DIMS = {"text": 5, "image": 4, "audio": 3}


def batch(rows: int = 6) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    features = {name: torch.randn(rows, dim) for name, dim in DIMS.items()}
    available = {name: torch.rand(rows) > 0.4 for name in DIMS}
    return features, available, torch.arange(rows) % 3


def stacked(available: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(available.values()), dim=1)


# ---------------------------------------------------------------------------------------- QMF


def test_qmf_weights_are_energies_over_temperature() -> None:
    features, available, _ = batch()
    out = QMFHead(DIMS, 3, temperature=10.0).eval()(features, available)
    for row in range(6):
        expected = torch.zeros(3)
        for index, mask in enumerate(available.values()):
            z = out.extras["unimodal_logits"][row, index].detach()
            weight = math.log(sum(math.exp(float(v)) for v in z)) / 10 if mask[row] else 0.0
            assert out.extras["weights"][row, index].item() == pytest.approx(weight, abs=1e-6)
            expected = expected + weight * z
        torch.testing.assert_close(out.logits[row].detach(), expected)


def test_qmf_weights_are_detached_but_the_ranking_is_not() -> None:
    features, _, _ = batch()
    out = QMFHead(DIMS, 3)(features)
    assert not out.extras["weights"].requires_grad
    assert energy_confidence(out.extras["unimodal_logits"]).requires_grad


def test_qmf_energy_does_not_overflow() -> None:
    assert energy_confidence(torch.tensor([[2e4, 0.0]], dtype=torch.float16)).item() == 2000.0


def test_ranking_loss_against_a_loop() -> None:
    torch.manual_seed(0)
    confidence, difficulty = torch.randn(8), torch.rand(8)
    valid = torch.tensor([True, True, False, True, True, True, True, True])
    terms = []
    for i in range(8):
        j = (i - 1) % 8
        if valid[i] and valid[j]:
            gap = float(difficulty[i] - difficulty[j])
            terms.append(
                max(0.0, math.copysign(1, gap) * float(confidence[i] - confidence[j]) + abs(gap))
            )
    expected = sum(terms) / len(terms)
    columns = [x.unsqueeze(1).expand(8, 2) for x in (confidence, difficulty, valid)]
    assert ranking_loss(*columns).item() == pytest.approx(2 * expected, rel=1e-5)


def test_ranking_loss_is_zero_when_the_easier_row_is_surer_by_the_gap() -> None:
    difficulty, valid = torch.tensor([[0.0], [1.0]]), torch.ones(2, 1).bool()
    assert ranking_loss(torch.tensor([[2.0], [0.5]]), difficulty, valid) == 0
    assert ranking_loss(torch.tensor([[0.5], [2.0]]), difficulty, valid) > 0


def test_qmf_history_is_the_mean_loss_of_each_sample() -> None:
    head = QMFHead(DIMS, 3, num_samples=10, dropout=0.0)
    features, _, labels = batch()
    available = {name: torch.arange(6) != gone for gone, name in enumerate(DIMS)}
    indices = torch.tensor([9, 0, 4, 2, 7, 5])
    sums, counts = torch.zeros(10, 3), torch.zeros(10, 3)
    for _ in range(2):
        out = head(features, available, indices=indices)
        head.loss(out, labels)
        for row, index in enumerate(indices):
            for m, mask in enumerate(available.values()):
                if mask[row]:
                    z = out.extras["unimodal_logits"][row, m]
                    sums[index, m] += F.cross_entropy(z, labels[row]).detach()
                    counts[index, m] += 1
    torch.testing.assert_close(head.loss_sum, sums)
    assert torch.equal(head.times_seen, counts.long())
    mean = sums / counts
    for m in range(3):
        seen = counts[:, m] > 0
        low, high = mean[seen, m].min(), mean[seen, m].max()
        torch.testing.assert_close(
            head.difficulty()[seen, m], (mean[seen, m] - low) / (high - low)
        )


def test_qmf_history_changes_the_loss_of_the_next_step_only() -> None:
    head = QMFHead(DIMS, 3, num_samples=6, dropout=0.0)
    features, _, labels = batch()
    indices = torch.arange(6)
    without = head.loss(head(features), labels)
    assert torch.equal(head.loss(head(features, indices=indices), labels), without)
    assert head.loss(head(features, indices=indices), labels) != without


def test_qmf_indices_are_checked() -> None:
    features, _, _ = batch()
    with pytest.raises(ValueError, match="num_samples"):
        QMFHead(DIMS, 3)(features, indices=torch.arange(6))
    head = QMFHead(DIMS, 3, num_samples=6)
    with pytest.raises(ValueError, match="indices must have shape"):
        head(features, indices=torch.arange(5))
    with pytest.raises(TypeError, match="indices must have dtype"):
        head(features, indices=torch.zeros(6))
    with pytest.raises(ValueError, match="num_samples"):
        QMFHead(DIMS, 3, num_samples=0)


# ---------------------------------------------------------------------------------------- PDF


def test_co_belief_of_two_is_the_papers_formula() -> None:
    scores = torch.randn(6, 2)
    c = torch.sigmoid(scores)
    holistic = c.log().flip(1) / c.log().sum(1, keepdim=True)
    torch.testing.assert_close(co_belief(scores, torch.ones(6, 2).bool()), c + holistic)


def test_co_belief_over_what_is_available() -> None:
    scores = torch.randn(1, 3)
    got = co_belief(scores, torch.tensor([[True, False, True]]))
    pair = co_belief(scores[:, ::2], torch.ones(1, 2).bool())
    torch.testing.assert_close(got[:, ::2], pair)
    alone = co_belief(scores, torch.tensor([[False, True, False]]))
    torch.testing.assert_close(alone[0, 1], torch.sigmoid(scores[0, 1]))


def test_co_belief_of_extreme_confidence_is_finite() -> None:
    scores = torch.tensor([[1e4, 1e4], [-1e4, -1e4], [1e4, -1e4]])
    assert co_belief(scores, torch.ones(3, 2).bool()).isfinite().all()


def test_relative_calibration_against_a_loop() -> None:
    torch.manual_seed(0)
    logits, available = torch.randn(8, 3, 4), torch.rand(8, 3) > 0.3
    got = relative_calibration(logits, available)
    for row in range(8):
        decided = (logits[row].softmax(-1) - 0.25).abs().mean(-1)
        for m in range(3):
            rivals = [float(decided[j]) for j in range(3) if j != m and available[row, j]]
            if available[row, m]:
                expected = min(1.0, float(decided[m]) / max(rivals)) if rivals else 1.0
                assert got[row, m].item() == pytest.approx(expected, rel=1e-5)


def test_pdf_weights() -> None:
    features, available, _ = batch()
    head = PDFHead(DIMS, 3, dropout=0.0)
    training, evaluation = head(features, available), head.eval()(features, available)
    mask = stacked(available)
    scores = torch.logit(training.extras["confidence"].double()).float()
    belief = co_belief(scores, mask)
    calibrated = belief * relative_calibration(training.extras["unimodal_logits"], mask)
    for out, expected in ((training, belief), (evaluation, calibrated)):
        weights = expected.masked_fill(~mask, -torch.inf).softmax(1).nan_to_num()
        torch.testing.assert_close(out.extras["weights"], weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            out.logits, (out.extras["weights"][..., None] * out.extras["unimodal_logits"]).sum(1)
        )
        assert not out.extras["weights"].requires_grad
    alone = mask.sum(1) == 1
    assert alone.any()
    largest = evaluation.extras["weights"].amax(1)
    torch.testing.assert_close(largest[alone], torch.ones(int(alone.sum())))


def test_pdf_loss_against_a_loop() -> None:
    features, available, labels = batch()
    head = PDFHead(DIMS, 3, dropout=0.0)
    out = head(features, available)
    expected = F.cross_entropy(out.logits, labels)
    for m, mask in enumerate(available.values()):
        z, y = out.extras["unimodal_logits"][mask, m], labels[mask]
        true_probability = z.softmax(1)[torch.arange(len(y)), y].detach()
        error = (out.extras["confidence"][mask, m] - true_probability).abs().mean()
        expected = expected + F.cross_entropy(z, y) + error
    torch.testing.assert_close(head.loss(out, labels), expected)


# ---------------------------------------------------------------------------- TMC, ETMC, ECML


def test_tmc_probability_is_the_mean_of_the_combined_dirichlet() -> None:
    features, available, _ = batch()
    out = TMCHead(DIMS, 3).eval()(features, available)
    views = out.extras["view_evidence"]
    product = (1 + views / 3).where(stacked(available)[..., None], 1.0).prod(1)
    alpha = 3 * (product - 1) + 1
    torch.testing.assert_close(out.logits.softmax(1), alpha / alpha.sum(1, keepdim=True))
    torch.testing.assert_close(out.extras["uncertainty"], 3 / alpha.sum(1))


def test_tmc_loss_and_annealing() -> None:
    features, available, labels = batch()
    head = TMCHead(DIMS, 3, annealing_steps=4, dropout=0.0)
    out = head(features, available)
    for step in range(1, 7):
        weight = torch.tensor(min(1.0, step / 4))
        expected = evidential_loss(out.extras["evidence"], labels, weight).mean()
        for m, mask in enumerate(available.values()):
            view = evidential_loss(out.extras["view_evidence"][mask, m], labels[mask], weight)
            expected = expected + view.mean()
        torch.testing.assert_close(head.loss(out, labels), expected)
    assert head.steps == 6
    head.eval().loss(out, labels)
    assert head.steps == 6


def test_etmc_has_one_view_more() -> None:
    features, available, _ = batch()
    out = TMCHead(DIMS, 3, pseudo_view=True).eval()(features, available)
    assert out.extras["view_evidence"].shape == (6, 4, 3)
    assert torch.equal(out.extras["view_available"][:, 3], stacked(available).any(1))


def test_agreement_makes_dempster_surer_but_not_the_mean() -> None:
    tmc, ecml = TMCHead(DIMS, 3).eval(), ECMLHead(DIMS, 3).eval()
    features, _, _ = batch()
    for head, surer in ((tmc, True), (ecml, False)):
        out = head(features)
        least = (3 / (out.extras["view_evidence"].sum(-1) + 3)).amin(1)
        assert ((out.extras["uncertainty"] < least) == surer).all()


def test_conflict_against_a_loop() -> None:
    torch.manual_seed(0)
    evidence, available = torch.rand(8, 3, 4) * 6, torch.rand(8, 3) > 0.3
    got = conflict(evidence, available)
    for row in range(8):
        views = [evidence[row, m] for m in range(3) if available[row, m]]
        total = 0.0
        for i, p in enumerate(views):
            for j, q in enumerate(views):
                if i != j:
                    alpha, beta = p + 1, q + 1
                    distance = (alpha / alpha.sum() - beta / beta.sum()).abs().sum() / 2
                    sure = (1 - 4 / alpha.sum()) * (1 - 4 / beta.sum())
                    total += float(distance * sure)
        expected = total / (len(views) - 1) if len(views) > 1 else 0.0
        assert got[row].item() == pytest.approx(expected, abs=1e-6)


def test_ecml_does_not_depend_on_the_order_of_the_modalities() -> None:
    features, available, _ = batch()
    head = ECMLHead(DIMS, 3).eval()
    turned = ECMLHead(dict(reversed(DIMS.items())), 3).eval()
    parameters = {name: value for name, value in head.state_dict().items() if name != "identity"}
    with pytest.warns(UserWarning, match="does not say what it belongs to"):
        turned.load_state_dict(parameters, strict=False)
    with pytest.raises(ValueError, match="its modalities are"):
        turned.load_state_dict(head.state_dict())
    one, other = head(features, available), turned(features, available)
    torch.testing.assert_close(one.logits, other.logits)
    torch.testing.assert_close(one.aux_loss, other.aux_loss)


def test_ecml_loss_against_a_loop() -> None:
    features, available, labels = batch()
    head = ECMLHead(DIMS, 3, annealing_steps=2, conflict_weight=0.7, dropout=0.0)
    out = head(features, available)
    weight, views = torch.tensor(0.5), out.extras["view_evidence"]
    rows = []
    for row in range(6):
        y = labels[row : row + 1]
        terms = [evidential_loss(out.extras["evidence"][row : row + 1], y, weight)]
        for m, mask in enumerate(available.values()):
            if mask[row]:
                terms.append(evidential_loss(views[row : row + 1, m], y, weight))
        rows.append(torch.cat(terms).mean())
    penalty = 0.7 * conflict(views, stacked(available)).mean()
    torch.testing.assert_close(head.loss(out, labels), torch.stack(rows).mean() + penalty)
