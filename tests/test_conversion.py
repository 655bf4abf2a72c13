"""ModalityConverter against a loop, and its errors."""

import oracles
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustfusion import ModalityConverter


def test_is_a_two_layer_mlp() -> None:
    converter = ModalityConverter(3, 4, hidden_features=5).double()
    linear = [layer for layer in converter.layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(3, 5), (5, 4)]
    x = torch.randn(6, 3).double()
    apply = oracles.mlp_of(converter.layers)
    expected = [apply(row) for row in oracles.rows_of(x)]
    assert_close(converter(x), torch.tensor(expected).double())


def test_hidden_width_is_the_larger_by_default() -> None:
    assert ModalityConverter(3, 7).hidden_features == 7
    assert ModalityConverter(8, 7).hidden_features == 8


def test_leading_dimensions_are_free() -> None:
    converter, x = ModalityConverter(3, 4), torch.randn(2, 5, 3)
    assert_close(converter(x), converter(x.reshape(-1, 3)).reshape(2, 5, 4))


def test_dropout_acts_in_training_only() -> None:
    converter, x = ModalityConverter(3, 4, hidden_features=64, dropout=0.5), torch.randn(5, 3)
    assert not torch.equal(converter(x), converter(x))
    converter.eval()
    assert torch.equal(converter(x), converter(x))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((0, 4), {}, "in_features must be at least 1, got 0"),
        ((3, -4), {}, "out_features must be at least 1, got -4"),
        ((3, 4), {"hidden_features": 0}, "hidden_features must be at least 1, got 0"),
        ((3, 4), {"dropout": 1.5}, "dropout must be between 0.0 and 1.0, got 1.5"),
    ],
)
def test_options_are_checked(
    sizes: tuple[int, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ModalityConverter(*sizes, **options)


def test_errors_name_the_argument() -> None:
    converter = ModalityConverter(3, 4)
    with pytest.raises(ValueError, match=r"features must have shape \(\.\.\., 3\), got \(5, 4\)"):
        converter(torch.randn(5, 4))
    with pytest.raises(TypeError, match=r"features must have a floating dtype, got torch.int64"):
        converter(torch.ones(5, 3).long())
