"""Run a model over the conditions. Each distinct input is evaluated once."""

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustfusion._modules import evaluating
from robustfusion._validation import check_positive
from robustfusion.disruption import Condition, canonical_id, robustness_grid
from robustfusion.disruption.grid import checked_conditions
from robustfusion.disruption.protocol import Draws, draw, plan_from
from robustfusion.evaluation._forward import Forward, RowResults
from robustfusion.evaluation._sources import (
    CORRUPTED,
    DISCARDED,
    PARTIAL,
    States,
    Streamed,
    make_source,
)
from robustfusion.evaluation.data import EvaluationData
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.results import Cell, Fingerprint, Quality


def robustness_report(
    model: nn.Module,
    data: EvaluationData,
    conditions: Sequence[Condition] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    batch_size: int = 256,
    reuse: bool = True,
    progress: bool = False,
) -> RobustnessReport:
    """Measure a model over the robustness grid of the paper's section 4.1.

    Clean; every modality corrupted (C), discarded (D) or either (C+D); one random modality of a
    share of the samples, at each rate. Any model will do whose `out = model(inputs, available)` is
    a tensor of logits `(B, C)`, or has them as `out.logits` or `out["logits"]`. Where the output
    also has `log_quality`, `weights` or `recovered`, or the head a method `p_values`, the report
    says how these behave.

    Rows are scored on their own in evaluation mode, so that a row disrupted in the same way in two
    conditions is given to the model once: the whole grid costs about `1 + M + M * len(seeds)`
    passes over the data. Of a model with `encode` and `head`, as `DRFClassifier`, each input of a
    modality is encoded once: `1 + len(seeds)` passes, in which a sample is read `1 + len(seeds)`
    times. A model whose answer for a row depends on the other rows of the batch, or on chance, is
    found out and refused; `reuse=False` then evaluates every condition in full. The model's mode
    is restored afterwards; no global random state is touched.

    Args:
        model: any `nn.Module` with the head contract; inputs are moved to its first parameter.
        data: `CachedFeatures`, `RawSamples`, or your own `EvaluationData`.
        conditions: by default `robustness_grid(data.modalities)`; clean is always measured.
        seeds: disruption seeds; scores are means over them.
        batch_size: rows at a time.
        reuse: give each distinct input to the model once.
        progress: show a progress bar, in a terminal.

    Returns:
        the report, with 95 % intervals; `with_intervals` and `named` make others of it.

    Raises:
        ValueError: if the arguments or the model's output do not fit.
        ImportError: for `progress=True` without tqdm; `pip install "robustfusion[report]"`.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.disruption import FeatureCorruption
        >>> from robustfusion.evaluation import CachedFeatures, robustness_report
        >>> features = {"image": torch.randn(40, 8), "text": torch.randn(40, 4)}
        >>> noise = FeatureCorruption(kind="noise")
        >>> data = CachedFeatures(
        ...     features, torch.arange(40) % 3, corrupted={"image": noise, "text": noise}
        ... )
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> report = robustness_report(head, data, seeds=(0, 1)).with_intervals(replicates=100)
        >>> report["fixed/image/C"].accuracy.low <= report["fixed/image/C"].accuracy.value
        True

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751; intervals after Efron and Tibshirani, "An
        Introduction to the Bootstrap", 1993.
    """
    # Whatever is wrong is told before the grid is run, not after.
    seeds = tuple(operator.index(seed) for seed in seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different integers, got {seeds}")
    check_positive(batch_size, "batch_size")
    if not len(data.ids):
        raise ValueError("data must hold at least one sample")
    if conditions is None:
        conditions = robustness_grid(data.modalities)
    grid = checked_conditions(conditions, data.modalities)
    runs = [(c, s) for s in seeds for c in grid if c.is_seeded or s == seeds[0]]
    source = make_source(model, data, batch_size, reuse)
    forward = Forward(source)
    with evaluating(model), torch.no_grad():
        measuring = _Measuring(source, forward, forward.clean(check_rows=reuse), reuse)
        for condition, seed in _shown(runs, progress):
            if seed != measuring.seed:
                measuring.begin(seed, [c for c, s in runs if s == seed], first=seed == seeds[0])
            measuring.run(condition)
    classes = forward.num_classes
    class_names = data.class_names or tuple(str(c) for c in range(classes))
    if len(class_names) != classes:
        raise ValueError(f"data.class_names must name {classes} classes, got {class_names}")
    # An id of numpy prints in another way than the same id of Python.
    ids = repr(tuple(canonical_id(sample_id) for sample_id in data.ids)).encode()
    return RobustnessReport(
        name=type(model).__name__,
        modalities=data.modalities,
        class_names=class_names,
        candidates=forward.candidates,
        labels=source.labels,
        seeds=seeds,
        fingerprint=Fingerprint(
            samples=hashlib.blake2b(ids + source.labels.tobytes(), digest_size=16).hexdigest(),
            disruptions=measuring.digest.hexdigest(),
            inputs=source.digest.hexdigest(),
        ),
        measured=measuring.cells(grid),
        scored=measuring.qualities(),
        recovered=forward.recovered(),
    )


def _shown(runs: list[tuple[Condition, int]], progress: bool) -> Iterable[tuple[Condition, int]]:
    if not progress:
        return runs
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            'progress=True needs tqdm: pip install "robustfusion[report]"'
        ) from error
    shown: Iterable[tuple[Condition, int]] = tqdm(
        runs, desc="robustness", unit="condition", disable=None
    )
    return shown


class _Measuring:
    """Collects the conditions; keeps the results of distinct inputs while they are needed."""

    def __init__(self, source: Streamed, forward: Forward, clean: RowResults, reuse: bool) -> None:
        self.source, self.forward, self.clean, self.reuse = source, forward, clean, reuse
        self.names = source.data.modalities
        self.known: dict[int, RowResults] = {0: clean}
        self.seed: int | None = None
        self.states: Mapping[Condition, States] = {}
        self.runs: dict[Condition, list[Cell]] = {}
        self.corrupted: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.names}
        self.digest = hashlib.blake2b(digest_size=16)

    def begin(self, seed: int, conditions: Sequence[Condition], *, first: bool) -> None:
        """Plan all conditions of a seed, so that each input is read once for all of them."""
        if self.source.data.fresh_corruption:
            digits = {key: self._digits(key) for key in self.known}
            self.known = {
                k: v for k, v in self.known.items() if not {CORRUPTED, PARTIAL} & digits[k]
            }
        self.seed = seed
        ids = tuple(canonical_id(sample_id) for sample_id in self.source.data.ids)
        draws = draw(seed, ids, self.names)
        self.states = {c: self._plan(c, seed, draws) for c in conditions}
        self.source.prepare(seed, self.states, first=first)

    def _plan(self, condition: Condition, seed: int, draws: Draws) -> States:
        """What is done to each modality of each row, (N, M)."""
        observed = {
            name: torch.from_numpy(self.source.observed[:, column].copy())
            for column, name in enumerate(self.names)
        }
        plan = plan_from(condition.disruption(self.names, seed), draws, observed)
        states = np.zeros(self.source.observed.shape, dtype=np.int8)
        for column, name in enumerate(self.names):
            corrupted = PARTIAL if condition.setting == "P" else CORRUPTED
            states[plan.corrupted[name].numpy(), column] = corrupted
            states[plan.discarded[name].numpy(), column] = DISCARDED
        return states

    def _digits(self, key: int) -> set[int]:
        return {key // 4**m % 4 for m in range(len(self.names))}

    def run(self, condition: Condition) -> None:
        """Evaluate one condition under the seed."""
        assert self.seed is not None
        states = self.states[condition]
        self.digest.update(f"{condition.key} {self.seed} ".encode() + states.tobytes())
        # A number for each way to disrupt a row, 0 for not at all.
        keys = states.astype(np.int64) @ (4 ** np.arange(states.shape[1]))
        results = self._results(condition, states, keys)
        done = [(states == s).sum(0) for s in (CORRUPTED, DISCARDED)]
        done[0] += (states == PARTIAL).sum(0)
        if condition.setting == "C" and condition.modality is not None:
            column = self.names.index(condition.modality)
            self.corrupted[condition.modality].append(results.quality[:, column].copy())
        one = Cell(
            condition=condition,
            seeds=(self.seed,),
            predictions=results.predictions[None],
            confidence=results.confidence[None],
            log_likelihood=results.log_likelihood[None],
            p_values=results.p_values[None],
            counts=np.stack(done, axis=-1).astype(np.int64)[None],
            weights=results.mean_weights(),
        )
        self.runs.setdefault(condition, []).append(one)

    def _results(
        self, condition: Condition, states: States, keys: NDArray[np.int64]
    ) -> RowResults:
        known = self.known if self.reuse else {}
        places = {int(key): np.flatnonzero(keys == key) for key in np.unique(keys)}
        missing = [
            at if key not in known else at[~known[key].known[at]] for key, at in places.items()
        ]
        rows = np.sort(np.concatenate(missing))
        results = RowResults.empty_like(self.clean)
        if len(rows):
            disruption = condition.disruption(self.names, self.seed or 0)
            self.forward.disrupted(disruption, states, rows, results)
        for key, at in places.items():
            store = known.setdefault(key, RowResults.empty_like(self.clean))
            store.copy_rows(results, at[results.known[at]])
            results.copy_rows(store, at)
        return results

    def cells(self, grid: Sequence[Condition]) -> tuple[Cell, ...]:
        """The per-sample results, condition by condition."""
        return tuple(_joined(self.runs[condition]) for condition in grid)

    def qualities(self) -> dict[str, Quality]:
        """Clean scores, and those of the rows whose modality was corrupted throughout."""
        found = {}
        for column, name in enumerate(self.names):
            clean, corrupted = self.clean.quality[:, column], self.corrupted[name]
            if not np.isnan(clean).all():
                none = np.empty((0, len(clean)), np.float32)
                found[name] = Quality(clean, np.stack(corrupted) if corrupted else none)
        return found


def _joined(seeds: Sequence[Cell]) -> Cell:
    """One condition under several seeds."""
    fields = ("predictions", "confidence", "log_likelihood", "p_values", "counts")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(cell, name) for cell in seeds]) for name in fields
    }
    weights = [cell.weights for cell in seeds if cell.weights is not None]
    return replace(
        seeds[0],
        seeds=tuple(seed for cell in seeds for seed in cell.seeds),
        weights=tuple(np.mean(weights, axis=0).tolist()) if weights else None,
        **joined,
    )
