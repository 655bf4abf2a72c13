"""Draws that depend on seed, id and purpose alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_inputs import BOTH, generator

from robustfusion import DRFHead
from robustfusion.disruption import (
    CachedFeatures,
    Disruption,
    _draws,
    sample_generator,
)
from robustfusion.disruption._draws import choose, count_of, uniforms
from robustfusion.evaluation import robustness_report

GOLDEN_UNIFORMS = [0.14970534982177042, 0.5444378643502861]
GOLDEN_RAW = 17660806670476821973


def test_draws_have_not_changed() -> None:
    # A published number rests on these: a change of them is a breaking change.
    assert uniforms(0, ["post-1", 7], "sample")[:, 0].tolist() == GOLDEN_UNIFORMS
    first = sample_generator(3, "post-1", "image").bit_generator.random_raw()
    assert first == GOLDEN_RAW


def test_draws_are_uniform_and_not_correlated_between_purposes_seeds_and_ids() -> None:
    ids = range(20_000)
    columns = np.stack(
        [
            uniforms(0, ids, "sample")[:, 0],
            uniforms(1, ids, "sample")[:, 0],
            uniforms(0, ids, "plan:image")[:, 0],
            uniforms(0, map(str, ids), "sample")[:, 0],
            np.array([sample_generator(0, i, "image").random() for i in ids]),
            np.array([sample_generator(0, i, "text").random() for i in ids]),
        ]
    )
    assert np.abs(columns.mean(axis=1) - 0.5).max() < 0.02
    assert np.abs(np.sort(columns, axis=1) - np.linspace(0, 1, 20_000)).max() < 0.015
    assert np.abs(np.corrcoef(columns) - np.eye(6)).max() < 0.035  # five standard errors


def test_ids_cannot_imitate_each_other() -> None:
    rows = {
        draw
        for name in ("1", 1, "1 sample", "s 1", " 1", "1 ")
        for draw in uniforms(0, [name], "sample")[:, 0]
    }
    assert len(rows) == 6


def test_numpy_and_tensor_integers_are_the_same_id() -> None:
    expected = uniforms(0, [17], "sample")
    assert np.array_equal(expected, uniforms(0, [np.int64(17)], "sample"))
    assert np.array_equal(expected, uniforms(0, [torch.tensor(17)], "sample"))


@pytest.mark.parametrize("bad", [True, 1.5, None, ("a",), torch.tensor([1]), torch.tensor(1.0)])
def test_other_ids_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="sample id must be a str or an int"):
        Disruption(BOTH).plan([bad])


@given(total=st.integers(0, 400), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_choose_takes_exactly_the_count_and_smaller_counts_are_subsets(
    total: int, share: float, seed: int
) -> None:
    count = count_of(share, total)
    chosen = choose(total, count, generator(seed))
    assert chosen.sum() == count
    fewer = choose(total, count // 2, generator(seed))
    assert not (fewer & ~chosen).any()


def test_choose_settles_ties() -> None:
    class Ties:
        class bit_generator:
            @staticmethod
            def random_raw(count: int) -> NDArray[np.uint64]:
                return np.zeros(count, dtype=np.uint64)

    assert choose(9, 4, Ties()).sum() == 4  # type: ignore[arg-type]


def test_choose_reaches_every_place_equally() -> None:
    hits = sum(choose(10, 3, generator(i)).astype(int) for i in range(3000))
    assert np.abs(np.asarray(hits) / 3000 - 0.3).max() < 0.04


def test_a_report_makes_each_digest_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    digest = _draws._digest

    def noted(*arguments: Any) -> bytes:
        made.append(arguments)
        return digest(*arguments)

    monkeypatch.setattr(_draws, "_digest", noted)
    features = {name: torch.arange(160.0).view(40, 4) for name in BOTH}
    corrupted = {name: torch.stack([-x, 2 * x]) for name, x in features.items()}
    data = CachedFeatures(features, torch.arange(40) % 3, corrupted=corrupted)
    with torch.random.fork_rng():
        head = DRFHead(dict.fromkeys(BOTH, 4), 3)
    robustness_report(head, data, seeds=range(2))
    # For each seed and sample one of the sample, and of each modality one of plan and of content.
    assert len(made) == len(set(made)) == 2 * 40 * (1 + 2 * len(BOTH))
