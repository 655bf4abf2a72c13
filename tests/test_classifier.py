"""DRFClassifier: encoders, placeholders, gradients, errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robustfusion import DRFClassifier, DRFHead, PaperDRFHead

DIMS = {"image": 3, "text": 4}
Head = Callable[[dict[str, int], int], nn.Module]
heads = pytest.mark.parametrize("head", [DRFHead, PaperDRFHead])


class Spy(nn.Module):
    """An encoder that remembers what it was shown."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.shown: Any = None

    def forward(self, x: Any) -> Tensor:
        self.shown = x
        encoded: Tensor = self.linear(x["pixels"] if isinstance(x, dict) else x)
        return encoded


class Words(nn.Module):
    """An encoder of strings, as a tokenizer inside a model would be."""

    def forward(self, texts: list[str]) -> Tensor:
        return torch.tensor([[len(t), t.count(" "), 1.0, 0.0] for t in texts])


def classifier(head: Head) -> DRFClassifier:
    return DRFClassifier({"image": Spy(5, 3), "text": Spy(6, 4)}, head(DIMS, 3))


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs = {"image": torch.randn(6, 5), "text": torch.randn(6, 6)}
    return inputs, {"image": torch.arange(6) > 1, "text": torch.arange(6) < 4}


@heads
def test_is_the_head_on_encoded_features(head: Head) -> None:
    model = classifier(head).eval()
    inputs, available = batch()
    features = {m: model.encoders[m](x) for m, x in inputs.items()}
    expected = model.head(features, available)
    actual = model(inputs, available)
    assert_close(actual.logits, expected.logits)
    labels = torch.arange(6) % 3
    head_itself: Any = model.head
    assert_close(model.loss(actual, labels), head_itself.loss(expected, labels))


@heads
def test_missing_rows_are_blank_before_the_encoder(head: Head) -> None:
    model = classifier(head)
    inputs, available = batch()
    inputs["image"][:2] = torch.nan
    model(inputs, available)
    shown: Any = model.encoders["image"].shown
    assert (shown[:2] == 0).all()
    assert torch.equal(shown[2:], inputs["image"][2:])


def test_blanks_inside_a_dict_and_leaves_ids_alone() -> None:
    model = classifier(DRFHead)
    inputs, available = batch()
    nested: dict[str, Any] = {
        "image": {"pixels": inputs["image"], "ids": torch.full((6,), 7)},
        "text": inputs["text"],
    }
    nested["image"]["pixels"][:2] = torch.inf
    model(nested, available)
    shown: Any = model.encoders["image"].shown
    assert (shown["pixels"][:2] == 0).all()
    assert (shown["ids"] == 7).all()


def test_strings_reach_their_encoder() -> None:
    model = DRFClassifier({"image": Spy(5, 3), "text": Words()}, DRFHead(DIMS, 3))
    inputs, available = batch()
    texts = ["a post", "", "one more post", "x", "[MASK]", "[MASK]"]
    assert model({"image": inputs["image"], "text": texts}, available).logits.shape == (6, 3)


@heads
def test_what_a_broken_encoder_makes_of_a_placeholder_is_masked(head: Head) -> None:
    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :4] / x.abs().sum(1, keepdim=True)  # 0/0 where the row is blank

    model = DRFClassifier({"image": Spy(5, 3), "text": Divides()}, head(DIMS, 3))
    inputs, available = batch()
    output = model(inputs, available)
    loss = model.loss(output, torch.arange(6) % 3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


@heads
def test_encoders_train_with_the_head(head: Head) -> None:
    model = classifier(head)
    names = [name for name, _ in model.named_parameters()]
    assert "encoders.image.linear.weight" in names
    for _ in range(2):
        model(*batch())
    model.loss(model(*batch()), torch.arange(6) % 3).backward()  # type: ignore[no-untyped-call]
    for m in DIMS:
        encoder: Any = model.encoders[m]
        assert (encoder.linear.weight.grad != 0).any()


def test_takes_any_head() -> None:
    class Sum(nn.Module):
        def forward(self, features: dict[str, Tensor], available: dict[str, Tensor]) -> Tensor:
            assert list(available) == ["image", "text"]
            # No head sees what an encoder made of a placeholder.
            assert all((x[~available[m]] == 0).all() for m, x in features.items())
            return sum((x.sum(1) for x in features.values()), torch.zeros(()))

        def loss(self, output: Tensor, labels: Tensor) -> Tensor:
            return (output - labels).square().mean()

    model = DRFClassifier({"image": Spy(5, 3), "text": Spy(6, 4)}, Sum())
    output = model(*batch())
    assert output.shape == model(batch()[0]).shape == (6,)
    assert model.loss(output, torch.zeros(6)).ndim == 0


def changed(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs, available = batch()
    return {**inputs, **changes.get("inputs", {})}, {**available, **changes.get("available", {})}


@heads
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"inputs": {"video": torch.ones(6, 2)}},
            ValueError,
            r"inputs has unknown modality 'video'; expected \['image', 'text'\]",
        ),
        (
            {"available": {"video": torch.ones(6).bool()}},
            ValueError,
            r"available has unknown modality 'video'",
        ),
        (
            {"available": {"text": torch.ones(6)}},
            TypeError,
            r'available\["text"\] must have dtype torch.bool, got torch.float32',
        ),
        (
            {"available": {"text": torch.ones(5).bool()}},
            ValueError,
            r'available\["text"\] must have shape \(6,\), got \(5,\)',
        ),
    ],
)
def test_errors_name_the_modality(
    head: Head, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        classifier(head)(*changed(**changes))


def test_an_absent_modality_says_what_to_do() -> None:
    inputs, available = batch()
    with pytest.raises(ValueError, match=r"inputs lacks modality 'text'.*placeholder"):
        classifier(DRFHead)({"image": inputs["image"]}, available)


def test_a_mask_that_leaves_a_modality_out_means_that_it_is_present() -> None:
    inputs, available = batch()
    model = classifier(DRFHead).eval()
    everywhere = {"image": available["image"], "text": torch.ones_like(available["image"])}
    got, expected = model(inputs, {"image": available["image"]}), model(inputs, everywhere)
    assert torch.equal(got.logits, expected.logits)
    with pytest.raises(ValueError, match=r"available has unknown modality 'audio'"):
        model(inputs, {"audio": available["image"]})


def test_construction_is_checked() -> None:
    with pytest.raises(ValueError, match=r"encoders lacks modality 'text'"):
        DRFClassifier({"image": Spy(5, 3)}, DRFHead(DIMS, 3))
    with pytest.raises(TypeError, match=r'encoders\["text"\] must be an nn.Module, got str'):
        DRFClassifier({"image": Spy(5, 3), "text": "bert"}, DRFHead(DIMS, 3))  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"head must be an nn.Module, got int"):
        DRFClassifier({"image": Spy(5, 3)}, 3)  # type: ignore[arg-type]


def test_rows_that_do_not_match_are_named() -> None:
    model = DRFClassifier({"image": Spy(5, 3), "text": Spy(6, 4)}, DRFHead(DIMS, 3))
    inputs, available = batch()
    with pytest.raises(ValueError, match=r'inputs\["text"\] must have 6 rows, got shape \(5, 6\)'):
        model({**inputs, "text": inputs["text"][:5]}, available)


@pytest.mark.parametrize(
    ("returned", "got"),
    [(lambda x: (x, x), "tuple"), (lambda x: x[:2, :4], r"\(2, 4\)")],
)
def test_an_encoder_that_returns_no_vector_a_row_is_named(returned: Any, got: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return returned(x)

    model = DRFClassifier({"image": Spy(5, 3), "text": Odd()}, DRFHead(DIMS, 3))
    with pytest.raises(ValueError, match=rf'encoders\["text"\] must return \(6, D\), got .*{got}'):
        model(*batch())


def test_an_encoder_of_the_wrong_width_is_named() -> None:
    model = DRFClassifier({"image": Spy(5, 3), "text": Spy(6, 9)}, DRFHead(DIMS, 3))
    with pytest.raises(
        ValueError, match=r'features\["text"\] must have shape \(B, 4\), got \(6, 9\)'
    ):
        model(*batch())
