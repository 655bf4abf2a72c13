"""Heads between the paper's and the default, one ingredient apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion import (
    CrossModalRecovery,
    DRFHead,
    DRFOutput,
    NeighborQualityEstimator,
    PaperDRFHead,
    QualityWeightedFusion,
)
from robustfusion.neighbor_quality import Look


class GaussianScore(NeighborQualityEstimator):
    """The default's estimator with a Gaussian's log-quality for a score: −½ mean squared z.

    Calibration and queue are as they were, so the signal alone differs. Coordinates replaced by
    those of other rows keep every marginal, and a Gaussian without covariances cannot tell such a
    feature from a real one: the fitted curve is flat.
    """

    def look(self, features: Tensor) -> Look:
        """Log-quality under a diagonal Gaussian of the queue's moments."""
        quality = -0.5 * self.standardize(features.detach()).square().mean(-1)
        return Look(quality, torch.zeros_like(quality))


class UniformFusion(QualityWeightedFusion):
    """Every candidate counts the same, whatever its quality."""

    def weights(self, log_quality: Tensor, available: Tensor | None = None) -> Tensor:
        """Equal weights over what is available."""
        return super().weights(torch.zeros_like(log_quality), available)


class SupervisedPaperHead(PaperDRFHead):
    """The paper's head, its cross-entropy on every candidate instead of the fused vector."""

    def loss(self, output: DRFOutput, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the candidates, plus the paper's other terms."""
        return candidate_loss(output, labels) + output.aux_loss


class WithoutMembers(DRFHead):
    """The default, each candidate supervised as a whole."""

    def loss(self, output: DRFOutput, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the candidates."""
        return super().loss(output._replace(member_logits=None), labels)


class FusedOnly(DRFHead):
    """The default, supervised through the fused prediction alone, as the paper does."""

    def loss(self, output: DRFOutput, labels: Tensor) -> Tensor:
        """Cross-entropy of the fused prediction."""
        return F.cross_entropy(output.logits, labels) + output.aux_loss


class RecoveringHead(DRFHead):
    """Two modalities, of which the one not trusted is recovered from the other.

    Converters see and match features without gradient to them; their loss is the mean squared
    error of standardised features.
    """

    def __init__(self, *args: object, members: bool = True, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        if len(self.dims) != 2:
            raise ValueError(f"dims must name two modalities, got {tuple(self.dims)}")
        self.members = members
        self.recovery = CrossModalRecovery(self.dims)

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> DRFOutput:
        """As the default, with recovered features in the place of tokens."""
        first, second = self.dims
        batch = features[first].shape[0]
        if available is None:
            on = torch.ones(batch, dtype=torch.bool, device=features[first].device)
            available = dict.fromkeys(self.dims, on)
        here = {m: available[m] for m in self.dims}
        x = {m: features[m].where(here[m][:, None], 0.0) for m in self.dims}
        z = {m: e.standardize(x[m]) for m, e in self.estimators.items()}
        made = self.recovery(z)
        filled = (
            (z[first], z[second]),
            (z[first], made[second][first]),
            (made[first][second], z[second]),
        )
        hidden = torch.stack([self.embed[first](a) + self.embed[second](b) for a, b in filled], 1)
        hidden = self.dropout(F.relu(hidden))
        looks = {m: e.look(x[m].detach()) for m, e in self.estimators.items()}
        odds = torch.stack([e.log_odds(looks[m].score) for m, e in self.estimators.items()], dim=1)
        log_weight = odds @ self.trusted.to(odds.dtype).T
        usable = torch.stack([here[first] & here[second], here[first], here[second]], dim=1)
        fused = self.fusion(hidden, log_weight, usable)
        both = usable[:, 0]
        error = torch.stack(
            [
                (made[t][s] - z[t].detach()).square().mean(1)
                for t, s in ((first, second), (second, first))
            ]
        )
        log_quality = F.logsigmoid(odds)
        output = DRFOutput(
            logits=self.classifier(fused),
            fused=fused,
            candidate_logits=self.classifier(hidden),
            weights=self.fusion.weights(log_weight, usable),
            log_quality={
                m: log_quality[:, i].where(here[m], -torch.inf) for i, m in enumerate(self.dims)
            },
            recovered={first: dict(made[first]), second: dict(made[second])},
            aux_loss=(error.mean(0) * both).sum() / both.sum().clamp_min(1),
            usable=usable,
            member_logits=self._blocks(hidden) if self.members else None,
        )
        if self.training:
            for m, estimator in self.estimators.items():
                estimator.observe(x[m], here[m], look=looks[m])
        return output

    def _blocks(self, hidden: Tensor, members: int = 4) -> Tensor:
        blocks = rearrange(hidden, "b k (e f) -> b k e f", e=members)
        weight = members * rearrange(self.classifier.weight, "c (e f) -> e f c", e=members)
        logits = (blocks[..., None, :] @ weight)[..., 0, :] + self.classifier.bias
        return cast("Tensor", logits)


def candidate_loss(output: DRFOutput, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the usable candidates."""
    logits = output.candidate_logits
    target = labels[:, None].expand(logits.shape[:2])
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return each.view(target.shape).where(output.usable, 0.0).sum() / output.usable.sum()


def ablation_head(
    row: str, dims: Mapping[str, int], num_classes: int, hidden_features: int | None
) -> nn.Module:
    """The head of one row of the ablation table; `ROWS` has their names."""
    if row in ("paper", "standardised"):
        return DRFHead.paper(dims, num_classes)
    if row in ("normalised", "detached", "supervised"):
        kind = SupervisedPaperHead if row == "supervised" else PaperDRFHead
        paper = kind(dims, num_classes)
        paper.fusion = QualityWeightedFusion()
        paper.recovery.detach = row != "normalised"
        return paper
    make = {
        "trunk": partial(RecoveringHead, members=False, quality=GaussianScore),
        "neighbours": partial(RecoveringHead, members=False),
        "tokens": WithoutMembers,
        "default, recovered features": RecoveringHead,
        "default, fused loss": FusedOnly,
        "default, Gaussian": partial(DRFHead, quality=GaussianScore),
    }.get(row, DRFHead)
    head = make(dims, num_classes, hidden_features=hidden_features or 256)
    if row == "default, uniform":
        head.fusion = UniformFusion()
    return head


# What each row is called in the table. The upper rows add one ingredient each; the lower ones
# take one away from the default.
ROWS = {
    "paper": "the paper's head",
    "standardised": "+ standardised features",
    "normalised": "+ normalised weights",
    "detached": "+ recovery sees features without gradient",
    "supervised": "+ every candidate supervised",
    "trunk": "+ shared input layer, one hidden layer, calibrated Gaussian quality, open queue",
    "neighbours": "+ neighbours instead of the Gaussian",
    "tokens": "+ tokens instead of recovered features",
    "default": "+ four members = the default",
    "default, recovered features": "default, recovered features instead of tokens",
    "default, Gaussian": "default, a Gaussian instead of neighbours",
    "default, uniform": "default, uniform weights",
    "default, fused loss": "default, only the fused prediction supervised",
}
