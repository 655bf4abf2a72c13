"""Attention, graphs, contrasts and gates of the token-level heads, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from reproductions import (
    CLMLFHead,
    HSANHead,
    MGNNSHead,
    MissingPromptsHead,
    MVANHead,
    MVCNHead,
)
from reproductions._pooling import CLOSED, AttentionPool, gated_share, masked_token_mean
from reproductions._transformer import MultiHeadAttention
from reproductions.clmlf import TEMPERATURE, _drop_tokens, data_contrast, label_contrast
from reproductions.mgnns import AnchorGraph, adjacency
from reproductions.mvcn import disagreement, divergence, keep_gate
from torch import Tensor

DIMS = {"text": 5, "image": 4}


def make_tokens(rows: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"text": torch.randn(rows, 7, 5), "image": torch.randn(rows, 9, 4)}


def test_attention_pool_against_a_loop() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(4, contextual=True)
    tokens, context = torch.randn(3, 5, 4), torch.randn(3, 4)
    valid = torch.rand(3, 5) > 0.4
    valid[1] = False
    got = pool(tokens, valid, context)
    assert pool.from_context is not None
    for row in range(3):
        kept = [i for i in range(5) if valid[row, i]]
        hidden = [
            pool.query(
                torch.tanh(pool.from_tokens(tokens[row, i]) + pool.from_context(context[row]))
            )
            for i in kept
        ]
        expected = torch.zeros(4)
        if kept:
            weights = torch.cat(hidden).softmax(0)
            expected = (weights[:, None] * tokens[row, kept]).sum(0)
        torch.testing.assert_close(got[row], expected)


def test_multi_head_attention_matches_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(8), torch.nn.MultiheadAttention(8, 4, batch_first=True)
    layers = (ours.to_query, ours.to_key, ours.to_value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.zero_()
    queries, keys = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    valid = torch.rand(3, 5) > 0.3
    valid[:, 0] = True
    expected, _ = theirs(queries, keys, keys, key_padding_mask=~valid)
    torch.testing.assert_close(ours(queries, keys, valid), expected)
    assert (ours(queries, keys, torch.zeros(3, 5).bool()) == 0).all()


def test_a_gate_is_a_bias_of_the_scores() -> None:
    torch.manual_seed(0)
    scores, gate = torch.randn(4, 6), (torch.rand(4, 6) > 0.5).float()
    torch.testing.assert_close(
        (scores + (gate + CLOSED).log()).softmax(1), gated_share(scores.softmax(1), gate)
    )


def test_width_must_fit_the_heads() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        MVCNHead(DIMS, 3, hidden_features=10)


def test_closed_gates() -> None:
    weights = torch.tensor([[0.2, 0.3, 0.5]])
    got = gated_share(weights, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.4, 0.6, 0.0]]), atol=2e-3, rtol=0)
    torch.testing.assert_close(gated_share(weights, torch.zeros(1, 3)), weights)
    assert (gated_share(torch.zeros(1, 3), torch.ones(1, 3)) == 0).all()


def test_masked_token_mean() -> None:
    tokens, valid = torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    got = masked_token_mean(tokens, valid)
    torch.testing.assert_close(got[0], (tokens[0, 0] + tokens[0, 2]) / 2)
    assert (got[1] == 0).all()


# --------------------------------------------------------------------------------------- HSAN


def test_hsan_sentences() -> None:
    head, tokens = HSANHead(DIMS, 3, max_segments=3).eval(), make_tokens()
    one = head(tokens).logits
    torch.testing.assert_close(head(tokens, segment_ids=torch.zeros(6, 7).long()).logits, one)
    torch.testing.assert_close(head(tokens, segment_ids=torch.full((6, 7), 2)).logits, one)
    two = head(tokens, segment_ids=torch.arange(7).expand(6, 7) // 4).logits
    assert not torch.allclose(two, one)
    with pytest.raises(ValueError, match="segment_ids must have shape"):
        head(tokens, segment_ids=torch.zeros(6, 3).long())
    with pytest.raises(TypeError, match=r"segment_ids must have dtype torch\.long"):
        head(tokens, segment_ids=torch.zeros(6, 7))
    # No word is lost: sentences beyond the last join it.
    many, few = torch.arange(7).expand(6, 7), torch.arange(7).clamp_max(2).expand(6, 7)
    torch.testing.assert_close(
        head(tokens, segment_ids=many).logits, head(tokens, segment_ids=few).logits
    )


def test_leading_modality() -> None:
    assert HSANHead({"image": 4, "text": 5}, 3).text == "text"
    assert MVANHead({"a": 4, "b": 5}, 3).text == "a"
    assert MVCNHead({"a": 4, "b": 5}, 3, text="b").text == "b"
    with pytest.raises(ValueError, match="text must be one of"):
        HSANHead(DIMS, 3, text="caption")


# --------------------------------------------------------------------------------------- MVAN


def test_mvan_views() -> None:
    assert MVANHead(DIMS, 3).views == ("image", "image")
    assert MVANHead({**DIMS, "scene": 3}, 3).views == ("image", "scene")


def test_more_hops_change_the_reading() -> None:
    tokens = make_tokens()
    one, two = MVANHead(DIMS, 3, num_hops=1).eval(), MVANHead(DIMS, 3, num_hops=2).eval()
    two.load_state_dict(one.state_dict())
    assert not torch.allclose(one(tokens).logits, two(tokens).logits)


# -------------------------------------------------------------------------------------- MGNNS


def test_adjacency_is_row_stochastic_and_sparse() -> None:
    counts = torch.tensor([[4.0, 3.0, 0.1], [3.0, 4.0, 0.1], [0.1, 0.1, 1.0]])
    graph = adjacency(counts)
    torch.testing.assert_close(graph.sum(1), torch.ones(3))
    assert graph[0, 1] > 0
    assert graph[0, 2] == graph[1, 2] == 0
    torch.testing.assert_close(adjacency(torch.zeros(3, 3)), torch.eye(3))


def test_anchor_graph_counts_what_occurs_together() -> None:
    torch.manual_seed(0)
    graph, tokens = AnchorGraph(8, 5), torch.randn(4, 3, 8)
    valid = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]).bool()
    before = graph.cooccurrence.clone()
    nodes = graph(tokens, valid)
    active = torch.zeros(4, 5)
    for row in range(4):
        for place in range(3):
            if valid[row, place]:
                scores = graph.anchors @ tokens[row, place] / math.sqrt(8)
                active[row] = torch.maximum(active[row], scores.softmax(0).detach())
    together = active.T @ active / 3
    torch.testing.assert_close(graph.cooccurrence, 0.9 * before + 0.1 * together)
    a = adjacency(before)
    convolved = a @ F.leaky_relu(a @ graph.anchors @ graph.first.weight.T) @ graph.second.weight.T
    torch.testing.assert_close(nodes, active[..., None] * convolved)
    stored = graph.cooccurrence.clone()
    graph(tokens, torch.zeros(4, 3).bool())
    assert torch.equal(graph.cooccurrence, stored)


def test_mgnns_crosses_every_ordered_pair() -> None:
    assert len(MGNNSHead({**DIMS, "audio": 3}, 3).pairs) == 6


# -------------------------------------------------------------------------------------- CLMLF


def test_label_contrast_against_a_loop() -> None:
    torch.manual_seed(0)
    vectors, labels = torch.randn(7, 4), torch.tensor([0, 1, 0, 2, 1, 0, 1])
    keep = torch.tensor([1, 1, 1, 1, 1, 0, 1]).bool()
    unit = F.normalize(vectors, dim=1)
    terms = []
    for i in range(7):
        others = [j for j in range(7) if j != i and keep[j]]
        partners = [j for j in others if labels[j] == labels[i]]
        if keep[i] and partners:
            total = sum(math.exp(float(unit[i] @ unit[j]) / TEMPERATURE) for j in others)
            shares = [float(unit[i] @ unit[j]) / TEMPERATURE - math.log(total) for j in partners]
            terms.append(-sum(shares) / len(shares))
    got = label_contrast(vectors, labels, keep)
    assert got.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_data_contrast_is_cross_entropy_over_the_batch() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    scores = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / TEMPERATURE
    everything = torch.ones(5).bool()
    torch.testing.assert_close(
        data_contrast(one, other, everything), F.cross_entropy(scores, torch.arange(5))
    )
    keep = torch.tensor([1, 1, 0, 1, 1]).bool()
    torch.testing.assert_close(
        data_contrast(one, other, keep), data_contrast(one[keep], other[keep], everything[:4])
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_contrasts_of_hardly_any_row_are_zero(rows: int) -> None:
    vectors, keep = torch.randn(rows, 4), torch.ones(rows).bool()
    assert label_contrast(vectors, torch.zeros(rows).long(), keep) == 0
    torch.testing.assert_close(data_contrast(vectors, vectors, keep), torch.tensor(0.0))


def test_augmentation_leaves_a_token() -> None:
    torch.manual_seed(0)
    valid = torch.rand(500, 6) > 0.5
    kept = _drop_tokens(valid)
    assert not (kept & ~valid).any()
    assert torch.equal(kept.any(1), valid.any(1))
    assert kept.sum() < valid.sum()


def test_clmlf_without_data_contrast_runs_once() -> None:
    head = CLMLFHead(DIMS, 3, data_weight=0.0)
    assert head(make_tokens()).aux_loss == 0
    assert CLMLFHead(DIMS, 3)(make_tokens()).aux_loss > 0


# --------------------------------------------------------------------------------------- MVCN


def test_divergence_of_two_is_jensen_shannon() -> None:
    torch.manual_seed(0)
    p, q = torch.rand(4, 3).softmax(1), (3 * torch.rand(4, 3)).softmax(1)
    mean = (p + q) / 2
    expected = ((p * (p / mean).log()).sum(1) + (q * (q / mean).log()).sum(1)) / 2
    stacked = torch.stack([p, q], dim=1)
    both = torch.ones(4, 2).bool()
    torch.testing.assert_close(divergence(stacked.log(), both), expected)
    alone = torch.tensor([True, False]).expand(4, 2)
    torch.testing.assert_close(divergence(stacked.log(), alone), torch.zeros(4))
    torch.testing.assert_close(disagreement(stacked, both), (p - q).abs().sum(1) / 2)
    assert (disagreement(stacked, alone) == 0).all()


def test_gate_is_binary_and_passes_gradients() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 500, requires_grad=True)
    gate = keep_gate(scores, training=True)
    torch.testing.assert_close(gate, gate.round())
    gate.sum().backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert (scores.grad > 0).all()
    assert torch.equal(keep_gate(scores, training=False), (scores > 0).float())


def test_gates_open_at_the_rate_of_their_score() -> None:
    torch.manual_seed(0)
    gate = keep_gate(torch.full((1, 40_000), 1.0), training=True)
    assert gate.mean().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)


def test_labels_soften_only_where_modalities_disagree() -> None:
    head, labels = MVCNHead(DIMS, 3, max_calibration=0.5), torch.tensor([0, 0])
    out = head(make_tokens(2))
    agreeing = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    fighting = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
    similarity = torch.stack([agreeing, fighting])
    out = out._replace(extras={**out.extras, "similarity": similarity})
    target = head.calibrated_labels(out, labels)
    torch.testing.assert_close(target[0], torch.tensor([1.0, 0.0, 0.0]))
    # Half of (½, ½, 0) and half of the label.
    torch.testing.assert_close(target[1], torch.tensor([0.75, 0.25, 0.0]))


# ------------------------------------------------------------------------------------ prompts


def test_each_missing_pattern_has_its_prompt() -> None:
    head = MissingPromptsHead(DIMS, 3).eval()
    features = {name: x[:, 0] for name, x in make_tokens(4).items()}
    available = {
        "text": torch.tensor([0, 1, 0, 1]).bool(),
        "image": torch.tensor([0, 0, 1, 1]).bool(),
    }
    assert head.pattern(torch.stack(list(available.values()), 1)).tolist() == [0, 1, 2, 3]
    before = head(features, available).logits
    with torch.no_grad():
        head.prompts[2].normal_()
    changed = (head(features, available).logits != before).any(1)
    assert changed.tolist() == [False, False, True, False]


def test_too_many_modalities_for_prompts() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        MissingPromptsHead({str(i): 2 for i in range(9)}, 3)
