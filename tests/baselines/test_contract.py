"""What every baseline promises: the head contract of the library, on two and three modalities."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustfusion.baselines as baselines
from robustfusion.baselines import (
    CLMLFHead,
    ConcatenationHead,
    ECMLHead,
    EmbraceNetHead,
    HSANHead,
    ImputationHead,
    LateMeanHead,
    MajorityHead,
    MGNNSHead,
    MissingPromptsHead,
    MMINHead,
    MVANHead,
    MVCNHead,
    PDFHead,
    QMFHead,
    TMCHead,
    UnimodalHead,
)
from robustfusion.testing import assert_ignores_missing

CLASSES = 3
DIMS = {"text": 5, "image": 4, "audio": 3}

HEADS: dict[str, Callable[..., Any]] = {
    "majority": MajorityHead,
    "unimodal": lambda dims, c: UnimodalHead(dims, c, modality="image", hidden_features=16),
    "concatenation": lambda dims, c: ConcatenationHead(dims, c, hidden_features=16),
    "concatenation+dropout": lambda dims, c: ConcatenationHead(
        dims, c, hidden_features=16, modality_dropout=0.5
    ),
    "late mean": lambda dims, c: LateMeanHead(dims, c, hidden_features=16),
    "qmf": lambda dims, c: QMFHead(dims, c, hidden_features=16, num_samples=20),
    "pdf": lambda dims, c: PDFHead(dims, c, hidden_features=16),
    "tmc": lambda dims, c: TMCHead(dims, c, hidden_features=16),
    "etmc": lambda dims, c: TMCHead(dims, c, hidden_features=16, pseudo_view=True),
    "ecml": lambda dims, c: ECMLHead(dims, c, hidden_features=16),
    "mmin": lambda dims, c: MMINHead(dims, c, hidden_features=16),
    "embracenet": lambda dims, c: EmbraceNetHead(dims, c, hidden_features=16),
    "zero": lambda dims, c: ImputationHead(dims, c, strategy="zero", hidden_features=16),
    "mean": lambda dims, c: ImputationHead(dims, c, strategy="mean", hidden_features=16),
    "nearest": lambda dims, c: ImputationHead(
        dims, c, strategy="nearest", capacity=16, hidden_features=16
    ),
    "missing prompts": lambda dims, c: MissingPromptsHead(dims, c, hidden_features=16),
    "hsan": lambda dims, c: HSANHead(dims, c, hidden_features=16),
    "mvan": lambda dims, c: MVANHead(dims, c, hidden_features=16),
    "mgnns": lambda dims, c: MGNNSHead(dims, c, hidden_features=16, num_anchors=6),
    "clmlf": lambda dims, c: CLMLFHead(dims, c, hidden_features=16),
    "mvcn": lambda dims, c: MVCNHead(dims, c, hidden_features=16),
}
TOKEN_HEADS = ["missing prompts", "hsan", "mvan", "mgnns", "clmlf", "mvcn"]

each_head = pytest.mark.parametrize("name", HEADS)
each_token_head = pytest.mark.parametrize("name", TOKEN_HEADS)
each_dims = pytest.mark.parametrize("modalities", [2, 3])


def make_dims(modalities: int) -> dict[str, int]:
    return dict(list(DIMS.items())[:modalities])


def make_head(name: str, modalities: int = 2) -> Any:
    torch.manual_seed(0)
    return HEADS[name](make_dims(modalities), CLASSES)


def make_batch(
    batch: int = 7, modalities: int = 2, tokens: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(batch)
    features, available = {}, {}
    for index, (name, dim) in enumerate(make_dims(modalities).items()):
        shape = (batch, dim) if tokens is None else (batch, tokens + index, dim)
        features[name] = torch.randn(shape, generator=generator)
        # Row i misses modality i; row 4 (of seven) misses all.
        available[name] = torch.tensor([row not in (index, 4) for row in range(batch)]).bool()
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    return features, available, labels


def run(head: Any, features: Any, available: Any, labels: Tensor, **options: Any) -> Any:
    """One training step's forward and backward: output, loss, gradients."""
    head.zero_grad()
    torch.manual_seed(1)
    output = head(features, available, **options)
    loss = head.loss(output, labels)
    loss.backward()
    return output, loss, [p.grad for p in head.parameters()]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)


def assert_same(got: Any, expected: Any) -> None:
    pairs = list(zip(tensors(got), tensors(expected), strict=True))
    assert pairs
    for one, other in pairs:
        assert torch.equal(one, other)


def test_every_exported_head_is_under_contract() -> None:
    exported = {name for name in baselines.__all__ if name.endswith("Head")}
    assert exported == {type(make_head(name)).__name__ for name in HEADS}


@each_head
@each_dims
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_shapes(name: str, modalities: int, batch: int) -> None:
    head = make_head(name, modalities)
    features, available, labels = make_batch(batch, modalities)
    for mask in (None, available):
        for training in (True, False):
            output = head.train(training)(features, mask)
            assert output.logits.shape == (batch, CLASSES)
            assert output.fused.ndim == 2
            assert output.fused.shape[0] == batch
            assert output.aux_loss.shape == ()
            loss = head.loss(output, labels)
            assert loss.shape == ()
            assert loss.isfinite()
            assert all(x.isfinite().all() for x in tensors(output) if x.is_floating_point())


@each_head
@each_dims
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e6])
def test_hidden_content_reaches_nothing(name: str, modalities: int, poison: float) -> None:
    head = make_head(name, modalities)
    features, available, labels = make_batch(7, modalities)
    poisoned = {key: x.where(available[key][:, None], poison) for key, x in features.items()}
    assert any((x != features[key]).any() for key, x in poisoned.items())
    twin = copy.deepcopy(head)
    for _ in range(2):  # the second step runs on what the first one stored
        expected = run(head, features, available, labels)
        got = run(twin, poisoned, available, labels)
        assert_same(tuple(got[0]), tuple(expected[0]))
        assert_same((got[1], *got[2]), (expected[1], *expected[2]))
        assert_same(tuple(twin.buffers()) or got[1], tuple(head.buffers()) or expected[1])
        assert all(x.isfinite().all() for x in tensors(tuple(got[0])) if x.is_floating_point())
    head.eval()
    twin.eval()
    assert_same(tuple(twin(poisoned, available)), tuple(head(features, available)))


@each_head
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_an_available_row_beyond_use_counts_as_missing(name: str, broken: float) -> None:
    head = make_head(name)
    features, available, labels = make_batch()
    twin = copy.deepcopy(head)
    said = {**available, "text": available["text"].clone()}
    said["text"][3] = False
    expected = run(head, features, said, labels)
    features["text"][3, 1] = broken
    got = run(twin, features, available, labels)
    assert_same(tuple(got[0]), tuple(expected[0]))
    assert_same((got[1], *got[2]), (expected[1], *expected[2]))
    assert_same(tuple(twin.buffers()) or got[1], tuple(head.buffers()) or expected[1])
    assert all(x.isfinite().all() for x in (got[1], *got[2]))


@each_head
def test_assert_ignores_missing(name: str) -> None:
    features, available, labels = make_batch()
    batch = {"inputs": features, "available": available, "label": labels}
    assert_ignores_missing(make_head(name), batch)


@each_head
def test_no_gradient_into_hidden_rows(name: str) -> None:
    head = make_head(name)
    features, available, labels = make_batch()
    leaves = {key: x.requires_grad_() for key, x in features.items()}
    head.loss(head(leaves, available), labels).backward()
    for key, leaf in leaves.items():
        if leaf.grad is not None:
            assert (leaf.grad[~available[key]] == 0).all()


@each_head
@each_dims
def test_everything_unavailable_is_finite(name: str, modalities: int) -> None:
    head = make_head(name, modalities)
    features, available, labels = make_batch(7, modalities)
    nothing = {key: torch.zeros_like(x) for key, x in available.items()}
    poisoned = {key: torch.full_like(x, torch.nan) for key, x in features.items()}
    for _ in range(2):
        output, loss, gradients = run(head, poisoned, nothing, labels)
        assert all(x.isfinite().all() for x in tensors(tuple(output)) if x.is_floating_point())
        assert loss.isfinite()
        assert all(x.isfinite().all() for x in gradients)
    assert head.eval()(poisoned, nothing).logits.isfinite().all()


@each_head
def test_every_parameter_has_a_gradient(name: str) -> None:
    head = make_head(name)
    features, _, labels = make_batch()
    *_, gradients = run(head, features, None, labels)
    assert gradients
    assert all(x is not None for x in gradients)


@each_head
@each_dims
def test_permuting_the_batch_permutes_the_output(name: str, modalities: int) -> None:
    head = make_head(name, modalities)
    features, available, labels = make_batch(7, modalities)
    run(head, features, available, labels)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    head.eval()
    expected = head(features, available)
    got = head(
        {k: x[order] for k, x in features.items()}, {k: x[order] for k, x in available.items()}
    )
    torch.testing.assert_close(got.logits, expected.logits[order])
    torch.testing.assert_close(got.fused, expected.fused[order])


@each_head
def test_order_of_the_keys_does_not_matter(name: str) -> None:
    head = make_head(name).eval()
    features, available, _ = make_batch()
    turned = head(dict(reversed(list(features.items()))), dict(reversed(list(available.items()))))
    assert_same(turned.logits, head(features, available).logits)


@each_head
def test_evaluation_writes_nothing(name: str) -> None:
    head = make_head(name)
    features, available, labels = make_batch()
    run(head, features, available, labels)
    head.eval()
    before = copy.deepcopy(head.state_dict())
    head.loss(head(features, available), labels)
    assert before.keys() == head.state_dict().keys()
    assert all(torch.equal(before[key], x) for key, x in head.state_dict().items())


@each_head
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_copies_predict_the_same(name: str, way: str) -> None:
    head = make_head(name)
    features, available, labels = make_batch()
    run(head, features, available, labels)
    if way == "state_dict":
        torch.manual_seed(9)
        twin = HEADS[name](make_dims(2), CLASSES)
        twin.load_state_dict(head.state_dict())
    elif way == "deepcopy":
        twin = copy.deepcopy(head)
    else:
        twin = pickle.loads(pickle.dumps(head))
    assert_same(tuple(twin.eval()(features, available)), tuple(head.eval()(features, available)))


@each_head
def test_bfloat16_autocast(name: str) -> None:
    head = make_head(name)
    features, available, labels = make_batch()
    for _ in range(2):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = head(features, available)
            loss = head.loss(output, labels)
        assert loss.dtype == torch.float32
        assert output.aux_loss.dtype == torch.float32
        head.zero_grad()
        loss.backward()
        assert all(x.isfinite().all() for x in tensors(tuple(output)) if x.is_floating_point())
        assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@each_head
def test_float64_stays_float64(name: str) -> None:
    head = make_head(name).double()
    features, available, labels = make_batch()
    output, loss, _ = run(head, {k: x.double() for k, x in features.items()}, available, labels)
    assert output.logits.dtype == loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "training"),
    # Evaluation takes another path in these three only; compiling is what costs time.
    [*((key, True) for key in HEADS), ("embracenet", False), ("pdf", False), ("mvcn", False)],
)
def test_compiled_equals_eager(name: str, training: bool) -> None:
    torch.compiler.reset()
    head = make_head(name)
    features, available, labels = make_batch()
    run(head, features, available, labels)
    twin = copy.deepcopy(head)
    head.train(training)
    twin.train(training)
    compiled: Any = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    expected = head(features, available)
    torch.manual_seed(3)
    got = compiled(features, available)
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.aux_loss, expected.aux_loss)
    for one, other in zip(twin.buffers(), head.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@each_head
def test_errors_name_the_modality(name: str) -> None:
    head = make_head(name)
    features, available, labels = make_batch()
    with pytest.raises(ValueError, match="image"):
        head({"text": features["text"]}, available)
    with pytest.raises(ValueError, match=r'features\["image"\] must have shape'):
        head({**features, "image": torch.zeros(7, 9)})
    with pytest.raises(ValueError, match=r'features\["image"\]'):
        head({**features, "image": torch.zeros(6, 4)})
    with pytest.raises(TypeError, match=r'features\["image"\] must have a floating dtype'):
        head({**features, "image": torch.zeros(7, 4, dtype=torch.long)})
    with pytest.raises(TypeError, match=r'available\["text"\]'):
        head(features, {**available, "text": torch.ones(7)})
    with pytest.raises(ValueError, match=r'available\["text"\]'):
        head(features, {**available, "text": torch.ones(6).bool()})
    output = head(features, available)
    with pytest.raises(ValueError, match="labels must have shape"):
        head.loss(output, labels[:3])
    with pytest.raises(TypeError, match="labels must"):
        head.loss(output, labels.float())


# Those that build tensors of the batch's size; the others have no shape to get wrong.
@pytest.mark.parametrize("name", [*TOKEN_HEADS, "nearest"])
def test_exports_with_any_batch_size(name: str) -> None:
    head = make_head(name).eval()
    features, available, _ = make_batch()
    sizes = {key: {0: torch.export.Dim("batch")} for key in features}
    program = torch.export.export(head, (features, available), dynamic_shapes=(sizes, sizes))
    features, available, _ = make_batch(5)
    got = program.module()(features, available)
    torch.testing.assert_close(got.logits, head(features, available).logits)


@each_head
def test_the_docstring_is_a_card(name: str) -> None:
    card = type(make_head(name)).__doc__ or ""
    wanted = ["- Kept: ", "- Replaced: ", "- Missing rule: "]
    if "Reference:" in card:
        wanted.append("- Unverified: ")
    assert [line for line in wanted if line not in card] == []


@each_head
def test_constructor_errors(name: str) -> None:
    with pytest.raises(ValueError, match="dims"):
        HEADS[name]({}, CLASSES)
    with pytest.raises(ValueError, match="num_classes"):
        HEADS[name](make_dims(2), 0)


@each_token_head
@each_dims
def test_tokens(name: str, modalities: int) -> None:
    head = make_head(name, modalities)
    features, available, labels = make_batch(7, modalities, tokens=4)
    masks = {k: torch.rand(x.shape[:2]) > 0.3 for k, x in features.items()}
    hidden = {k: masks[k] & available[k][:, None] for k in features}
    poisoned = {k: x.where(hidden[k][..., None], torch.nan) for k, x in features.items()}
    twin = copy.deepcopy(head)
    expected = run(head, features, available, labels, token_mask=masks)
    got = run(twin, poisoned, available, labels, token_mask=masks)
    assert_same(tuple(got[0]), tuple(expected[0]))
    assert_same((got[1], *got[2]), (expected[1], *expected[2]))
    assert all(x.isfinite().all() for x in (got[1], *got[2]))


@each_token_head
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_a_token_beyond_use_counts_as_padding(name: str, broken: float) -> None:
    head = make_head(name)
    features, available, labels = make_batch(7, 2, tokens=4)
    masks = {key: torch.ones(x.shape[:2]).bool() for key, x in features.items()}
    masks["image"][2, 1] = False
    twin = copy.deepcopy(head)
    expected = run(head, features, available, labels, token_mask=masks)
    features["image"][2, 1, 0] = broken
    got = run(twin, features, available, labels)
    assert_same(tuple(got[0]), tuple(expected[0]))
    assert_same((got[1], *got[2]), (expected[1], *expected[2]))
    assert all(x.isfinite().all() for x in (got[1], *got[2]))


@each_token_head
def test_padding_changes_nothing(name: str) -> None:
    head = make_head(name).eval()
    features, available, _ = make_batch(7, 2, tokens=4)
    padded = {
        k: torch.cat([x, torch.full_like(x[:, :3], torch.nan)], dim=1) for k, x in features.items()
    }
    masks = {
        k: torch.arange(x.shape[1]).expand(x.shape[:2]) < x.shape[1] - 3 for k, x in padded.items()
    }
    got = head(padded, available, token_mask=masks)
    torch.testing.assert_close(got.logits, head(features, available).logits)


@each_token_head
def test_a_row_of_padding_is_a_missing_modality(name: str) -> None:
    head = make_head(name).eval()
    features, _, _ = make_batch(7, 2, tokens=4)
    gone = torch.arange(7) == 2
    masks = {"image": (~gone)[:, None].expand(7, features["image"].shape[1])}
    available = {"text": torch.ones(7).bool(), "image": ~gone}
    assert_same(head(features, None, token_mask=masks).logits, head(features, available).logits)


@each_token_head
def test_a_vector_is_one_token(name: str) -> None:
    head = make_head(name).eval()
    features, available, _ = make_batch()
    tokens = {k: x[:, None] for k, x in features.items()}
    assert_same(head(tokens, available).logits, head(features, available).logits)


@each_token_head
def test_token_errors(name: str) -> None:
    head = make_head(name)
    features, _, _ = make_batch(7, 2, tokens=4)
    with pytest.raises(ValueError, match=r'token_mask\["text"\] must have shape'):
        head(features, token_mask={"text": torch.ones(7, 9).bool()})
    with pytest.raises(ValueError, match="token_mask has unknown modality 'video'"):
        head(features, token_mask={"video": torch.ones(7, 9).bool()})
    with pytest.raises(ValueError, match=r'features\["text"\]'):
        head({**features, "text": torch.zeros(7, 2, 2, 5)})


@pytest.mark.parametrize("name", [key for key in HEADS if key != "majority"])
def test_learns_separable_classes(name: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(90) % CLASSES
    centres = {key: 2 * torch.randn(CLASSES, dim) for key, dim in make_dims(2).items()}
    features = {key: x[labels] + 0.3 * torch.randn(90, x.shape[1]) for key, x in centres.items()}
    head = make_head(name)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(head(features), labels)
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
    accuracy = (head.eval()(features).logits.argmax(1) == labels).float().mean()
    assert loss.item() < first
    assert accuracy > 0.95


def test_heads_are_modules() -> None:
    assert all(isinstance(make_head(name), nn.Module) for name in HEADS)
