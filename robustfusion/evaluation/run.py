"""Evaluate a model under all conditions; each distinct input is evaluated once."""

import hashlib
import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from robustfusion._modules import evaluating
from robustfusion._optional import optional
from robustfusion._validation import check_positive
from robustfusion.disruption import Disruption, robustness_grid
from robustfusion.disruption.grid import checked_conditions
from robustfusion.evaluation._evaluator import Evaluator
from robustfusion.evaluation._sources import InputSource
from robustfusion.evaluation.data import EvaluationData
from robustfusion.evaluation.report import RobustnessReport
from robustfusion.evaluation.results import Fingerprint


def robustness_report(
    model: nn.Module,
    data: EvaluationData,
    conditions: Sequence[Disruption] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    batch_size: int = 256,
    progress: bool = False,
) -> RobustnessReport:
    """Measure a model over the robustness grid of the paper's section 4.1.

    The grid is: clean; every modality corrupted (C), missing (D) or either (C+D); one random
    modality of a share of the samples, at each rate. The model is called as
    `out = model(inputs, available)`; its output is a tensor of logits `(B, C)`, or has them as
    `out.logits` or `out["logits"]`. If the output also has `log_quality`, `weights` or
    `recovered`, or the head a method `p_values`, the report shows how these behave.

    A model that predicts several labels or numbers says so by an attribute `task`, "multilabel" or
    "regression", as the heads do, and the labels of the data are then floating, `(N, C)`: 0, 1, or
    NaN where not known, or the numbers. Its report has other metrics, see `Scores.metrics`; a
    metric of your own goes to the report's `measure`.

    Samples are evaluated independently in evaluation mode, so a sample that is disrupted in the
    same way in two conditions is evaluated once: the whole grid costs about
    `1 + M + M * len(seeds)` passes over the data. If the model has `encode` and `head`, as
    `DRFClassifier` has, each input is also encoded once, in `1 + len(seeds)` passes. A model whose
    answer for a sample depends on the other samples of the batch, or on chance, is refused;
    `batch_size=1` evaluates it one sample at a time. The model's mode is restored afterwards, and
    no global random state changes.

    Args:
        model: An `nn.Module` that takes inputs and masks as above; inputs are moved to the device
            of its first parameter.
        data: `CachedFeatures`, `RawSamples`, or your own `EvaluationData`.
        conditions: By default `robustness_grid(data.modalities)`; clean is always measured. Their
            seeds are not used.
        seeds: Disruption seeds; scores are means over them.
        batch_size: Samples in a batch.
        progress: Show a progress bar on a terminal.

    Returns:
        The report, with 95 % intervals; see its `with_intervals` and `named`.

    Raises:
        ValueError: If the arguments or the model's output do not fit.
        TypeError: If an argument is of another type.
        ImportError: For `progress=True` without tqdm; `pip install "robustfusion[report]"`.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.disruption import CachedFeatures, FeatureCorruption
        >>> from robustfusion.evaluation import robustness_report
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
    # All arguments are checked before the work begins.
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
    source = InputSource(model, data, batch_size)
    with evaluating(model), torch.no_grad():
        evaluator = Evaluator(source)
        for condition, seed in _with_progress(runs, progress):
            if seed != evaluator.seed:
                evaluator.begin(seed, [c for c, s in runs if s == seed])
            evaluator.run(condition)
    is_class = evaluator.task == "multiclass"
    classes = evaluator.num_classes
    labels = source.labels.astype(np.int16 if is_class else np.float32)
    class_names = data.class_names or tuple(str(c) for c in range(classes))
    if len(class_names) != classes:
        raise ValueError(f"data.class_names must name {classes} classes, got {class_names}")
    samples = repr(evaluator.ids).encode() + labels.tobytes()
    return RobustnessReport(
        name=type(model).__name__,
        modalities=data.modalities,
        class_names=class_names,
        candidates=evaluator.candidates,
        labels=labels,
        seeds=seeds,
        fingerprint=Fingerprint(
            samples=hashlib.blake2b(samples, digest_size=16).hexdigest(),
            disruptions=evaluator.digest.hexdigest(),
            inputs=source.digest(),
        ),
        answers={condition.key: evaluator.answers(condition) for condition in grid},
        log_quality=evaluator.qualities(),
        recovered=evaluator.recovered(),
        task=evaluator.task,
    )


def _with_progress(
    runs: list[tuple[Disruption, int]], progress: bool
) -> Iterable[tuple[Disruption, int]]:
    if not progress:
        return runs
    tqdm = optional("tqdm.auto", "progress=True needs tqdm", "report").tqdm
    bar: Iterable[tuple[Disruption, int]] = tqdm(
        runs, desc="robustness", unit="condition", disable=None
    )
    return bar
