"""The layers that several heads share."""

import torch
from torch import nn

from robustfusion._modules import StackedLinear


def test_stacked_layers_are_one_linear_layer_a_modality() -> None:
    torch.manual_seed(0)
    stacked, rows = StackedLinear(3, 5, 4), torch.randn(3, 7, 5)
    layers = [nn.Linear(5, 4) for _ in range(3)]
    for layer, weight, bias in zip(layers, stacked.weight, stacked.bias, strict=True):
        layer.load_state_dict({"weight": weight.T, "bias": bias[0]})
    expected = torch.stack([layer(part) for layer, part in zip(layers, rows, strict=True)])
    torch.testing.assert_close(stacked(rows), expected)
    assert all(p.abs().max() <= 5**-0.5 for p in stacked.parameters())  # as nn.Linear starts
