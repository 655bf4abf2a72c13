"""Is the method alive? Numbers and plain words on what a trained model does with its inputs."""

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

# Where a warning begins: ours, far from what a healthy model shows.
# Below these a quantity is called constant. A Gaussian log-quality of D in-distribution
# dimensions has the standard deviation 1 / sqrt(2 D), so 0.001 is reached at D = 500,000.
CONSTANT_QUALITY = 1e-3
CONSTANT_WEIGHT = 1e-3
VANISHING_WEIGHT = 1e-2  # of a sum that is 1 if normalized; (12) gives 1e-3 at a spread of 14
DOMINANT_WEIGHT = 0.9
ALWAYS = 0.99  # of the rows
DRIFT = 1.25  # of two spreads
SHIFT = 0.5  # of two means, in spreads
# Intact rows have p-values spread evenly over 0 to 1: the middle 90 % of them span 0.9.
NARROW_P = 0.3
ALARM = 0.05
# Two rows of a queue are near-identical below this share of the usual distance of two rows.
SAME = 0.01
COPIED = 0.1
_COMPARED_ROWS = 4096  # a table of all their distances takes 128 MiB
_NAN = float("nan")

__all__ = [
    "Diagnosis",
    "FusionHealth",
    "QualityHealth",
    "QueueHealth",
    "Recoverability",
    "RecoveryHealth",
    "diagnose",
    "recoverability",
]


class QualityHealth(NamedTuple):
    """Log-quality of one modality over the rows where it was observed; see :func:`diagnose`.

    `low` and `high` are its 5 % and 95 % quantiles, `p_low` and `p_high` those of the p-values,
    and `alarms` is the share of p-values of at most 0.05; NaN for a model without.
    """

    mean: float
    std: float
    low: float
    high: float
    p_low: float
    p_high: float
    alarms: float


class FusionHealth(NamedTuple):
    """Fusion weights over the rows with every modality observed; see :func:`diagnose`.

    For each of the K `candidates` mean and deviation of its normalized weight, and the share of
    rows that it `wins`. `effective` is the mean of exp(entropy) of these weights, 1 to K, `total`
    the median sum of the weights as they come, far below 1 if they are not normalized.
    """

    candidates: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    wins: tuple[float, ...]
    effective: float
    total: float


class QueueHealth(NamedTuple):
    """One feature queue, beside the features given; see :func:`diagnose`.

    Args:
        fill: share of its rows that hold data.
        copies: share of these with a near-identical twin in the queue, closer than 1 % of the
            usual distance of two rows; NaN for fewer than two.
        scale_ratio: spread of the queue (2) divided by the spread of the features; 1 when they
            agree, NaN where the queue holds other vectors than the features.
        mean_shift: distance of the two means (1), in units of the features' spread.
    """

    fill: float
    copies: float
    scale_ratio: float
    mean_shift: float


class RecoveryHealth(NamedTuple):
    """Recovered features of one direction, where both are there; see :func:`diagnose`.

    Args:
        error: mean squared distance, divided by that of predicting the real features' mean: 0 is
            perfect, 1 is no better than the mean.
        spread: spread of the recovered features divided by the spread of the real ones; near 0
            everything is recovered as the same vector.
    """

    error: float
    spread: float


class Diagnosis(NamedTuple):
    """What :func:`diagnose` found.

    Args:
        rows: number of rows looked at.
        quality: by modality; empty for a model without quality scores.
        fusion: the weights; None for a model without weights.
        queues: by the name of the queue's modality.
        recovery: by `(target, source)`.
        top_class: share of the rows predicted as the most frequent prediction.
        never: classes predicted for no row.
        warnings: in plain words; empty if nothing looks wrong.
    """

    rows: int
    quality: dict[str, QualityHealth]
    fusion: FusionHealth | None
    queues: dict[str, QueueHealth]
    recovery: dict[tuple[str, str], RecoveryHealth]
    top_class: float
    never: tuple[int, ...]
    warnings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to warn of."""
        return not self.warnings

    def __str__(self) -> str:
        lines = [f"Diagnosis over {self.rows} rows"]
        for name, q in self.quality.items():
            lines.append(
                f"  quality of {name}: mean {q.mean:.3g}, std {q.std:.3g}, "
                f"5-95 % [{q.low:.3g}, {q.high:.3g}]"
            )
            if q.alarms == q.alarms:
                lines.append(
                    f"    p-values: 5-95 % [{q.p_low:.2f}, {q.p_high:.2f}], {q.alarms:.0%} alarm "
                    f"at {ALARM:g}"
                )
        if (f := self.fusion) is not None:
            lines.append(
                f"  weights: {f.effective:.2f} effective candidates of {len(f.candidates)}, "
                f"median sum {f.total:.3g}"
            )
            for name, mean, std, wins in zip(f.candidates, f.mean, f.std, f.wins, strict=True):
                lines.append(f"    {name}: {mean:.2f} ± {std:.2f}, largest in {wins:.0%}")
        for name, queue in self.queues.items():
            lines.append(
                f"  queue of {name}: {queue.fill:.0%} full, {queue.copies:.0%} of it copies, "
                f"spread {queue.scale_ratio:.2f} of the data, mean off by {queue.mean_shift:.2f}"
            )
        for (target, source), r in self.recovery.items():
            lines.append(
                f"  {target} from {source}: error {r.error:.2f} of the mean's, "
                f"spread {r.spread:.2f} of the real"
            )
        lines.append(f"  most frequent prediction: {self.top_class:.0%} of the rows")
        lines += [f"  WARNING: {text}" for text in self.warnings] or ["  no warnings"]
        return "\n".join(lines)


def diagnose(
    model: nn.Module,
    features: Mapping[str, Any],
    available: Mapping[str, Tensor] | None = None,
    *,
    batch_size: int = 256,
) -> Diagnosis:
    """Look whether quality, fusion, queues and recovery of a model do anything.

    A robust fusion can die without an error: a score that is the same for every sample, a queue
    full of copies, one candidate that always wins. Run this on held-out clean rows after
    training, and read the warnings. What the model's output or its queues do not show is left out.
    The model's buffers, mode and the global random state are as before afterwards.

    Args:
        model: maps `(features, available)` to logits, or to an output with `logits` and,
            optionally, `features`, `log_quality`, `weights` and `recovered`, as `DRFHead` does.
            Its queues are submodules of type `FeatureQueue`.
        features: clean inputs by modality: tensors `(n, ...)`, mappings of them, or lists. For a
            model with encoders and a `head` these are what the encoders take.
        available: bool `(n,)` by modality, True where observed; None means all.
        batch_size: rows at a time.

    Returns:
        the diagnosis; `print` it.

    Raises:
        ValueError: if there are no rows, modalities differ in their number of rows, or
            ``available`` names others.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> from robustfusion.diagnostics import diagnose
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> found = diagnose(head, {"image": torch.randn(20, 8), "text": torch.randn(20, 4)})
        >>> found.rows, sorted(found.quality), found.queues["text"].fill, found.healthy
        (20, ['image', 'text'], 0.0, False)
        >>> next(warning for warning in found.warnings if "queue of text" in warning)
        'queue of text is empty: train the model, or fill the queue, before it is used'

    Reference:
        Equations (1), (2), (12) and (13) of https://arxiv.org/abs/2511.18751
    """
    check_positive(batch_size, "batch_size")
    counts = {name: len(next(leaves(values))) for name, values in features.items()}
    rows = min(counts.values())
    if rows < max(counts.values()):
        raise ValueError(f"features must have the same number of rows, got {counts}")
    if rows < 2:
        raise ValueError(f"features must have at least 2 rows, got {rows}")
    device = next(tensors(features), torch.empty(0)).device
    there = check_available(available, features, rows, device)
    parts = []
    with evaluating(model), torch.no_grad():
        for start in range(0, rows, batch_size):
            part = slice(start, min(start + batch_size, rows))
            batch = (
                map_leaves(lambda x, part=part: x[part], given) for given in (features, there)
            )
            parts.append(_said(model, model(*batch), part.stop - start))
    said = map_leaves(lambda *values: torch.cat(values), *parts)
    mask = {name: seen.cpu() for name, seen in there.items()}
    # What the queues and the recovery see: the encoders' output where there are encoders.
    given = {m: x.detach().cpu() for m, x in features.items() if isinstance(x, Tensor)}
    real: dict[str, Tensor] = said["features"] or given
    fusion = None
    if "weights" in said:
        everything = torch.stack(list(mask.values())).all(0)
        fusion = _fusion_health(model, said["weights"][everything])
    recovery = {
        (target, source): _recovery_health(made, real[target], mask[target] & mask[source])
        for target, sources in said["recovered"].items()
        for source, made in sources.items()
        if target in real and real[target].shape == made.shape
    }
    predicted = said["logits"].argmax(-1).bincount(minlength=said["logits"].shape[1])
    found = Diagnosis(
        rows=rows,
        quality={
            name: _quality_health(scores, said["p_values"].get(name), mask[name])
            for name, scores in said["log_quality"].items()
        },
        fusion=fusion,
        queues={
            name: _queue_health(queue, real[name][mask[name]] if name in real else None)
            for name, queue in _queues(model).items()
        },
        recovery=recovery,
        top_class=float(predicted.max()) / rows,
        never=tuple((predicted == 0).nonzero()[:, 0].tolist()),
        warnings=(),
    )
    constant = [
        f"features of {name} are the same in every row: the encoder says nothing"
        for name, values in real.items()
        if values.is_floating_point() and bool((values == values[0]).all())
    ]
    broken = [] if said["logits"].isfinite().all() else ["some logits are not finite"]
    return found._replace(warnings=(*constant, *broken, *_warnings(found)))


def _said(model: nn.Module, out: Any, rows: int) -> dict[str, Any]:
    """What an output holds, on the CPU."""
    made = {
        name: read_output(out, name) or {} for name in ("log_quality", "features", "recovered")
    }
    made |= {"logits": logits_of(out, rows), "p_values": p_values_of(model, out)}
    weights = read_output(out, "weights")
    if weights is not None:
        made["weights"] = weights
    plain: dict[str, Any] = map_leaves(lambda x: x.detach().float().cpu(), made)
    return plain


def _quality_health(scores: Tensor, p_values: Tensor | None, mask: Tensor) -> QualityHealth:
    kept = scores[mask & scores.isfinite()].double()
    if len(kept) < 2:
        return QualityHealth(*(_NAN,) * 7)
    p = kept[:0] if p_values is None else p_values[mask & p_values.isfinite()].double()
    ends = kept.new_tensor([0.05, 0.95])
    low, high = kept.quantile(ends).tolist()
    p_low, p_high = p.quantile(ends).tolist() if len(p) else (_NAN, _NAN)
    alarms = float((p <= ALARM).double().mean()) if len(p) else _NAN
    return QualityHealth(float(kept.mean()), float(kept.std()), low, high, p_low, p_high, alarms)


def _fusion_health(model: nn.Module, weights: Tensor) -> FusionHealth | None:
    if len(weights) < 2:
        return None
    total = weights.double().sum(-1)
    share = weights.double() / total.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    entropy = -torch.special.xlogy(share, share).sum(-1)
    wins = torch.nn.functional.one_hot(share.argmax(-1), share.shape[1]).double().mean(0)
    return FusionHealth(
        candidates=candidate_names(model, share.shape[1]),
        mean=tuple(share.mean(0).tolist()),
        std=tuple(share.std(0).tolist()),
        wins=tuple(wins.tolist()),
        effective=float(entropy.exp().mean()),
        total=float(total.median()),
    )


def _queues(model: nn.Module) -> dict[str, Any]:
    """The queues that a head names by modality, else every queue by the last part of its name."""
    for module in model.modules():
        named = getattr(module, "queues", None)
        if isinstance(named, Mapping | nn.ModuleDict):
            return dict(named.items())
    return {
        path.rpartition(".")[2]: module
        for path, module in model.named_modules()
        if isinstance(module, FeatureQueue)
    }


def _queue_health(queue: FeatureQueue, rows: Tensor | None) -> QueueHealth:
    stored = queue.storage[: len(queue)].detach().double().cpu()
    fill, copies = len(queue) / len(queue.storage), _copies(stored)
    if rows is None or rows.shape[1:] != stored.shape[1:] or min(len(rows), len(stored)) < 2:
        return QueueHealth(fill, copies, _NAN, _NAN)
    data = rows.double()
    if (spread := _spread(data)) == 0:
        return QueueHealth(fill, copies, _NAN, _NAN)
    shift = float((stored.mean(0) - data.mean(0)).norm()) / spread
    return QueueHealth(fill, copies, _spread(stored) / spread, shift)


def _copies(stored: Tensor) -> float:
    """Share of the rows with a near-identical twin; of evenly chosen rows where they are many."""
    if len(stored) < 2:
        return _NAN
    spread = _spread(stored)
    if spread == 0:
        return 1.0
    step = -(-len(stored) // _COMPARED_ROWS)
    rows = (stored - stored.mean(0))[::step]
    # Two independent rows are sqrt(2) spreads apart on average. The product keeps this to one
    # matrix; the near-identical are told from rounding in float64.
    lengths = rows.square().sum(1)
    apart = (lengths[:, None] + lengths - 2 * rows @ rows.T).fill_diagonal_(torch.inf)
    return float((apart.amin(1) <= 2 * (SAME * spread) ** 2).double().mean())


def _spread(rows: Tensor) -> float:
    """Equation (2)."""
    return float((rows - rows.mean(0)).square().sum(-1).mean().sqrt())


def _recovery_health(recovered: Tensor, real: Tensor, paired: Tensor) -> RecoveryHealth:
    guess, truth = recovered[paired].double(), real[paired].double()
    if len(truth) < 2 or (spread := _spread(truth)) == 0:
        return RecoveryHealth(_NAN, _NAN)
    error = float((guess - truth).square().sum(-1).mean())
    return RecoveryHealth(error / spread**2, _spread(guess) / spread)


def _warnings(found: Diagnosis) -> Iterator[str]:
    """The rules, in the order of the report."""
    for name, quality in found.quality.items():
        if quality.std < CONSTANT_QUALITY:
            yield (
                f"quality of {name} is constant (std {quality.std:.1g}): it cannot tell good rows "
                "from bad ones"
            )
        elif quality.p_high - quality.p_low < NARROW_P:
            yield (
                f"quality of {name} is nearly constant: 90 % of the p-values lie in "
                f"{quality.p_low:.2f} to {quality.p_high:.2f}, those of intact rows over 0 to 1"
            )
        if quality.alarms > 3 * ALARM:  # chance alone does not do that
            yield (
                f"{quality.alarms:.0%} of the rows of {name} raise an alarm at {ALARM:g}: they "
                "are not intact, or the model was never calibrated on rows it has not seen"
            )
    if (fusion := found.fusion) is not None:
        several = len(fusion.candidates) > 1
        if several and max(fusion.std) < CONSTANT_WEIGHT:
            yield "fusion weights are the same for every row: the quality has no effect on them"
        for name, mean, wins in zip(fusion.candidates, fusion.mean, fusion.wins, strict=True):
            if several and wins > ALWAYS and mean > DOMINANT_WEIGHT:
                text = f"candidate {name} always wins: mean weight {mean:.2f}"
                yield f"{text}, largest in {wins:.0%} of the rows"
        if fusion.total < VANISHING_WEIGHT:
            yield (
                f"fusion weights vanish (median sum {fusion.total:.1g}): the classifier sees a "
                "vector near zero; normalize them"
            )
    for name, queue in found.queues.items():
        if queue.fill == 0:
            text = f"queue of {name} is empty: train the model, or fill the queue"
            yield f"{text}, before it is used"
        if queue.copies > COPIED:
            yield (
                f"queue of {name} holds copies: {queue.copies:.0%} of its rows have a "
                "near-identical twin, as when it has more places than there are training rows; a "
                "score that counts a row's own copies as its neighbors is blind"
            )
        if queue.scale_ratio < 1 / DRIFT or queue.scale_ratio > DRIFT:
            yield (
                f"queue of {name} has {queue.scale_ratio:.2f} of the spread of the data: its rows "
                f"are {'collapsed' if queue.scale_ratio < 1 else 'stale or scattered'}"
            )
        if queue.mean_shift > SHIFT:
            yield (
                f"queue of {name} is off by {queue.mean_shift:.2f} spreads of the data: its rows "
                "are stale, or the data differ from those of the training"
            )
    for (target, source), recovery in found.recovery.items():
        if recovery.error >= 1:
            text = f"{target} recovered from {source} is no better than the mean of {target}"
            yield f"{text} (error {recovery.error:.2f} of the mean's)"
    if found.top_class > ALWAYS:
        yield f"{found.top_class:.0%} of the rows are predicted as one class"
    elif found.never and found.rows >= 20 * (len(found.never) + 1):  # else chance may do that
        yield f"class {', '.join(map(str, found.never))} is predicted for no row"
