"""Run a model over the grid. Each distinct input is evaluated once."""

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustfusion.disruption._draws import canonical_id
from robustfusion.evaluation._forward import CleanPass, Forward, RowResults
from robustfusion.evaluation.data import EvaluationData
from robustfusion.evaluation.grid import RATES, SETTINGS, Condition, Setting, robustness_grid
from robustfusion.evaluation.report import RobustnessReport, build_report
from robustfusion.evaluation.results import CellSamples, Context, Fingerprint, QualitySamples

# What is done to a modality of a row.
_INTACT, _CORRUPTED, _DISCARDED = 0, 1, 2


def robustness_report(
    model: nn.Module,
    data: EvaluationData,
    *,
    settings: Sequence[Setting] = SETTINGS,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    name: str | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    reuse: bool = True,
    level: float = 0.95,
    replicates: int = 1000,
    bootstrap_seed: int = 0,
    recovered_rows: int = 300,
    progress: bool = False,
    record: Mapping[str, Any] | None = None,
) -> RobustnessReport:
    """Measure a model over the robustness grid of the paper's section 4.1.

    Clean; every modality corrupted (C), discarded (D) or either (C+D); one random modality of a
    share of the samples, at each rate. Any model with the head contract will do:
    `out = model(inputs, available)` with `out.logits` `(B, C)`. Where the output also has
    `log_quality`, `weights` or `recovered` the report says how these behave.

    Rows are scored on their own in evaluation mode, so that a row disrupted in the same way in two
    conditions is given to the model once: the whole grid costs about `1 + M + M * len(seeds)`
    passes over the data. A model whose answer for a row depends on the other rows of the batch, or
    on chance, is found out and refused; `reuse=False` then evaluates every condition in full.
    The model's mode is restored afterwards; no global random state is touched.

    Args:
        model: any `nn.Module` with the head contract.
        data: `CachedFeatures`, `RawSamples`, or your own `EvaluationData`.
        settings: which of "C", "D" and "C+D".
        rates: rates of modality-random.
        seeds: disruption seeds; scores are means over them.
        name: of the model in tables and figures; by default its class.
        batch_size: rows at a time.
        device: where to move the inputs; by default where the model's parameters are.
        reuse: give each distinct input to the model once.
        level: of the confidence intervals.
        replicates: bootstrap replicates; 0 for no intervals.
        bootstrap_seed: seed of the bootstrap.
        recovered_rows: rows of which recovered features are kept for the plot; 0 for none.
        progress: show a progress bar.
        record: kept in the report as it is: command, commit, machine; what JSON can hold.

    Returns:
        the report.

    Raises:
        ValueError: if the arguments or the model's output do not fit.
        ImportError: for `progress=True` without tqdm; `pip install "robustfusion[report]"`.

    Example:
        >>> from robustfusion import DRFHead
        >>> from robustfusion.disruption import FeatureCorruption
        >>> from robustfusion.evaluation import CachedFeatures, robustness_report
        >>> features = {"image": torch.randn(40, 8), "text": torch.randn(40, 4)}
        >>> noise = FeatureCorruption(kind="noise")
        >>> data = CachedFeatures(
        ...     features, torch.arange(40) % 3, corrupted={"image": noise, "text": noise}
        ... )
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> report = robustness_report(head, data, seeds=(0, 1), replicates=100)
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
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if replicates < 0:
        raise ValueError(f"replicates must not be negative, got {replicates}")
    try:
        json.dumps(dict(record or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"record must be what JSON can hold: {error}") from error
    if not len(data.ids):
        raise ValueError("data must hold at least one sample")
    grid = robustness_grid(data.modalities, settings=settings, rates=rates)
    runs = [(c, s) for s in seeds for c in grid if c.is_seeded or s == seeds[0]]
    forward = Forward(model, data, batch_size, device)
    with forward:
        clean = forward.clean(recovered_rows, check_rows=reuse)
        collected = _Grid(data, forward, clean, reuse)
        for condition, seed in _shown(runs, progress):
            collected.run(condition, seed, first=seed == seeds[0])
    labels = clean.labels
    classes = forward.num_classes
    class_names = data.class_names or tuple(str(c) for c in range(classes))
    if len(class_names) != classes:
        raise ValueError(f"data.class_names must name {classes} classes, got {class_names}")
    context = Context(
        name=name or type(model).__name__,
        modalities=data.modalities,
        class_names=class_names,
        candidates=forward.candidates,
        labels=labels,
        seeds=seeds,
        level=level,
        replicates=replicates,
        bootstrap_seed=bootstrap_seed,
        fingerprint=Fingerprint(
            samples=_digest([_ids_of(data).encode(), labels.tobytes()]),
            disruptions=collected.plan_digest(),
            inputs=forward.input_digest(),
        ),
        record=dict(record or {}),
    )
    return build_report(context, collected.cells(), collected.qualities(), clean.recovered)


def _shown(runs: list[tuple[Condition, int]], progress: bool) -> Iterable[tuple[Condition, int]]:
    if not progress:
        return runs
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            'progress=True needs tqdm: pip install "robustfusion[report]"'
        ) from error
    shown: Iterable[tuple[Condition, int]] = tqdm(runs, desc="robustness", unit="condition")
    return shown


def _ids_of(data: EvaluationData) -> str:
    # An id of numpy prints in another way than the same id of Python.
    return repr(tuple(canonical_id(sample_id) for sample_id in data.ids))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class _Run(NamedTuple):
    """One condition under one seed, down to what a report keeps."""

    seed: int
    predictions: NDArray[np.int16]
    confidence: NDArray[np.float16]
    counts: NDArray[np.int64]
    weights: NDArray[np.float64] | None
    quality: NDArray[np.float32] | None


class _Grid:
    """Collects the conditions; keeps the results of distinct inputs while they are needed."""

    def __init__(
        self, data: EvaluationData, forward: Forward, clean: CleanPass, reuse: bool
    ) -> None:
        self.data, self.forward, self.reuse = data, forward, reuse
        self.observed: dict[str, torch.Tensor] = clean.observed
        self.labels: NDArray[np.int16] = clean.labels
        self.clean: RowResults = clean.results
        self.known: dict[int, RowResults] = {0: clean.results}
        self.seed: int | None = None
        self.runs: dict[Condition, list[_Run]] = {}
        self.digest = hashlib.blake2b(digest_size=16)

    def run(self, condition: Condition, seed: int, *, first: bool) -> None:
        """Evaluate one condition under one seed."""
        if seed != self.seed:
            self._forget_corrupted()
            self.seed = seed
        states = self._states(condition, seed)
        self.digest.update(f"{condition.key} {seed} ".encode() + states.tobytes())
        # A number for each way to disrupt a row, 0 for not at all.
        keys = states.astype(np.int64) @ (3 ** np.arange(states.shape[1]))
        hashed = first and condition.strategy == "fixed" and condition.setting == "C"
        results = self._results(condition, seed, keys, hashed)
        counts = np.stack([(states == s).sum(0) for s in (_CORRUPTED, _DISCARDED)], axis=-1)
        quality = None
        if condition.setting == "C" and condition.modality is not None:
            quality = results.quality[:, self.data.modalities.index(condition.modality)].copy()
        kept = _Run(
            int(seed),
            results.predictions,
            results.confidence,
            counts.astype(np.int64),
            results.mean_weights(),
            quality,
        )
        self.runs.setdefault(condition, []).append(kept)

    def _states(self, condition: Condition, seed: int) -> NDArray[np.int8]:
        """What is done to each modality of each row, `(N, M)`."""
        disruption = condition.disruption(self.data.modalities, seed)
        plan = disruption.plan(self.data.ids, self.observed)
        states = np.zeros((len(self.data.ids), len(self.data.modalities)), dtype=np.int8)
        for column, name in enumerate(self.data.modalities):
            states[plan.corrupted[name].numpy(), column] = _CORRUPTED
            states[plan.discarded[name].numpy(), column] = _DISCARDED
        return states

    def _results(
        self, condition: Condition, seed: int, keys: NDArray[np.int64], hashed: bool
    ) -> RowResults:
        known = self.known if self.reuse else {}
        missing = [
            row for key in np.unique(keys) for row in self._unknown(known.get(int(key)), keys, key)
        ]
        disruption = condition.disruption(self.data.modalities, seed)
        rows = np.asarray(sorted(missing), dtype=np.int64)
        results = RowResults.empty_like(self.clean)
        if len(rows):
            self.forward.rows(disruption, rows, results, hashed=hashed)
        for key in np.unique(keys):
            store = known.setdefault(int(key), RowResults.empty_like(self.clean))
            at = np.flatnonzero(keys == key)
            new = at[results.known[at]]
            store.copy_rows(results, new)
            results.copy_rows(store, at)
        return results

    @staticmethod
    def _unknown(
        store: RowResults | None, keys: NDArray[np.int64], key: np.int64
    ) -> NDArray[np.int64]:
        at = np.flatnonzero(keys == key)
        return at if store is None else at[~store.known[at]]

    def _forget_corrupted(self) -> None:
        if not self.data.fresh_corruption:
            return
        columns = len(self.data.modalities)
        digits = {key: [key // 3**m % 3 for m in range(columns)] for key in self.known}
        self.known = {k: v for k, v in self.known.items() if _CORRUPTED not in digits[k]}

    def cells(self) -> list[CellSamples]:
        """The per-sample results, condition by condition."""
        cells = []
        for condition, runs in self.runs.items():
            weights = [run.weights for run in runs if run.weights is not None]
            cells.append(
                CellSamples(
                    condition=condition,
                    seeds=tuple(run.seed for run in runs),
                    predictions=np.stack([run.predictions for run in runs]),
                    confidence=np.stack([run.confidence for run in runs]),
                    counts=np.stack([run.counts for run in runs]),
                    weights=tuple(np.mean(weights, axis=0).tolist()) if weights else None,
                )
            )
        return cells

    def qualities(self) -> dict[str, QualitySamples]:
        """Clean scores, and those of the rows whose modality was corrupted throughout."""
        found = {}
        for column, name in enumerate(self.data.modalities):
            clean = self.clean.quality[:, column]
            if np.isnan(clean).all():
                continue
            corrupted = [
                run.quality
                for condition, runs in self.runs.items()
                if condition.modality == name
                for run in runs
                if run.quality is not None
            ]
            shape = (0, len(clean))
            found[name] = QualitySamples(
                clean, np.stack(corrupted) if corrupted else np.empty(shape, np.float32)
            )
        return found

    def plan_digest(self) -> str:
        """Digest of what was done to which row."""
        return self.digest.hexdigest()
