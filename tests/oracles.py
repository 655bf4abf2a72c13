"""Slow, obvious versions of every formula: plain loops over Python floats, nothing shared.

Only :class:`PaperOracle` uses numpy, for the matrix products of its networks.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Vector = Sequence[float]
Array = npt.NDArray[np.float64]


def rows_of(x: Tensor) -> list[list[float]]:
    """Return a matrix as lists of floats."""
    return [[float(value) for value in row] for row in x.detach()]


def distance(x: Vector, y: Vector) -> float:
    """Euclidean distance; the shorter vector is padded with zeros."""
    width = max(len(x), len(y))
    x, y = [*x, *[0.0] * (width - len(x))], [*y, *[0.0] * (width - len(y))]
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def average(values: Iterable[float]) -> float:
    """Mean, zero of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def mean(rows: Sequence[Vector]) -> list[float]:
    """(1), (5)."""
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def spread(rows: Sequence[Vector]) -> float:
    """(2), (6)."""
    centre = mean(rows)
    return math.sqrt(sum(distance(row, centre) ** 2 for row in rows) / len(rows))


def constraint(
    rows: Sequence[Vector], own: Vector, others: Sequence[Vector], available: Sequence[bool]
) -> float:
    """(3) of one modality: mean over available rows of the mean over the other modalities."""
    return average(
        average(math.exp(distance(row, own) - distance(row, other)) for other in others)
        for row, here in zip(rows, available, strict=True)
        if here
    )


def sample_recovery(
    recovered: Sequence[Vector], target: Sequence[Vector], paired: Sequence[bool]
) -> float:
    """(4)."""
    return average(
        distance(a, b) for a, b, both in zip(recovered, target, paired, strict=True) if both
    )


def moment_matching(generated: Sequence[Vector], reference: Sequence[Vector]) -> float:
    """(7), from samples."""
    return distance(mean(generated), mean(reference)) + abs(spread(generated) - spread(reference))


def density(x: Vector, centre: Vector, sigma: float) -> float:
    """(9)."""
    exponent = -(distance(x, centre) ** 2) / (2 * sigma**2)
    return math.exp(exponent) / (math.sqrt(2 * math.pi) * sigma)


def admitted(densities: Vector, queue_densities: Vector) -> list[bool]:
    """(13); everything while fewer than two rows are queued."""
    if len(queue_densities) < 2:
        return [True] * len(densities)
    bar = sum(queue_densities) / len(queue_densities)
    return [value > bar for value in densities]


def softmax(scores: Vector, available: Sequence[bool]) -> list[float]:
    """Softmax over the available entries, zeros where there are none."""
    usable = [s for s, a in zip(scores, available, strict=True) if a]
    if not usable:
        return [0.0] * len(scores)
    top = max(usable)
    total = sum(math.exp(s - top) for s in usable)
    return [
        math.exp(s - top) / total if a else 0.0 for s, a in zip(scores, available, strict=True)
    ]


def cross_entropy(logits: Sequence[Vector], labels: Sequence[int]) -> float:
    """(15), averaged over the batch."""
    return average(
        -math.log(softmax(row, [True] * len(row))[label])
        for row, label in zip(logits, labels, strict=True)
    )


def mlp_of(layers: nn.Sequential) -> Callable[[Vector], list[float]]:
    """Linear layers with ReLU between them, on one vector."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weights = [
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in linear
    ]

    def apply(x: Vector) -> list[float]:
        hidden: Array = np.asarray(x, dtype=np.float64)
        for depth, (weight, bias) in enumerate(weights):
            hidden = weight @ (np.maximum(hidden, 0.0) if depth else hidden) + bias
        return [float(value) for value in hidden]

    return apply


class PaperStep(NamedTuple):
    """What one training step of the paper's two-modality model computes."""

    constraint: float
    sample_recovery: float
    distribution_recovery: float
    classification: float
    densities: dict[str, list[float]]
    recovered_densities: dict[str, list[float]]
    weights: list[list[float]]
    fused: list[list[float]]
    logits: list[list[float]]

    @property
    def loss(self) -> float:
        """(16)."""
        return (
            self.constraint
            + self.sample_recovery
            + self.distribution_recovery
            + self.classification
        )


class PaperOracle:
    """Equations (1) to (16) for modalities "v" and "t", sample by sample.

    It reads the weights of a ``PaperDRFHead`` and keeps queues of its own. The switches are the
    five ablations of Table 4.
    """

    def __init__(
        self,
        head: Any,
        *,
        sample_recovery: bool = True,
        distribution_recovery: bool = True,
        gaussian_quality: bool = True,
        expansion: bool = True,
        distribution_constraint: bool = True,
    ) -> None:
        converters = head.recovery.converters
        self.convert = {
            "v": mlp_of(converters["t"]["v"].layers),  # C_{v→t}
            "t": mlp_of(converters["v"]["t"].layers),  # C_{t→v}
        }
        self.network = mlp_of(head.network)
        self.classify = mlp_of(nn.Sequential(head.classifier))
        self.queues: dict[str, deque[Vector]] = {
            m: deque(maxlen=head.queues[m].capacity) for m in "vt"
        }
        self.dims = {m: head.queues[m].dim for m in "vt"}
        self.sample_recovery = sample_recovery
        self.distribution_recovery = distribution_recovery
        self.gaussian_quality = gaussian_quality
        self.expansion = expansion
        self.distribution_constraint = distribution_constraint

    def moments(self, m: str) -> tuple[list[float], float]:
        """(1), (2); those of N(0, I) while the queue holds fewer than two rows."""
        queue = list(self.queues[m])
        if len(queue) < 2:
            return [0.0] * self.dims[m], math.sqrt(self.dims[m])
        return mean(queue), spread(queue)

    def density(self, m: str, x: Vector) -> float:
        """(9), (10), (11)."""
        return density(x, *self.moments(m)) if self.gaussian_quality else 1.0

    def step(
        self,
        features: Mapping[str, Sequence[Vector]],
        available: Mapping[str, Sequence[bool]],
        labels: Sequence[int],
    ) -> PaperStep:
        """Compute one step, then update the queues."""
        batch = len(labels)
        # A missing row may hold anything; zeros stand in for it.
        x = {
            m: [
                row if here else [0.0] * self.dims[m]
                for row, here in zip(features[m], available[m], strict=True)
            ]
            for m in "vt"
        }
        recovered = {
            "t": [self.convert["v"](row) for row in x["v"]],
            "v": [self.convert["t"](row) for row in x["t"]],
        }
        p = {m: [self.density(m, row) for row in x[m]] for m in "vt"}
        p_recovered = {m: [self.density(m, row) for row in recovered[m]] for m in "vt"}
        weights, fused = [], []
        for i in range(batch):
            v, t = x["v"][i], x["t"][i]
            has_v, has_t = available["v"][i], available["t"][i]
            from_t, from_v = recovered["v"][i], recovered["t"][i]
            if self.expansion:
                row = [
                    has_v * has_t * p["v"][i] * p["t"][i],
                    has_v * p["v"][i] * p_recovered["t"][i],
                    has_t * p_recovered["v"][i] * p["t"][i],
                ]
                pairs = [(v, t), (v, from_v), (from_t, t)]
            else:
                pair = (v if has_v else from_t, t if has_t else from_v)
                both = self.density("v", pair[0]) * self.density("t", pair[1])
                row, pairs = [(has_v or has_t) * both], [pair]
            vectors = [self.network([*a, *b]) for a, b in pairs]
            weights.append(row)
            fused.append(
                [
                    sum(w * value for w, value in zip(row, column, strict=True))
                    for column in zip(*vectors, strict=True)
                ]
            )
        logits = [self.classify(row) for row in fused]
        result = PaperStep(
            constraint=self._constraint(x, available),
            sample_recovery=self._sample_recovery(x, available, recovered),
            distribution_recovery=self._distribution_recovery(),
            classification=cross_entropy(logits, labels),
            densities=p,
            recovered_densities=p_recovered,
            weights=weights,
            fused=fused,
            logits=logits,
        )
        self._enqueue(x, available, p)
        return result

    def _constraint(
        self, x: Mapping[str, Sequence[Vector]], available: Mapping[str, Sequence[bool]]
    ) -> float:
        if not self.distribution_constraint:
            return 0.0
        centre = {m: self.moments(m)[0] for m in "vt"}
        return constraint(x["v"], centre["v"], [centre["t"]], available["v"]) + constraint(
            x["t"], centre["t"], [centre["v"]], available["t"]
        )

    def _sample_recovery(
        self,
        x: Mapping[str, Sequence[Vector]],
        available: Mapping[str, Sequence[bool]],
        recovered: Mapping[str, Sequence[Vector]],
    ) -> float:
        if not self.sample_recovery:
            return 0.0
        paired = [v and t for v, t in zip(available["v"], available["t"], strict=True)]
        return sum(sample_recovery(recovered[m], x[m], paired) for m in "vt")

    def _distribution_recovery(self) -> float:
        total = 0.0
        for source, target in (("v", "t"), ("t", "v")):
            queue = list(self.queues[source])
            if not self.distribution_recovery or len(queue) < 2:
                continue
            converted = [self.convert[source](row) for row in queue]
            centre, sigma = self.moments(target)
            total += distance(mean(converted), centre) + abs(spread(converted) - sigma)
        return total

    def _enqueue(
        self,
        x: Mapping[str, Sequence[Vector]],
        available: Mapping[str, Sequence[bool]],
        p: Mapping[str, Vector],
    ) -> None:
        for m, queue in self.queues.items():
            if self.gaussian_quality:
                enters = admitted(p[m], [self.density(m, row) for row in queue])
            else:
                enters = [True] * len(x[m])
            rows = zip(x[m], available[m], enters, strict=True)
            queue.extend([row for row, here, enter in rows if here and enter])
