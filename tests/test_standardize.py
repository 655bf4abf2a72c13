"""Standardize against plain moments: fitted, following in training, and what a mask hides."""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from robustfusion import DRFClassifier, PaperDRFHead, Standardize
from robustfusion.functional import Gaussian, fit_gaussian, gaussian_log_prob


def samples(n: int = 300, dim: int = 5) -> torch.Tensor:
    return 14 + torch.arange(1.0, dim + 1) * torch.randn(n, dim)


@pytest.mark.parametrize("spread", [1.0, 0.4])
def test_diag_gives_each_coordinate_the_spread(spread: float) -> None:
    x = samples()
    z = Standardize(5, target_std=spread).fit(x).eval()(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    # A hundredth of the mean deviation is added, for coordinates that hardly vary.
    deviation = x.std(0, unbiased=False)
    expected = spread * deviation / (deviation + 0.01 * deviation.mean())
    torch.testing.assert_close(z.std(0, unbiased=False), expected, rtol=1e-4, atol=1e-4)


def test_spherical_multiplies_by_one_number_so_that_the_paper_s_sigma_is_the_spread() -> None:
    x = samples()
    z = Standardize(5, covariance_type="spherical", target_std=0.4).fit(x).eval()(x)
    assert fit_gaussian(z).scale.item() == pytest.approx(0.4, rel=1e-4)
    ratio = z / (x - x.mean(0))
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=2e-2, atol=1e-4)
    # That is what (9) wants: a density near 1 and not 1e-3.
    peak = gaussian_log_prob(torch.zeros(1, 5), Gaussian(torch.zeros(5), torch.tensor(0.4)))
    assert peak.exp().item() == pytest.approx(0.4**-1 / math.sqrt(2 * math.pi))


def test_fit_forgets_and_takes_valid_rows_alone() -> None:
    x, valid = samples(), torch.arange(300) % 3 > 0
    broken = x.where(valid[:, None], torch.nan)
    once = Standardize(5).fit(x[valid]).eval()
    again = Standardize(5).fit(1e3 * x).fit(broken, valid).eval()
    torch.testing.assert_close(again(x), once(x))


def test_it_follows_in_training_and_writes_nothing_in_evaluation() -> None:
    layer = Standardize(5, window=200)
    for batch in samples(200).split(20):  # type: ignore[no-untyped-call]
        layer(batch)
    before = [buffer.clone() for buffer in layer.buffers()]
    layer.eval()(1e3 * samples())
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))
    z = layer(samples())
    assert (z.mean(0).abs() < 0.3).all()
    assert ((z.std(0) - 1).abs() < 0.3).all()


def test_before_anything_was_seen_features_pass_as_they_are() -> None:
    x = samples()
    torch.testing.assert_close(Standardize(5).eval()(x), x)


def test_hidden_rows_leave_no_trace() -> None:
    x, here = samples(12), torch.arange(12) % 3 > 0
    results = []
    for value in (0.0, torch.nan, torch.inf, 1e6):
        layer = Standardize(5)
        rows = x.where(here[:, None], value).requires_grad_()
        out = layer(rows, here)
        out[here].sum().backward()
        assert rows.grad is not None
        assert (rows.grad[~here] == 0).all()
        assert out.isfinite().all()
        results.append([out.detach(), *layer.buffers()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_checkpointed_layer_takes_its_rows_in_once() -> None:
    layer, x = Standardize(5), samples(8).requires_grad_()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert int(layer.moments.count) == 8


def test_it_makes_the_paper_s_head_weigh_frozen_features() -> None:
    dims = {"image": 32, "text": 32}
    features = {m: 14 * torch.randn(256, d) / math.sqrt(d) + 5 for m, d in dims.items()}
    weights = {}
    for name in ("as they are", "standardized"):
        encoders: dict[str, nn.Module] = {m: nn.Identity() for m in dims}
        if name == "standardized":
            encoders = {
                m: Standardize(d, covariance_type="spherical", target_std=0.4).fit(features[m])
                for m, d in dims.items()
            }
        model = DRFClassifier(encoders, PaperDRFHead(dims, 3))
        for rows in torch.arange(256).split(32):  # type: ignore[no-untyped-call]
            out = model({m: x[rows] for m, x in features.items()})
        weights[name] = out.weights[:, 0].mean().item()
    assert weights["as they are"] < 0.01
    assert 0.1 < weights["standardized"] < 2


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r'covariance_type must be "diag" or "spherical", got'):
        Standardize(5, covariance_type="full")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target_std must be positive, got 0"):
        Standardize(5, target_std=0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        Standardize(5, window=0)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 5\), got \(3, 4\)"):
        Standardize(5)(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"features must have shape \(B, 5\), got \(3, 4\)"):
        Standardize(5).fit(torch.ones(3, 4))
    with pytest.raises(TypeError, match=r"available must have dtype torch.bool"):
        Standardize(5).fit(torch.ones(3, 5), torch.ones(3))
    with pytest.raises(ValueError, match=r"available must have shape \(3,\), got \(2,\)"):
        Standardize(5)(torch.ones(3, 5), torch.ones(2, dtype=torch.bool))


def test_what_was_fitted_stays_in_training_mode() -> None:
    torch.manual_seed(0)
    x = 14 + 3 * torch.randn(500, 6)
    scale = Standardize(6, covariance_type="spherical", target_std=0.4).fit(x).train()
    expected = scale(x)
    for _ in range(20):  # placeholders of missing rows, which its caller does not mask
        scale(torch.where(torch.rand(500, 1) < 0.3, 0.0, x))
    torch.testing.assert_close(scale(x), expected)
    again = Standardize(6, covariance_type="spherical", target_std=0.4)
    again.load_state_dict(scale.state_dict())
    again(torch.zeros(500, 6))
    torch.testing.assert_close(again(x), expected)
    scale.reset()
    scale(x + 100)
    torch.testing.assert_close(scale(x + 100).mean(0), torch.zeros(6), atol=1e-3, rtol=0)


def test_rows_of_nan_are_missing_in_a_fit() -> None:
    x = torch.randn(50, 4)
    x[::5] = torch.nan
    kept = ~x.isnan().any(1)
    torch.testing.assert_close(
        Standardize(4).fit(x)(x[kept]), Standardize(4).fit(x[kept])(x[kept])
    )
    with pytest.raises(ValueError, match="at least one available row without NaN, got none"):
        Standardize(4).fit(torch.full((3, 4), torch.nan))
