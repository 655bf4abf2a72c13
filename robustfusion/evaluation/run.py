"""Run a model over the conditions. Each distinct input is evaluated once."""

import hashlib
import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from robustfusion._modules import evaluating
from robustfusion._optional import optional
from robustfusion._validation import check_positive
from robustfusion.disruption import Condition, robustness_grid
from robustfusion.disruption.grid import checked_conditions
from robustfusion.evaluation._measuring import Measuring
from robustfusion.evaluation._sources import Source
from robustfusion.evaluation.data import EvaluationData
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.results import Fingerprint


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
        TypeError: if an argument is of another kind.
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
        >>> print(report.named("an untrained head").to_markdown().splitlines()[0])
        # Robustness of an untrained head

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751; intervals after Efron and Tibshirani, "An
        Introduction to the Bootstrap", 1993.
    """
    # Whatever is wrong is told before the grid is run, not after.
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if not isinstance(data, EvaluationData):
        raise TypeError(
            f"data must be CachedFeatures, RawSamples or like them, got {type(data).__name__}"
        )
    if not isinstance(seeds, Iterable):
        raise TypeError(f"seeds must be integers, one or more, got {seeds!r}")
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
    source = Source(model, data, batch_size, reuse=reuse)
    with evaluating(model), torch.no_grad():
        measuring = Measuring(source, reuse=reuse)
        for condition, seed in _shown(runs, progress):
            if seed != measuring.seed:
                measuring.begin(seed, [c for c, s in runs if s == seed])
            measuring.run(condition)
    classes, labels = measuring.num_classes, source.labels.astype(np.int16)
    class_names = data.class_names or tuple(str(c) for c in range(classes))
    if len(class_names) != classes:
        raise ValueError(f"data.class_names must name {classes} classes, got {class_names}")
    samples = repr(measuring.ids).encode() + labels.tobytes()
    return RobustnessReport(
        name=type(model).__name__,
        modalities=data.modalities,
        class_names=class_names,
        candidates=measuring.candidates,
        labels=labels,
        seeds=seeds,
        fingerprint=Fingerprint(
            samples=hashlib.blake2b(samples, digest_size=16).hexdigest(),
            disruptions=measuring.digest.hexdigest(),
            inputs=source.digest(),
        ),
        measured=tuple(measuring.cell(condition) for condition in grid),
        scored=measuring.qualities(),
        recovered=measuring.recovered(),
    )


def _shown(runs: list[tuple[Condition, int]], progress: bool) -> Iterable[tuple[Condition, int]]:
    if not progress:
        return runs
    tqdm = optional("tqdm.auto", "progress=True needs tqdm", "report").tqdm
    shown: Iterable[tuple[Condition, int]] = tqdm(
        runs, desc="robustness", unit="condition", disable=None
    )
    return shown
