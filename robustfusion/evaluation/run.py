"""Run a model over the conditions. Each distinct input is evaluated once."""

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustfusion._modules import evaluating
from robustfusion._validation import check_positive
from robustfusion.disruption import Condition, canonical_id, robustness_grid
from robustfusion.disruption.grid import checked_conditions
from robustfusion.disruption.protocol import draw, plan_from
from robustfusion.evaluation._forward import Answers, Forward, mean_weights
from robustfusion.evaluation._sources import (
    CORRUPTED,
    DISCARDED,
    INTACT,
    PARTIAL,
    States,
    Streamed,
    make_source,
)
from robustfusion.evaluation.data import EvaluationData
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.results import CELL, Cell, Fingerprint, Quality


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
    classes, labels = forward.num_classes, source.labels.astype(np.int16)
    class_names = data.class_names or tuple(str(c) for c in range(classes))
    if len(class_names) != classes:
        raise ValueError(f"data.class_names must name {classes} classes, got {class_names}")
    samples = repr(measuring.ids).encode() + labels.tobytes()
    return RobustnessReport(
        name=type(model).__name__,
        modalities=data.modalities,
        class_names=class_names,
        candidates=forward.candidates,
        labels=labels,
        seeds=seeds,
        fingerprint=Fingerprint(
            samples=hashlib.blake2b(samples, digest_size=16).hexdigest(),
            disruptions=measuring.digest.hexdigest(),
            inputs=source.digest(),
        ),
        measured=tuple(measuring.cell(condition) for condition in grid),
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
    """Collects the conditions; keeps the answers to distinct inputs while they are needed."""

    def __init__(self, source: Streamed, forward: Forward, clean: Answers, reuse: bool) -> None:
        self.source, self.forward, self.clean, self.reuse = source, forward, clean, reuse
        self.names = source.data.modalities
        # An id of numpy prints in another way than the same id of Python.
        self.ids = tuple(canonical_id(sample_id) for sample_id in source.data.ids)
        # By what is done to each modality of a row.
        self.known: dict[tuple[int, ...], Answers] = {(INTACT,) * len(self.names): clean}
        self.seed: int | None = None
        self.states: Mapping[Condition, States] = {}
        self.runs: dict[Condition, list[dict[str, Any]]] = {}
        self.corrupted: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.names}
        self.digest = hashlib.blake2b(digest_size=16)

    def begin(self, seed: int, conditions: Sequence[Condition], *, first: bool) -> None:
        """Plan all conditions of a seed, so that each input is read once for all of them."""
        if self.source.data.fresh_corruption:
            stale = {CORRUPTED, PARTIAL}
            self.known = {key: made for key, made in self.known.items() if not stale & {*key}}
        self.seed = seed
        draws = draw(seed, self.ids, self.names)
        columns = zip(self.names, self.source.observed.T, strict=True)
        observed = {name: torch.from_numpy(column.copy()) for name, column in columns}
        self.states = {}
        for condition in conditions:
            plan = plan_from(condition.disruption(self.names, seed), draws, observed)
            states = np.full(self.source.observed.shape, INTACT, dtype=np.int8)
            for column, name in enumerate(self.names):
                corrupted = PARTIAL if condition.setting == "P" else CORRUPTED
                states[plan.corrupted[name].numpy(), column] = corrupted
                states[plan.discarded[name].numpy(), column] = DISCARDED
            self.states[condition] = states
        self.source.prepare(seed, self.states, first=first)

    def run(self, condition: Condition) -> None:
        """Evaluate one condition under the seed."""
        states = self.states[condition]
        self.digest.update(f"{condition.key} {self.seed} ".encode() + states.tobytes())
        answers = self._answers(condition, states)
        if condition.setting == "C" and condition.modality is not None:
            column = self.names.index(condition.modality)
            self.corrupted[condition.modality].append(answers["quality"][:, column].copy())
        done = [np.isin(states, kind).sum(0) for kind in ((CORRUPTED, PARTIAL), DISCARDED)]
        run: dict[str, Any] = {name: answers[name].copy() for name in CELL if name != "counts"}
        run |= {"seed": self.seed, "counts": np.stack(done, -1), "weights": mean_weights(answers)}
        self.runs.setdefault(condition, []).append(run)

    def _answers(self, condition: Condition, states: States) -> Answers:
        known = self.known if self.reuse else {}
        ways, way = np.unique(states, axis=0, return_inverse=True)
        places = {tuple(key): np.flatnonzero(way == k) for k, key in enumerate(ways.tolist())}
        answers = np.zeros_like(self.clean)
        for key, at in places.items():
            if key in known:
                answers[at] = known[key][at]
        rows = np.flatnonzero(~answers["known"])
        if len(rows):
            disruption = condition.disruption(self.names, self.seed or 0)
            self.forward.disrupted(disruption, states, rows, answers)
        for key, at in places.items():
            known.setdefault(key, np.zeros_like(self.clean))[at] = answers[at]
        return answers

    def cell(self, condition: Condition) -> Cell:
        """The per-sample results of one condition under its seeds."""
        runs = self.runs[condition]
        weights = [run["weights"] for run in runs if run["weights"] is not None]
        parts: dict[str, Any] = {name: np.stack([run[name] for run in runs]) for name in CELL}
        return Cell(
            condition,
            seeds=tuple(run["seed"] for run in runs),
            weights=tuple(np.mean(weights, axis=0).tolist()) if weights else None,
            **parts,
        )

    def qualities(self) -> dict[str, Quality]:
        """Clean scores, and those of the rows whose modality was corrupted throughout."""
        found = {}
        for column, name in enumerate(self.names):
            clean, corrupted = self.clean["quality"][:, column].copy(), self.corrupted[name]
            if not np.isnan(clean).all():
                none = np.empty((0, len(clean)), np.float32)
                found[name] = Quality(clean, np.stack(corrupted) if corrupted else none)
        return found
