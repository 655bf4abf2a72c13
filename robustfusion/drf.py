"""The DRF head: features in, a robust prediction out."""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._inputs import make_safe
from robustfusion._modules import ModuleDict, StackedLinear
from robustfusion._state import refuse_recompute
from robustfusion._validation import (
    check_between,
    check_dims,
    check_labels,
    check_positive,
    made_by,
)
from robustfusion.candidates import (
    distinct_candidates,
    enumerate_candidates,
    pattern_temperature,
    trusted_by,
)
from robustfusion.distributed import gather_rows
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import destandardize, masked_mean, standardize
from robustfusion.fusion import QualityWeightedFusion
from robustfusion.neighbor_quality import NeighborQualityEstimator
from robustfusion.output import DRFOutput
from robustfusion.quality import QualityEstimator
from robustfusion.stand_in import RecoveredFeatures, StandIn

# Of a standardized coordinate: corrupted features lie far out, where a network can be sure of
# anything. In sketches out of fold 3 was as good as 10 on intact samples, better on corrupted.
_FARTHEST = 3.0
# Largest share of a sample's modalities to hide; each sample draws its own, so that all but one
# and nearly none are seen in training.
_HIDDEN = 0.8


class DRFHead(nn.Module):
    r"""Classify from the features of several modalities, any of which may be missing or poor.

    The paper's idea with the parts that measurement chose. Each modality keeps a queue of its
    features, which standardizes them, and by which a quality estimator says how far a new one can
    be trusted. A sample expands into candidates :math:`S`, each of which trusts some modalities
    and lets something stand in for the others: a learned token, plus what the trusted ones tell
    of the feature in question. Fusion weighs the candidates by quality:

    .. math::
        \begin{array}{rl}
        h_S =& \operatorname{ReLU}\Big(\sum_{m \in S} W_m z_m
              + \sum_{m \notin S} (t_m + W_m \hat z_m)\Big), \\
        w_S =& \operatorname{softmax}_S \Big(\sum_{m \in S} q_m + \sum_{m \notin S} q_0\Big), \\
        \hat y =& \sum_S w_S \, \tfrac12 \Big(
              W \operatorname{ReLU}(U h_S + u) + b + \frac1{|S|} \sum_{m \in S} B_m(z_m) \Big)
        \end{array}

    with standardized features :math:`z`, recovered ones :math:`\hat z`, log-qualities
    :math:`q` and that of a stand-in, :math:`q_0`, and a network :math:`B_m` of two hidden layers
    for each modality alone. So half of what a candidate says comes from features that are
    fused, and half from decisions that are: the one finds what only the modalities together
    tell, the other overfits less. A modality whose corruption shows in its features counts as a
    missing one. Where at least three modalities are there, :math:`q_m` also holds how well the
    prediction from m alone agrees with that of the others: a feature from another sample is
    typical, but contradicts them.

    Training supervises both halves of every candidate, not the fused prediction. From four
    modalities on, some are dropped at random, since not every subset is a candidate. A row that
    holds NaN, inf or a value beyond 1e9 counts as missing; a coordinate more than three deviations
    from its mean counts as three. A sample without any modality gets logits of b / 2.

    After training, :func:`~robustfusion.calibrate` on held-out samples makes qualities, p-values
    and probabilities those of samples the head has not seen.

    Args:
        dims: Feature width of each modality, at least two.
        num_classes: Number of classes C.
        quality: Factory of a :class:`~robustfusion.QualityEstimator`, called with the width of a
            modality.
        stand_in: Factory of a :class:`~robustfusion.StandIn`, called with ``dims`` and
            ``hidden_features``.
        hidden_features: Width F of all hidden layers, so of the fused vector.
        dropout: Probability of dropping a hidden unit in training. The first option to tune: out
            of fold 0.1 was better on redundant views of clear classes, 0.7 on posts, where half
            as many epochs did nearly as much.
        gather_distributed: Whether queues take the rows of all ranks. Then every rank holds the
            same state and DDP's default buffer broadcast is harmless; local queues need
            ``forward_sync_buffers=False`` (``broadcast_buffers=False`` before torch 2.13).

    Attributes:
        candidates: The modalities that each candidate trusts: all, all but one, one alone.
        estimators: The quality estimator of each modality.
        queues: The :class:`~robustfusion.FeatureQueue` of each modality.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - Output: :class:`~robustfusion.DRFOutput`; ``labels``: (B,) long

    Raises:
        ValueError: If a modality is missing, unknown or of the wrong shape, or a label too large.
        TypeError: If a dtype does not fit, or a factory makes something else.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> features = {"image": torch.randn(16, 8), "text": torch.randn(16, 4)}
        >>> available = {"image": torch.arange(16) > 3, "text": torch.ones(16, dtype=torch.bool)}
        >>> out = head(features, available)
        >>> loss = head.loss(out, torch.randint(3, (16,)))
        >>> loss.backward()

    Reference:
        After https://arxiv.org/abs/2511.18751; :class:`~robustfusion.PaperDRFHead` is that paper's
        head to the letter.
    """

    temperature: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        quality: Callable[[int], QualityEstimator] = NeighborQualityEstimator,
        stand_in: Callable[[dict[str, int], int], StandIn] = RecoveredFeatures,
        hidden_features: int = 256,
        dropout: float = 0.5,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        check_positive(num_classes, "num_classes")
        check_positive(hidden_features, "hidden_features")
        check_between(dropout, 0.0, 1.0, "dropout")
        self.num_classes = num_classes
        self.hidden_features = hidden_features
        self.gather_distributed = gather_distributed
        self.candidates = enumerate_candidates(self.dims)
        self.estimators = ModuleDict(
            {
                name: made_by(quality, QualityEstimator, "quality", dim)
                for name, dim in self.dims.items()
            }
        )
        self.embed = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in self.dims.items()}
        )
        self.stand_in = made_by(stand_in, StandIn, "stand_in", self.dims, hidden_features)
        self.trunk = nn.Linear(hidden_features, hidden_features)
        self.dropout = nn.Dropout(dropout)
        self.fusion = QualityWeightedFusion()
        self.classifier = nn.Linear(hidden_features, num_classes)
        self.embed_alone = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in self.dims.items()}
        )
        self.alone = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(dropout),
            StackedLinear(len(self.dims), hidden_features, hidden_features),
            nn.ReLU(),
            nn.Dropout(dropout),
            StackedLinear(len(self.dims), hidden_features, num_classes),
        )
        # Of samples with just the modalities of each candidate, and of all others.
        self.register_buffer("temperature", torch.ones(len(self.candidates) + 1))

    @property
    def queues(self) -> dict[str, FeatureQueue]:
        """The queue of each modality."""
        return {name: estimator.queue for name, estimator in self.estimators.items()}

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> DRFOutput:
        """Predict, and in training mode update the queues."""
        if self.training:
            refuse_recompute("DRFHead")
        x, present = make_safe(features, available, self.dims)
        here = torch.stack(list(present.values()), dim=1)
        shown = self._drop_modalities(here) if self.training else here
        every = trusted_by(len(self.dims), here.device)
        trusted, usable = distinct_candidates(every, shown)

        frames = {name: queue.gaussian() for name, queue in self.queues.items()}
        dtype = self.classifier.weight.dtype
        z = {
            name: standardize(x[name], frame).clamp(-_FARTHEST, _FARTHEST).to(dtype)
            for name, frame in frames.items()
        }
        log_quality = self._log_quality(x, present).where(here, -torch.inf)
        stand_in = self.stand_in(z, here, self.embed)
        mixing = trusted.to(dtype)
        even = mixing / mixing.sum(-1, keepdim=True).clamp_min(1)
        candidates = self._candidates(z, stand_in.hidden, mixing, even)
        # The mean of what each trusted modality says alone, (B, K, C).
        alone = self.alone(torch.stack([embed(z[m]) for m, embed in self.embed_alone.items()]))
        late = even @ alone.transpose(0, 1)
        member_logits = torch.stack([self.classifier(candidates), late], dim=2)
        candidate_logits = member_logits.mean(2)
        weights = self._weights(log_quality, candidate_logits, trusted, shown, usable)
        share = weights.to(candidates.dtype)[:, None]
        fused = (share @ candidates).squeeze(1)
        logits = 0.5 * (self.classifier(fused) + (share @ late).squeeze(1))
        if not self.training:
            logits = logits / pattern_temperature(self.temperature, here, every)
        return DRFOutput(
            logits=logits,
            fused=fused,
            features=x,
            candidate_logits=candidate_logits,
            weights=weights,
            log_quality=dict(zip(self.dims, log_quality.unbind(1), strict=True)),
            recovered={
                target: self._by_source(target, destandardize(made, frames[target]))
                for target, made in stand_in.recovered.items()
            },
            aux_loss=stand_in.loss,
            usable=usable,
            member_logits=member_logits,
        )

    def loss(self, output: DRFOutput, labels: Tensor) -> Tensor:
        """Return the training objective: the mean cross-entropy of both members of candidates."""
        check_labels(labels, output.usable.shape[0], self.num_classes)
        logits = cast("Tensor", output.member_logits)
        target = labels[:, None, None].expand(logits.shape[:3])
        loss = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        loss = loss.view(target.shape).mean(2).where(output.usable, 0.0)
        per_sample = loss.sum(1) / output.usable.sum(1).clamp_min(1)
        return masked_mean(per_sample, output.usable.any(1)) + output.aux_loss

    def p_values(self, output: DRFOutput) -> dict[str, Tensor]:
        """Return each modality's p-values, (B,): how many intact rows look as odd; NaN if missing.

        See :class:`~robustfusion.QualityEstimator`; call :func:`~robustfusion.calibrate` before.
        """
        return {
            name: estimator.p_value_of(output.log_quality[name]).where(
                output.log_quality[name] > -torch.inf, torch.nan
            )
            for name, estimator in self.estimators.items()
        }

    def _log_quality(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """The log-quality of each feature, (B, M), before its queue has it."""
        scores = []
        for name, estimator in self.estimators.items():
            rows, mask = x[name].detach(), present[name]
            everyone, masks = rows, mask
            if self.training and self.gather_distributed:
                everyone, masks = gather_rows(rows, mask)
            if self.training and everyone is rows:
                score = estimator.observe(rows, mask)
            else:
                score = estimator(rows)
                if self.training:
                    estimator.observe(everyone, masks)
            scores.append(score)
        return torch.stack(scores, dim=1)

    def _by_source(self, target: str, made: Tensor) -> dict[str, Tensor]:
        """What was recovered, (B, M, D), from each other modality."""
        sources = zip(self.dims, made.unbind(1), strict=True)
        return {source: rows for source, rows in sources if source != target}

    def _candidates(
        self, z: Mapping[str, Tensor], stand_in: Tensor, mixing: Tensor, even: Tensor
    ) -> Tensor:
        """The hidden units of each candidate, (B, K, F), by what it trusts, (B, K, M)."""
        own = torch.stack([embed(z[m]) for m, embed in self.embed.items()], dim=1)
        # What stands in for a target is averaged over the sources that the candidate trusts.
        made = einsum(1 - mixing, even, "b k t, b k s -> b k t s")
        # Two matrix products for all candidates at once.
        hidden = mixing @ own + made.flatten(2) @ stand_in.flatten(1, 2).to(own.dtype)
        hidden = self.dropout(F.relu(hidden))
        return cast("Tensor", self.dropout(F.relu(self.trunk(hidden))))

    def _weights(
        self,
        log_quality: Tensor,
        candidate_logits: Tensor,
        trusted: Tensor,
        shown: Tensor,
        usable: Tensor,
    ) -> Tensor:
        """What each candidate counts, (B, K): what it trusts by its quality, the rest by ours."""
        evidence = log_quality + self._agreement(candidate_logits.detach(), shown)
        stood_in = shown[:, None] & ~trusted
        # Not matrix products: autocast would round log-qualities to half precision.
        log_weight = evidence[:, None].where(trusted, self.stand_in.log_quality * stood_in).sum(-1)
        return self.fusion.weights(log_weight, usable)

    def _drop_modalities(self, here: Tensor) -> Tensor:
        """From four modalities on, hide some of each sample, at least one stays."""
        if len(self.dims) < 4:
            return here
        rate = _HIDDEN * torch.rand(here.shape[0], 1, device=here.device)
        draw = torch.rand(here.shape, device=here.device)
        kept = draw.where(here, -1.0).argmax(1, keepdim=True)
        index = torch.arange(here.shape[1], device=here.device)
        return here & ((draw > rate) | (index == kept))

    def _agreement(self, candidate_logits: Tensor, here: Tensor) -> Tensor:
        r"""Log-odds from the others, (B, K, C) -> (B, M): :math:`\log C \sum_c p_m(c) p_{-m}(c)`.

        If modalities are independent given the class, this is the log-ratio of how likely m and
        the others are to occur together against apart. Two modalities can only disagree, not say
        which is wrong; then it is 0.
        """
        modalities = len(self.dims)
        if modalities < 3:
            return torch.zeros_like(here, dtype=torch.float32)
        log_prob = candidate_logits.float().log_softmax(-1)
        alone = log_prob[:, -modalities:]
        # All-but-one candidates come in the order of what they keep: the last modality goes first.
        others = log_prob[:, 1 : modalities + 1].flip(1)
        agreement = (alone + others).logsumexp(-1) + math.log(self.num_classes)
        return agreement.where(here & (here.sum(1, keepdim=True) > 2), 0.0)
