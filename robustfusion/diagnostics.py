"""Check that the parts of a trained model work: scores vary, queues are filled, recovery helps."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustfusion._modules import evaluating
from robustfusion._outputs import logits_of, p_values_of, read_output
from robustfusion._recoverability import Recoverability, recoverability
from robustfusion._tree import leaves, map_leaves, tensors
from robustfusion._validation import check_available, check_positive
from robustfusion.candidates import candidate_names
from robustfusion.feature_queue import FeatureQueue

# The thresholds of the warnings are our choice, far from the numbers of a healthy model.
# A quantity with a smaller standard deviation is called constant. A Gaussian log-quality of D
# in-distribution dimensions has 1 / sqrt(2 D), which falls below 0.001 only at D = 500,000.
_CONSTANT = 1e-3
_VANISHING_SUM = 1e-2  # normalized weights sum to 1; (12) gives 1e-3 at a feature std of 14
_DOMINANT_WEIGHT = 0.9
_NEARLY_ALL = 0.99  # share of the samples
_STD_RATIO = 1.25  # largest ratio of the standard deviations of queue and data, either way
_MEAN_SHIFT = 0.5  # largest distance of their means, in standard deviations of the data
_P_RANGE = 0.3  # the middle 90 % of p-values span 0.9 if all samples are intact
_ALARM = 0.05
# Rows of a queue are copies if closer than this share of the typical distance of two rows.
_COPY_TOLERANCE = 0.01
_COPIED = 0.1  # share of the rows of a queue
_COMPARED_ROWS = 4096  # the table of all their distances takes 128 MiB

__all__ = ["Diagnosis", "Recoverability", "diagnose", "recoverability"]


class Diagnosis(NamedTuple):
    """The numbers and warnings of :func:`diagnose`; ``print`` shows both.

    Args:
        numbers: By name, see :func:`diagnose`. What cannot be computed is left out.
        warnings: In full sentences; empty if nothing looks wrong.
    """

    numbers: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """True if there are no warnings."""
        return not self.warnings

    def __str__(self) -> str:
        lines = [f"  {name:<32} {value:.4g}" for name, value in self.numbers.items()]
        lines += [f"  WARNING: {text}" for text in self.warnings] or ["  no warnings"]
        return "\n".join(["Diagnosis", *lines])


def diagnose(
    model: nn.Module,
    features: Mapping[str, Any],
    available: Mapping[str, Tensor] | None = None,
    *,
    batch_size: int = 256,
) -> Diagnosis:
    """Check that quality scores, fusion weights, queues and recovery of a model have an effect.

    A robust fusion can fail without an error: a score that is the same for every sample, a queue
    full of copies, one candidate that always wins. Run this on held-out clean samples after
    training, and read the warnings. Whatever the model's output or its queues do not show is left
    out. Afterwards the model's buffers, mode and the global random state are as before.

    The numbers are, for each modality, candidate, queue, or target and source of a recovery:

    - ``quality/image/mean``, ``std``, ``low``, ``high``: log-quality of the samples that have the
      modality; low and high are its 5 % and 95 % quantiles;
    - ``p_value/image/low``, ``high``, ``alarms``: the same quantiles of the p-values, and the
      share of p-values of at most 0.05;
    - ``weight/image+text/mean``, ``std``, ``largest``: normalized fusion weight of a candidate
      over the samples with every modality, and the share of these where it is the largest;
      ``weights/effective`` is the mean of exp(entropy) of the weights, from 1 to the number of
      candidates, and ``weights/sum`` the median of their sum;
    - ``queue/image/fill``, ``copies``, ``std_ratio``, ``mean_shift``: the share of the queue that
      holds data, the share of its rows with a near-identical twin, its standard deviation (2)
      divided by that of the features, and the distance of the two means (1) in standard deviations
      of the features;
    - ``recovery/text/image/error``, ``std_ratio``: mean squared error of the text recovered from
      the image, divided by that of predicting the mean text (1 is no better than the mean), and
      the standard deviation of the recovered features divided by that of the real ones;
    - ``prediction/largest_share``: share of the samples with the most frequent prediction.

    Args:
        model: Maps ``(features, available)`` to logits, or to an output with ``logits`` and,
            optionally, ``features``, ``log_quality``, ``weights`` and ``recovered``, as
            ``DRFHead`` does. Its queues are submodules of type ``FeatureQueue``.
        features: Clean inputs by modality: tensors (N, ...), mappings of them, or lists. For a
            model with encoders and a ``head`` these are the inputs of the encoders.
        available: Bool (N,) by modality, True where observed; ``None`` means everywhere.
        batch_size: Number of samples in one forward pass.

    Returns:
        The numbers and the warnings.

    Raises:
        ValueError: If there are fewer than 2 samples, modalities differ in their number, or
            ``available`` names others.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.diagnostics import diagnose
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> diagnosis = diagnose(head, {"image": torch.randn(20, 8), "text": torch.randn(20, 4)})
        >>> diagnosis.numbers["queue/text/fill"], diagnosis.healthy
        (0.0, False)
        >>> next(warning for warning in diagnosis.warnings if "queue of text" in warning)
        'queue of text is empty: train the model, or fill the queue, before it is used'

    Reference:
        Equations (1), (2), (12) and (13) of https://arxiv.org/abs/2511.18751
    """
    check_positive(batch_size, "batch_size")
    counts = {name: len(next(leaves(values))) for name, values in features.items()}
    samples = min(counts.values())
    if samples < max(counts.values()):
        raise ValueError(f"features must have the same number of rows, got {counts}")
    if samples < 2:
        raise ValueError(f"features must have at least 2 rows, got {samples}")
    device = next(tensors(features), torch.empty(0)).device
    masks = check_available(available, features, samples, device)
    parts = []
    with evaluating(model), torch.no_grad():
        for start in range(0, samples, batch_size):
            part = slice(start, min(start + batch_size, samples))
            batch = (map_leaves(lambda x, part=part: x[part], x) for x in (features, masks))
            parts.append(_read(model, model(*batch), part.stop - start))
    output = map_leaves(lambda *values: torch.cat(values), *parts)
    mask = {name: value.cpu() for name, value in masks.items()}
    # The queues and the recovery see the output of the encoders, if there are encoders.
    inputs = {m: x.detach().cpu() for m, x in features.items() if isinstance(x, Tensor)}
    real: dict[str, Tensor] = output["features"] or inputs

    numbers: dict[str, float] = {"samples": samples}
    warnings = [
        f"features of {name} are the same in every row: the encoder carries no information"
        for name, values in real.items()
        if values.is_floating_point() and bool((values == values[0]).all())
    ]
    if not output["logits"].isfinite().all():
        warnings.append("some logits are not finite")

    def add(prefix: str, values: dict[str, float], rules: Iterator[str]) -> None:
        defined = {name: value for name, value in values.items() if value == value}
        numbers.update({f"{prefix}/{name}": value for name, value in defined.items()})
        warnings.extend(rules)

    for name, scores in output["log_quality"].items():
        quality = _describe(scores[mask[name] & scores.isfinite()])
        p = output["p_values"].get(name, scores[:0])
        p = p[mask[name][: len(p)] & p.isfinite()]
        p_value = _describe(p) | {"alarms": float((p <= _ALARM).double().mean())}
        add(f"quality/{name}", quality, _quality_rules(name, quality, p_value))
        del p_value["mean"], p_value["std"]
        add(f"p_value/{name}", p_value, iter(()))
    if "weights" in output:
        weights = output["weights"][torch.stack(list(mask.values())).all(0)].double()
        if len(weights) > 1:
            names = candidate_names(model, weights.shape[1])
            by_candidate, overall = _weights(names, weights)
            for name, values in by_candidate.items():
                add(f"weight/{name}", values, iter(()))
            add("weights", overall, _weight_rules(by_candidate, overall))
    for name, queue in _queues(model).items():
        values = _queue(queue, real[name][mask[name]] if name in real else None)
        add(f"queue/{name}", values, _queue_rules(name, values))
    for target, sources in output["recovered"].items():
        for source, recovered in sources.items():
            if target in real and real[target].shape == recovered.shape:
                both = mask[target] & mask[source]
                values = _recovery(recovered[both].double(), real[target][both].double())
                add(f"recovery/{target}/{source}", values, _recovery_rules(target, source, values))
    predicted = output["logits"].argmax(-1).bincount(minlength=output["logits"].shape[1])
    largest = float(predicted.max()) / samples
    add("prediction", {"largest_share": largest}, _prediction_rules(predicted, largest))
    return Diagnosis(numbers, tuple(warnings))


def _read(model: nn.Module, out: Any, samples: int) -> dict[str, Any]:
    """Return the parts of an output on the CPU."""
    parts = {m: read_output(out, m) or {} for m in ("log_quality", "features", "recovered")}
    parts |= {"logits": logits_of(out, samples), "p_values": p_values_of(model, out)}
    weights = read_output(out, "weights")
    if weights is not None:
        parts["weights"] = weights
    plain: dict[str, Any] = map_leaves(lambda x: x.detach().float().cpu(), parts)
    return plain


def _describe(values: Tensor) -> dict[str, float]:
    """Return mean, standard deviation and the 5 % and 95 % quantiles."""
    if len(values) < 2:
        return dict.fromkeys(("mean", "std", "low", "high"), float("nan"))
    values = values.double()
    low, high = values.quantile(values.new_tensor([0.05, 0.95])).tolist()
    return {"mean": float(values.mean()), "std": float(values.std()), "low": low, "high": high}


def _quality_rules(
    name: str, quality: dict[str, float], p_value: dict[str, float]
) -> Iterator[str]:
    low, high, alarms = p_value["low"], p_value["high"], p_value["alarms"]
    if quality["std"] < _CONSTANT:
        yield (
            f"quality of {name} is constant (std {quality['std']:.1g}): it cannot tell intact "
            "samples from damaged ones"
        )
    elif high - low < _P_RANGE:
        yield (
            f"quality of {name} is nearly constant: 90 % of the p-values lie in {low:.2f} to "
            f"{high:.2f}, those of intact samples in 0.05 to 0.95"
        )
    if alarms > 3 * _ALARM:  # by chance alone, so many alarms are next to impossible
        yield (
            f"{alarms:.0%} of the samples of {name} raise an alarm at {_ALARM:g}: they are not "
            "intact, or the model was never calibrated on samples it has not seen"
        )


def _weights(
    names: tuple[str, ...], weights: Tensor
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return the numbers of each candidate, and those of all weights (N, K) together."""
    total = weights.sum(-1)
    share = weights / total.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    entropy = -torch.special.xlogy(share, share).sum(-1)
    largest = torch.nn.functional.one_hot(share.argmax(-1), share.shape[1]).double()
    columns = torch.stack([share.mean(0), share.std(0), largest.mean(0)], dim=1).tolist()
    by_candidate = {
        name: dict(zip(("mean", "std", "largest"), values, strict=True))
        for name, values in zip(names, columns, strict=True)
    }
    overall = {"effective": float(entropy.exp().mean()), "sum": float(total.median())}
    return by_candidate, overall


def _weight_rules(
    by_candidate: dict[str, dict[str, float]], overall: dict[str, float]
) -> Iterator[str]:
    several = len(by_candidate) > 1
    if several and max(values["std"] for values in by_candidate.values()) < _CONSTANT:
        yield "fusion weights are the same for every row: the quality has no effect on them"
    for name, values in by_candidate.items():
        if several and values["largest"] > _NEARLY_ALL and values["mean"] > _DOMINANT_WEIGHT:
            yield (
                f"candidate {name} always wins: mean weight {values['mean']:.2f}, largest in "
                f"{values['largest']:.0%} of the samples"
            )
    if overall["sum"] < _VANISHING_SUM:
        yield (
            f"fusion weights vanish (median sum {overall['sum']:.1g}): the classifier sees a "
            "vector near zero; normalize them"
        )


def _queues(model: nn.Module) -> dict[str, Any]:
    """Return the queues that a head names by modality, else every queue by its attribute name."""
    for module in model.modules():
        queues = getattr(module, "queues", None)
        if isinstance(queues, Mapping | nn.ModuleDict):
            return dict(queues.items())
    return {
        path.rpartition(".")[2]: module
        for path, module in model.named_modules()
        if isinstance(module, FeatureQueue)
    }


def _queue(queue: FeatureQueue, data: Tensor | None) -> dict[str, float]:
    stored = queue.storage[: len(queue)].detach().cpu().double()
    values = {"fill": len(queue) / len(queue.storage), "copies": _copies(stored)}
    comparable = data is not None and data.shape[1:] == stored.shape[1:]
    if data is None or not comparable or min(len(data), len(stored)) < 2:
        return values
    data = data.double()
    if (std := _std(data)) > 0:
        values["std_ratio"] = _std(stored) / std
        values["mean_shift"] = float((stored.mean(0) - data.mean(0)).norm()) / std
    return values


def _copies(stored: Tensor) -> float:
    """Return the share of rows with a near-identical twin; many rows are sampled evenly."""
    if len(stored) < 2:
        return float("nan")
    std = _std(stored)
    if std == 0:
        return 1.0
    step = -(-len(stored) // _COMPARED_ROWS)
    rows = (stored - stored.mean(0))[::step]
    # Two independent rows are sqrt(2) standard deviations apart on average. In float64 the
    # difference of squares is precise enough to find near-identical rows.
    lengths = rows.square().sum(1)
    distance = (lengths[:, None] + lengths - 2 * rows @ rows.T).fill_diagonal_(torch.inf)
    return float((distance.amin(1) <= 2 * (_COPY_TOLERANCE * std) ** 2).double().mean())


def _queue_rules(name: str, values: dict[str, float]) -> Iterator[str]:
    std_ratio, mean_shift = values.get("std_ratio", 1.0), values.get("mean_shift", 0.0)
    if values["fill"] == 0:
        yield (f"queue of {name} is empty: train the model, or fill the queue, before it is used")
    if values["copies"] > _COPIED:
        yield (
            f"queue of {name} holds copies: {values['copies']:.0%} of its rows have a "
            "near-identical twin, as when it has more slots than there are training samples; a "
            "score that counts a row's own copies as its neighbors is blind"
        )
    if not 1 / _STD_RATIO <= std_ratio <= _STD_RATIO:
        yield (
            f"queue of {name} has {std_ratio:.2f} of the standard deviation of the data: its rows "
            f"are {'collapsed' if std_ratio < 1 else 'stale or scattered'}"
        )
    if mean_shift > _MEAN_SHIFT:
        yield (
            f"queue of {name} is off by {mean_shift:.2f} standard deviations of the data: its "
            "rows are stale, or the data differ from those of the training"
        )


def _std(rows: Tensor) -> float:
    """Return the standard deviation (2)."""
    return float((rows - rows.mean(0)).square().sum(-1).mean().sqrt())


def _recovery(recovered: Tensor, real: Tensor) -> dict[str, float]:
    if len(real) < 2 or (std := _std(real)) == 0:
        return {}
    error = float((recovered - real).square().sum(-1).mean())
    return {"error": error / std**2, "std_ratio": _std(recovered) / std}


def _recovery_rules(target: str, source: str, values: dict[str, float]) -> Iterator[str]:
    if (error := values.get("error", 0.0)) >= 1:
        yield (
            f"{target} recovered from {source} is no better than the mean of {target} (error "
            f"{error:.2f} of the mean's)"
        )


def _prediction_rules(predicted: Tensor, largest_share: float) -> Iterator[str]:
    never = (predicted == 0).nonzero()[:, 0].tolist()
    if largest_share > _NEARLY_ALL:
        yield f"{largest_share:.0%} of the samples are predicted as one class"
    elif never and int(predicted.sum()) >= 20 * (len(never) + 1):  # in fewer it may be chance
        yield f"class {', '.join(map(str, never))} is predicted for no sample"
