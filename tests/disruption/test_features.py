"""Corruption of feature vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_inputs import generator

from robustfusion.disruption import (
    FeatureCorruption,
)
from robustfusion.disruption._draws import count_of

FEATURE_KINDS: tuple[Any, ...] = ("mask", "noise", "shuffle", "scale")


@pytest.mark.parametrize("kind", FEATURE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_keep_type_shape_and_input(kind: Any, dtype: torch.dtype) -> None:
    source = torch.linspace(-2, 3, 24).to(dtype)
    for features in (source, source.reshape(2, 12)):
        before = features.clone()
        result = FeatureCorruption(kind=kind)(features, generator())
        assert (result.dtype, result.shape) == (dtype, features.shape)
        assert torch.equal(features, before)
        assert not torch.equal(result, features)


@given(width=st.integers(1, 60), severity=st.floats(0, 1), name=st.integers(0, 9))
@settings(deadline=None)
def test_features_mask_and_shuffle_touch_their_share(
    width: int, severity: float, name: int
) -> None:
    features, count = torch.arange(1.0, width + 1), count_of(severity, width)
    masked = FeatureCorruption(kind="mask", severity=severity)(features, generator(name))
    assert int((masked == 0).sum()) == count
    assert torch.equal(masked[masked != 0], features[masked != 0])
    shuffled = FeatureCorruption(kind="shuffle", severity=severity)(features, generator(name))
    assert torch.equal(shuffled.sort().values, features)
    assert int((shuffled != features).sum()) <= count


@pytest.mark.parametrize("kind", FEATURE_KINDS)
def test_feature_severity_is_monotone(kind: Any) -> None:
    features = torch.linspace(-1, 1, 500).tan()
    errors = [
        float((FeatureCorruption(kind=kind, severity=s)(features, generator()) - features).norm())
        for s in (0.0, 0.1, 0.4, 1.0)
    ]
    assert errors == sorted(errors)
    assert errors[0] == 0 < errors[1]


def test_feature_noise_scales_with_the_vector() -> None:
    features = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 7 + 100
    result = FeatureCorruption(kind="noise", severity=0.5)(features, generator())
    assert float((result - features).std()) == pytest.approx(7, rel=0.05)


def test_rows_do_not_depend_on_the_batch() -> None:
    features, corrupt = torch.arange(60.0).reshape(6, 10), FeatureCorruption()
    ids = list("abcdef")
    whole = corrupt.rows(features, ids, seed=1, modality="audio")
    order = [4, 1, 5]
    some = corrupt.rows(features[order], [ids[i] for i in order], seed=1, modality="audio")
    assert torch.equal(some, whole[order])
    equal_rows = corrupt.rows(torch.arange(10.0).expand(6, 10), ids, seed=1, modality="audio")
    assert len({tuple(row.tolist()) for row in equal_rows}) == 6
    assert corrupt.rows(features[:0], [], seed=1, modality="audio").shape == (0, 10)
    with pytest.raises(ValueError, match=r'features\["audio"\] must have shape \(6, ..., D\)'):
        corrupt.rows(features[0], ids, seed=1, modality="audio")


@pytest.mark.parametrize("severity", [0.0, 0.3, 1.0])
def test_mean_swapped_and_scale_by_hand(severity: float) -> None:
    features, other = torch.arange(1.0, 11), torch.full((10,), -7.0)
    mean = FeatureCorruption(kind="mean", severity=severity)(features, generator(), other)
    torch.testing.assert_close(mean, (1 - severity) * features + severity * other)
    swapped = FeatureCorruption(kind="swapped", severity=severity)(features, generator(), other)
    assert int((swapped == -7).sum()) == count_of(severity, 10)
    assert torch.equal(swapped[swapped != -7], features[swapped != -7])
    gains = set()
    for i in range(20):
        result = FeatureCorruption(kind="scale", severity=severity)(features, generator(i))
        gains.add(round(float((result / features).mean()), 4))
    up, down = round(10**severity, 4), round(10**-severity, 4)
    assert gains == {up, down}
    kind: Any
    for kind in ("mean", "swapped"):
        with pytest.raises(ValueError, match=rf'kind="{kind}" needs other.*\(10,\), got \(3,\)'):
            FeatureCorruption(kind=kind)(features, generator(), other[:3])


def test_wrong_features_are_named() -> None:
    with pytest.raises(TypeError, match=r"features must be a floating tensor, got torch\.int64"):
        FeatureCorruption()(torch.arange(3), generator())
    with pytest.raises(ValueError, match="features must have shape"):
        FeatureCorruption()(torch.tensor(1.0), generator())
