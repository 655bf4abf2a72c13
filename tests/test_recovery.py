"""CrossModalRecovery: directions, gradients, injected converters, errors."""

import pytest
import torch
from torch import nn

from robustfusion import ModalityConverter
from robustfusion.paper import CrossModalRecovery

DIMS = {"image": 3, "text": 4, "audio": 5}


def features(batch: int = 6) -> dict[str, torch.Tensor]:
    return {m: torch.randn(batch, d, requires_grad=True) for m, d in DIMS.items()}


def test_every_direction_has_a_converter_of_its_own() -> None:
    recovery, x = CrossModalRecovery(DIMS), features()
    recovered = recovery(x)
    assert list(recovered) == list(DIMS)
    seen = set()
    for target, sources in recovered.items():
        assert list(sources) == [m for m in DIMS if m != target]
        for source, value in sources.items():
            converter = recovery.converters[target][source]
            assert isinstance(converter, ModalityConverter)
            assert torch.equal(value, converter(x[source]))
            assert torch.equal(value, recovery.convert(source, target, x[source]))
            seen.add(converter)
    assert len(seen) == 6


@pytest.mark.parametrize("detach", [True, False])
def test_detach_stops_the_gradient_at_the_encoders(detach: bool) -> None:
    recovery, x = CrossModalRecovery(DIMS, detach=detach), features()
    recovery(x)["text"]["image"].sum().backward()
    converter = recovery.converters["text"]["image"]
    assert all(p.grad is not None for p in converter.parameters())
    assert (x["image"].grad is None) == detach
    assert x["text"].grad is None


def test_takes_a_converter_of_the_user() -> None:
    asked: list[tuple[int, int]] = []

    def linear(in_features: int, out_features: int) -> nn.Module:
        asked.append((in_features, out_features))
        return nn.Linear(in_features, out_features)

    recovery = CrossModalRecovery({"image": 3, "text": 4}, converter=linear)
    assert asked == [(4, 3), (3, 4)]
    assert isinstance(recovery.converters["image"]["text"], nn.Linear)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": None}, ValueError, r"features lacks modality 'text'"),
        ({"video": torch.ones(6, 2)}, ValueError, r"features has unknown modality 'video'"),
        (
            {"text": torch.ones(6, 9)},
            ValueError,
            r'features\["text"\] must have shape \(B, 4\), got \(6, 9\)',
        ),
        ({"text": torch.ones(5, 4)}, ValueError, r'features\["text"\] has 5 rows.*"image".* 6'),
        ({"text": torch.ones(6, 4).int()}, TypeError, r'features\["text"\].*floating.*int32'),
        ({"text": "hello"}, TypeError, r'features\["text"\] must be a torch.Tensor, got str'),
    ],
)
def test_errors_name_the_modality(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {m: x for m, x in {**features(), **change}.items() if x is not None}
    with pytest.raises(error, match=message):
        CrossModalRecovery(DIMS)(given)


@pytest.mark.parametrize(
    ("dims", "error", "message"),
    [
        ({"image": 3}, ValueError, r"dims must name at least 2 modalities, got \['image'\]"),
        ({"image": 3, "text": 0}, ValueError, r'dims\["text"\] must be at least 1, got 0'),
        ({"image": 3, "te.xt": 4}, ValueError, r"a modality name is .* without '\.', got 'te.xt'"),
        ({"image": 3, 7: 4}, ValueError, r"a modality name is a non-empty str .*, got 7"),
        ([3, 4], TypeError, r"dims must map modality names to feature widths, got list"),
    ],
)
def test_dims_are_checked(dims: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CrossModalRecovery(dims)
