"""`assert_ignores_missing` must pass honest models and catch each kind of leak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfusion import DRFHead, PaperDRFHead
from robustfusion.testing import assert_batch_invariant, assert_ignores_missing


class Out(NamedTuple):
    logits: Tensor
    aux_loss: Tensor


class Honest(nn.Module):
    """Averages what is there; subclasses below leak in one way each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"image": nn.Linear(5, 8), "text": nn.Linear(4, 8)})
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, 3)

    def clean(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[:, None], x, 0.0)

    def fuse(self, encoded: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        total = sum(torch.where(available[n][:, None], x, 0.0) for n, x in encoded.items())
        dropped: Tensor = self.dropout(torch.as_tensor(total))
        return dropped

    def aux(self, encoded: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        both = available["image"] & available["text"]
        gap = (encoded["image"] - encoded["text"]).square().sum(1)
        return torch.where(both, gap, 0.0).mean()

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        encoded = {
            name: encoder(self.clean(name, inputs[name], available[name]))
            for name, encoder in self.encoders.items()
        }
        logits = self.classifier(self.fuse(encoded, available))
        return Out(logits, self.aux(encoded, available))

    def loss(self, out: Out, labels: Tensor) -> Tensor:
        return F.cross_entropy(out.logits, labels) + out.aux_loss


class MaskAfterEncoder(Honest):
    """Outputs are right, but 0 * NaN reaches the gradient of the encoder's weight."""

    def clean(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        return x


class PlainSum(MaskAfterEncoder):
    """Looks at everything."""

    def fuse(self, encoded: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        return encoded["image"] + encoded["text"]


class MultipliedMask(Honest):
    """Hides by a product, which hides every number, but not NaN and infinity."""

    def clean(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask[:, None]


class PseudoMissing(Honest):
    """Regresses onto the true features of what is declared missing, in training only."""

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        out = super().forward(inputs, available)
        if not self.training:
            return out
        target = self.encoders["text"](inputs["text"].nan_to_num().clamp(-9, 9))
        return out._replace(aux_loss=out.aux_loss + (target**2).mean())


class RunningMean(Honest):
    """Stores everything, and uses it in evaluation only."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(4))

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        out = super().forward(inputs, available)
        if self.training:
            with torch.no_grad():
                self.running.copy_(inputs["text"].mean(0))
            return out
        return out._replace(logits=out.logits + self.running.sum())


class Bank(Honest):
    """Stores everything, and reads it in training only, as a loss over a memory bank does."""

    stored: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stored", torch.zeros(4))

    def loss(self, out: Out, labels: Tensor) -> Tensor:
        return super().loss(out, labels) + out.aux_loss * self.before.sum()

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        self.before = self.stored.clone()
        if self.training:
            with torch.no_grad():
                self.stored.copy_(inputs["text"].mean(0))
        return super().forward(inputs, available)


class InputGradient(Honest):
    """A term of value zero that sends a gradient into missing rows."""

    def aux(self, encoded: Mapping[str, Tensor], available: Mapping[str, Tensor]) -> Tensor:
        return super().aux(encoded, available)

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        out = super().forward(inputs, available)
        text = inputs["text"]
        straight = torch.where(text.isfinite(), text, 0.0)
        return out._replace(aux_loss=out.aux_loss + (straight - straight.detach()).sum())


class Noisy(Honest):
    """Not reproducible under a seed."""

    calls = 0

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        type(self).calls += 1
        out = super().forward(inputs, available)
        return out._replace(logits=out.logits + type(self).calls)


@pytest.fixture
def batch() -> dict[str, Any]:
    source = torch.Generator().manual_seed(0)
    text = torch.tensor([True, False, True, True, False, True])
    return {
        "inputs": {
            "image": torch.randn(6, 5, generator=source),
            "text": torch.randn(6, 4, generator=source),
        },
        "available": {"image": ~text | torch.tensor([True, True, False, True, True, True])}
        | {"text": text},
        "label": torch.tensor([0, 1, 2, 0, 1, 2]),
    }


def build(kind: type[Honest]) -> Honest:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind()


def test_an_honest_model_passes_and_nothing_of_it_changes(batch: dict[str, Any]) -> None:
    model = build(Honest)
    model.dropout.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = {name: value.clone() for name, value in batch["inputs"].items()}
    rng = torch.get_rng_state()
    assert_ignores_missing(model, batch)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert not model.dropout.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert all(torch.equal(inputs[name], value) for name, value in batch["inputs"].items())
    assert not any(value.requires_grad for value in batch["inputs"].values())


def test_dropout_is_on_in_training_mode(batch: dict[str, Any]) -> None:
    # Were the check blind to training mode, PseudoMissing below would pass; here: it sees dropout.
    seen = []

    class Spy(Honest):
        def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
            seen.append((self.training, self.dropout.training))
            return super().forward(inputs, available)

    assert_ignores_missing(build(Spy), batch)
    assert (True, True) in seen
    assert (False, False) in seen


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            MaskAfterEncoder,
            [r'inputs["text"], missing rows set to NaN, train mode', "encoders.text.weight"],
        ),
        (PlainSum, ["set to 1e6", "eval mode", "logits (2 of 6 rows)", "loss"]),
        (MultipliedMask, ["set to NaN", "set to inf"]),
        (PseudoMissing, ["train mode: changed loss, aux_loss, gradients of encoders.text"]),
        (RunningMean, ["logits of the next forward (stored state) (6 of 6 rows)"]),
        (Bank, ["train mode: changed loss of the next step (stored state)"]),
        (InputGradient, ['a gradient reached missing rows of inputs["text"]']),
    ],
)
def test_each_kind_of_leak_is_caught_and_named(
    batch: dict[str, Any], kind: type[Honest], words: list[str]
) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_ignores_missing(build(kind), batch)
    report = str(caught.value)
    for word in words:
        assert word in report, report


def test_the_report_blames_the_right_input_and_mode(batch: dict[str, Any]) -> None:
    for kind in (PseudoMissing, RunningMean, InputGradient):
        with pytest.raises(AssertionError) as caught:
            assert_ignores_missing(build(kind), batch)
        assert 'inputs["image"]' not in str(caught.value)
    with pytest.raises(AssertionError) as caught:
        assert_ignores_missing(build(PseudoMissing), batch)
    assert "eval mode" not in str(caught.value)
    with pytest.raises(AssertionError) as caught:
        assert_ignores_missing(build(MultipliedMask), batch)
    assert "1e6" not in str(caught.value)
    assert "other samples' rows" not in str(caught.value)


def test_other_samples_rows_are_found_by_a_model_that_filters_odd_values(
    batch: dict[str, Any],
) -> None:
    class Filters(PlainSum):
        def clean(self, name: str, x: Tensor, mask: Tensor) -> Tensor:
            odd = ~x.isfinite() | (x.abs() > 100)
            return torch.where(mask[:, None] | ~odd, x.nan_to_num(0, 0, 0), 0.0)

    with pytest.raises(AssertionError) as caught:
        assert_ignores_missing(build(Filters), batch)
    assert "set to other samples' rows" in str(caught.value)


class Words(Honest):
    """Takes token ids, or strings, or a mapping of both ids and mask."""

    def __init__(self, *, hide: bool = True) -> None:
        super().__init__()
        self.hide = hide
        self.embedding = nn.Embedding(10, 4)

    def forward(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Out:
        text = inputs["text"]
        if isinstance(text, list):
            text = torch.tensor([[len(t) % 10, t.count("e") % 10] for t in text])
        elif isinstance(text, Mapping):
            text = text["input_ids"] * text["attention_mask"]
        vectors = self.embedding(text).mean(1)
        if not self.hide:
            return super().forward(
                {**inputs, "text": vectors}, {**available, "text": torch.ones(6).bool()}
            )
        return super().forward({**inputs, "text": vectors}, available)


@pytest.mark.parametrize("form", ["ids", "mapping", "strings"])
def test_token_ids_and_strings_are_poisoned_too(batch: dict[str, Any], form: str) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0], [7, 8, 9], [1, 1, 0], [2, 4, 6], [3, 0, 0]])
    texts: dict[str, Any] = {
        "ids": ids,
        "mapping": {"input_ids": ids, "attention_mask": (ids > 0).long()},
        "strings": ["one", "two two", "three", "four", "", "sixteen"],
    }
    batch["inputs"]["text"] = texts[form]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        honest, leaky = Words(), Words(hide=False)
    assert_ignores_missing(honest, batch)
    with pytest.raises(AssertionError, match=r'inputs\["text"\], missing rows set to other'):
        assert_ignores_missing(leaky, batch)


def test_half_precision_poison_is_finite(batch: dict[str, Any]) -> None:
    inputs = {name: value.half() for name, value in batch["inputs"].items()}
    half = build(Honest).half()
    assert_ignores_missing(half, {**batch, "inputs": inputs})


@pytest.mark.parametrize("build_head", [DRFHead, PaperDRFHead])
def test_the_heads_of_this_package_pass(batch: dict[str, Any], build_head: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = build_head({"image": 5, "text": 4}, 3)
        for _ in range(3):
            head(batch["inputs"], batch["available"])
    assert_ignores_missing(head, batch)


def test_what_cannot_be_compared_is_said(batch: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="the model is not deterministic"):
        assert_ignores_missing(build(Noisy), batch)
    batch["inputs"]["text"][1] = float("nan")
    with pytest.raises(AssertionError, match="logits are not finite in train mode"):
        assert_ignores_missing(build(PlainSum), batch)
    assert_ignores_missing(build(Honest), batch)


def test_wrong_batches_are_named(batch: dict[str, Any]) -> None:
    model = build(Honest)
    everything = {name: torch.ones(6).bool() for name in ("image", "text")}
    with pytest.raises(ValueError, match="nothing to check"):
        assert_ignores_missing(model, {**batch, "available": everything})
    with pytest.raises(ValueError, match="label is absent"):
        assert_ignores_missing(model, {"inputs": {}, "available": {}})
    with pytest.raises(ValueError, match="available must have the keys of inputs"):
        assert_ignores_missing(model, {**batch, "available": {"image": everything["image"]}})
    wrong = {**everything, "text": torch.ones(6)}
    with pytest.raises(ValueError, match=r'available\["text"\] must be a bool tensor \(6,\)'):
        assert_ignores_missing(model, {**batch, "available": wrong})
    alike = {**batch["inputs"], "text": torch.ones(6, 2).long()}
    with torch.random.fork_rng():
        words = Words()
    with pytest.raises(ValueError, match=r'inputs\["text"\] has nothing to put into'):
        assert_ignores_missing(words, {**batch, "inputs": alike})


def by_mean(texts: list[str], longest: int | None = None) -> Tensor:
    """Encode by the mean over the padded length."""
    length = longest or max(map(len, texts))
    return torch.tensor([[text.count(c) for c in "aeiou"] for text in texts]) / length


def test_an_encoder_that_depends_on_its_batch_is_found() -> None:
    texts = ["a tree", "a", "you"]
    assert_batch_invariant(lambda batch: by_mean(batch, 40), texts)
    with pytest.raises(AssertionError, match=r"inputs\[1\] depends on its batch: .* 83%"):
        assert_batch_invariant(by_mean, texts)
    # Depends on the order alone: the vector of the first row is added to every other.
    with pytest.raises(AssertionError, match="depends on its batch"):
        assert_batch_invariant(lambda b: by_mean(b, 9) + by_mean(b, 9)[:1], texts)
    with pytest.raises(AssertionError, match="all inputs have the same vector"):
        assert_batch_invariant(lambda batch: torch.ones(len(batch), 3), texts)
    with pytest.raises(AssertionError, match="change from call to call"):
        assert_batch_invariant(lambda batch: torch.randn(len(batch), 3), texts)
    with pytest.raises(AssertionError, match="depends on its batch"):
        assert_batch_invariant(
            lambda b: by_mean(b, 9) if len(b) == 1 else by_mean(b, 9) * torch.nan, texts
        )


def test_what_is_no_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="two inputs or more, got 1"):
        assert_batch_invariant(by_mean, ["a"])
    with pytest.raises(ValueError, match=r"must return shape \(1, D\), got \(5,\)"):
        assert_batch_invariant(lambda batch: by_mean(batch)[0], ["a", "e"])
