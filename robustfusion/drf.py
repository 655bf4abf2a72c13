"""The DRF head: features in, a robust prediction out."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._identity import register_identity
from robustfusion._inputs import make_safe
from robustfusion._modules import ModuleDict, StackedLinear
from robustfusion._state import refuse_recompute
from robustfusion._task_head import Supervision, TaskHead
from robustfusion._validation import build_part, check_between, check_dims, check_positive
from robustfusion.candidates import Candidates
from robustfusion.distributed import gather_rows
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import Gaussian, destandardize, standardize
from robustfusion.fusion import QualityWeightedFusion
from robustfusion.moments import gaussian_of_all
from robustfusion.neighbor_quality import NeighborQualityEstimator
from robustfusion.output import DRFOutput
from robustfusion.quality import QualityEstimator, log_qualities
from robustfusion.stand_in import RecoveredFeatures, StandIn, off_diagonal
from robustfusion.tasks import Task, agreement
from robustfusion.trust import LearnedTrust

# Standardized coordinates are clipped here. Damaged features lie far out, where a network can be
# sure of anything; cross-validated, 3 was as good as 10 on intact samples and better on damaged
# ones.
_MAX_COORDINATE = 3.0
# Largest share of a sample's modalities that training hides. Each sample draws its own share, so
# that training sees samples with all but one modality and with nearly none.
_MAX_HIDDEN_SHARE = 0.8
# Prior probability that one modality of a sample is damaged; 0.01 to 0.4 were tried in sketches.
_PRIOR_DAMAGED = 0.2
# Training scores no feature: each counts as a typical intact one, half of which score higher.
_TYPICAL_LOG_QUALITY = math.log(0.5)


def initial_log_prior(modalities: int) -> float:
    """Return the log-quality that a stand-in has before calibration, log(0.2 / M).

    At M = 2 a feature weighs as much as its stand-in if one in ten intact features is as unusual;
    with more modalities the complete sample keeps its weight.

    >>> round(initial_log_prior(2), 4)
    -2.3026
    """
    return math.log(_PRIOR_DAMAGED / modalities)


class DRFHead(TaskHead):
    r"""Predict from several modalities, any of which may be missing or damaged.

    The head takes one feature vector per modality and a mask that says which are present. A
    quality estimator per modality scores how unusual each feature is, compared with a queue of
    past features. The sample expands into candidates; each candidate trusts some modalities and
    replaces the others by a stand-in. Fusion weights the candidates by quality, so that a modality
    whose damage shows in its features counts like a missing one.

    After training, :func:`~robustfusion.calibrate` on held-out samples makes qualities, p-values
    and probabilities those of samples that the head has not seen.

    Args:
        dims: Feature width of each modality, at least two modalities.
        num_classes: Number C of classes, labels or numbers.
        task: "multiclass" for one class a sample, "multilabel" for several labels, "regression"
            for numbers.
        quality: Factory of a :class:`~robustfusion.QualityEstimator`, called with the width of a
            modality.
        stand_in: Factory of a :class:`~robustfusion.StandIn`, called with ``dims`` and
            ``hidden_features``.
        hidden_features: Width F of all hidden layers and of the fused vector.
        dropout: Probability of dropping a hidden unit in training. Tune this option first.
            Cross-validated, 0.1 was better on redundant views of clear classes and 0.7 on posts,
            where half as many epochs did nearly as much.
        gather_distributed: Whether queues take the rows of all ranks. Then every rank holds the
            same state and the default buffer broadcast of DDP is harmless. Local queues need
            ``forward_sync_buffers=False`` (``broadcast_buffers=False`` before torch 2.13).

    Attributes:
        candidates: The subsets of modalities that the candidates trust, see
            :class:`~robustfusion.candidates.Candidates`.
        estimators: The quality estimator of each modality.
        trust: The :class:`~robustfusion.LearnedTrust` that turns features and log-qualities into
            evidence for each modality.
        temperature: (K + 1,), what evaluation divides the logits by: for samples with exactly the
            modalities of each candidate, then for all other samples. Numbers are not divided.
        thresholds: (C,), what ``predict`` compares probabilities with; none for regression.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool, True where the
          modality is present; a modality that ``available`` leaves out is present everywhere
        - Output: :class:`~robustfusion.DRFOutput`; ``target``: see :mod:`robustfusion.tasks`

    Raises:
        ValueError: If a modality is missing, unknown or of the wrong shape, or the target does not
            fit the task.
        TypeError: If a dtype does not fit, or a factory builds something else.

    Example:
        >>> import torch
        >>> from robustfusion import DRFHead
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> features = {"image": torch.randn(16, 8), "text": torch.randn(16, 4)}
        >>> out = head(features, available={"image": torch.arange(16) > 3})
        >>> loss = head.loss(out, torch.randint(3, (16,)))
        >>> loss.backward()
        >>> out.logits.shape, head.candidates[0]
        (torch.Size([16, 3]), ('image', 'text'))

    Note:
        With standardized features :math:`z`, recovered features :math:`\hat z`, the evidence
        :math:`g_m` for trusting a modality, and a network :math:`B_m` of two hidden layers per
        modality, the prediction is

        .. math::
            \begin{array}{rl}
            h_S =& \operatorname{ReLU}\Big(\sum_{m \in S} W_m z_m
                  + \sum_{m \notin S} (t_m + W_m \hat z_m)\Big), \\
            w_S =& \operatorname{softmax}_S \Big(c_S + \sum_{m \in S} g_m\Big), \\
            \hat y =& \sum_S w_S \Big( (1 - \lambda) \big(
                  W \operatorname{ReLU}(U h_S + u) + b \big)
                  + \lambda \frac1{|S|} \sum_{m \in S} B_m(z_m) \Big)
            \end{array}

        The evidence is the log-quality of the feature minus the log-prior of its stand-in, until
        :func:`~robustfusion.calibrate` learns it from damaged samples, together with :math:`c_S`
        and the share :math:`\lambda`, which is a half at first. So half of a candidate's logits
        comes from fused features (early fusion), which can use
        what only several modalities together show, and half from the mean of one network per
        modality (late fusion), which overfits less. From three modalities on, :math:`q_m` also
        contains how well the prediction from m agrees with that from the others, because a feature
        of another sample looks usual but contradicts them.

        Training supervises both halves of every candidate, not the fused prediction. From four
        modalities on it hides some of them at random, because not every subset is a candidate. A
        row with NaN, inf or a value beyond 1e13 counts as missing. A sample without any modality
        gets logits of 0, that is, equal probabilities.

    Reference:
        After https://arxiv.org/abs/2511.18751; :class:`~robustfusion.PaperDRFHead` is exactly the
        head of that paper.
    """

    temperature: Tensor
    residual_variance: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        quality: Callable[[int], QualityEstimator] = NeighborQualityEstimator,
        stand_in: Callable[[dict[str, int], int], StandIn] = RecoveredFeatures,
        hidden_features: int = 256,
        dropout: float = 0.5,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__(num_classes, task)
        self.dims = check_dims(dims)
        check_positive(hidden_features, "hidden_features")
        check_between(dropout, 0.0, 1.0, "dropout")
        self.hidden_features = hidden_features
        self.gather_distributed = gather_distributed
        self.trust = LearnedTrust(self.dims, log_prior=initial_log_prior(len(self.dims)))
        self.estimators = ModuleDict(
            {
                name: build_part(quality, QualityEstimator, "quality", dim)
                for name, dim in self.dims.items()
            }
        )
        self.embed = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in self.dims.items()}
        )
        self.stand_in = build_part(stand_in, StandIn, "stand_in", self.dims, hidden_features)
        self.trunk = nn.Linear(hidden_features, hidden_features)
        self.dropout = nn.Dropout(dropout)
        self.fusion = QualityWeightedFusion()
        self.classifier = nn.Linear(hidden_features, num_classes)
        self.branch_in = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in self.dims.items()}
        )
        self.branches = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(dropout),
            StackedLinear(len(self.dims), hidden_features, hidden_features),
            nn.ReLU(),
            nn.Dropout(dropout),
            StackedLinear(len(self.dims), hidden_features, num_classes),
        )
        self.register_patterns(len(self.candidates))
        if task == "regression":  # for agreement: that of a single modality
            self.register_buffer("residual_variance", torch.ones(num_classes))
        register_identity(self, modalities=list(self.dims), task=task)

    @property
    def candidates(self) -> Candidates:
        """The subsets of modalities that the candidates trust."""
        return self.trust.candidates

    @property
    def queues(self) -> dict[str, FeatureQueue]:
        """The queue of each modality."""
        return {name: estimator.queue for name, estimator in self.estimators.items()}

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> DRFOutput:
        """Predict, and in training mode store the features in the queues.

        Training scores no feature. Its ``log_quality`` is log ½ wherever a modality is present, so
        ``weights``, ``trust`` and ``logits`` are those of a sample with typical intact features.
        """
        if self.training:
            refuse_recompute("DRFHead")
        x, observed = make_safe(features, available, self.dims)
        used = self._hide_modalities(observed) if self.training else observed
        trusted, usable = self.candidates.restrict(used)
        scales, z = self._standardize(x)
        log_quality = self._log_quality(x, observed).where(observed, -torch.inf)
        stand_in = self.stand_in(z, observed, self.embed)
        mask = trusted.to(self.classifier.weight.dtype)
        share = mask / mask.sum(-1, keepdim=True).clamp_min(1)  # averages over trusted modalities
        hidden = self._early(z, stand_in.hidden, mask, share)
        half_logits = torch.stack([self.classifier(hidden), self._late(z, share)], dim=2)
        candidate_logits = self._mix_halves(half_logits)
        agreed = self._agreement(half_logits.detach(), used)
        log_weights = self.trust.log_weights(self._evidence(z, log_quality) + agreed, trusted)
        weights = self.fusion.weights(log_weights, usable)
        logits = einsum(weights.to(hidden.dtype), candidate_logits, "b k, b k c -> b c")
        if not self.training and self.task != "regression":
            logits = logits / self.temperature[self.candidates.pattern(observed), None]
        fused = einsum(weights.to(hidden.dtype), hidden, "b k, b k f -> b f")
        trust = self._by_name(einsum(weights.to(mask.dtype), share, "b k, b k m -> b m"))
        recovered = self._in_feature_units(stand_in.recovered, scales)
        extras = {"half_logits": half_logits, "usable": usable, "agreement": agreed}
        logits, candidate_logits = map(self.in_target_units, (logits, candidate_logits))
        shared = (logits, fused, stand_in.loss, x, candidate_logits, weights, trust)
        return DRFOutput(*shared, self._by_name(log_quality), recovered, extras)

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the mean loss over both halves of all candidates."""
        usable = output.extras["usable"]
        loss, weight = supervision.losses(output.extras["half_logits"])
        loss = loss.mean(2).where(usable, 0.0).sum(1) / usable.sum(1).clamp_min(1)
        return supervision.reduce(loss, weight * usable.any(1))

    def p_values(self, output: DRFOutput) -> dict[str, Tensor]:
        """Return the p-values of each modality, (B,), NaN where it is missing.

        A p-value is the share of intact samples that are at least as harmful, as
        :class:`~robustfusion.LearnedTrust` predicts harm, if trust was learned from damaged
        samples, else the share that are at least as unusual. A p-value of at most 0.05 is an
        alarm, which 5 % of intact samples raise as well. Call :func:`~robustfusion.calibrate`
        before.
        """
        z = self.standardize(output.features)
        log_quality = torch.stack(list(output.log_quality.values()), dim=1)
        learned = self.trust.p_values(z, log_quality).unbind(1)
        p_values = {}
        for (name, estimator), p_value in zip(self.estimators.items(), learned, strict=True):
            log_quality = output.log_quality[name]
            p_value = p_value.where(~p_value.isnan(), estimator.p_value_of(log_quality))
            known = (log_quality > -torch.inf) & ~estimator.mixed
            p_values[name] = p_value.where(known, torch.nan)
        return p_values

    def _hide_modalities(self, observed: Tensor) -> Tensor:
        """Hide some modalities of each sample if there are four or more; at least one remains."""
        if len(self.dims) < 4:
            return observed
        rate = _MAX_HIDDEN_SHARE * torch.rand(observed.shape[0], 1, device=observed.device)
        draw = torch.rand(observed.shape, device=observed.device)
        remaining = draw.where(observed, -1.0).argmax(1, keepdim=True)
        index = torch.arange(observed.shape[1], device=observed.device)
        return observed & ((draw > rate) | (index == remaining))

    def standardize(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return features as the head's layers see them: standardized and clipped at 3."""
        return self._standardize(features)[1]

    def _standardize(
        self, x: Mapping[str, Tensor]
    ) -> tuple[dict[str, Gaussian], dict[str, Tensor]]:
        """Return mean and standard deviation of each modality, and standardized features."""
        dtype, bound, dims = self.classifier.weight.dtype, _MAX_COORDINATE, self.dims
        # All modalities side by side are standardized at once.
        scales = gaussian_of_all([part.moments for part in self.estimators.values()])
        rows = standardize(torch.cat([x[m] for m in dims], dim=1), scales)
        rows = rows.clamp(-bound, bound).to(dtype)
        widths = list(dims.values())
        mean, std, z = (torch.split(part, widths, dim=-1) for part in (*scales, rows))
        by_modality = map(Gaussian, mean, std)
        return dict(zip(dims, by_modality, strict=True)), dict(zip(dims, z, strict=True))

    def _log_quality(self, x: Mapping[str, Tensor], observed: Tensor) -> Tensor:
        """Return the log-quality of each feature, (B or 1, M); in training, store the rows."""
        if not self.training:
            return log_qualities(self.estimators.values(), [x[name] for name in self.estimators])
        for (name, estimator), mask in zip(
            self.estimators.items(), observed.unbind(1), strict=True
        ):
            rows = x[name].detach()
            if self.gather_distributed:
                rows, mask = gather_rows(rows, mask)
            estimator.store(rows, mask)
        return estimator.score_stats.new_full((1, len(self.dims)), _TYPICAL_LOG_QUALITY)

    def _early(
        self, z: Mapping[str, Tensor], stand_in: Tensor, mask: Tensor, share: Tensor
    ) -> Tensor:
        """Return the hidden units of each candidate, (B, K, F)."""
        own = [embed(z[m])[:, None] for m, embed in self.embed.items()]
        # The stand-in of a target is averaged over the sources that the candidate trusts.
        replaced = einsum(1 - mask, share, "b k t, b k s -> b k t s")
        replaced = rearrange(off_diagonal(replaced), "b k t s -> b k (t s)")
        stand_in = rearrange(stand_in, "b t s f -> b (t s) f").to(own[0].dtype)
        # One matrix product sums what all candidates trust and what stands in for the rest.
        parts = torch.cat([*own, stand_in.expand(mask.shape[0], -1, -1)], dim=1)
        hidden = self.dropout(F.relu(torch.cat([mask, replaced], dim=2) @ parts))
        hidden = self.trunk(hidden)
        return cast("Tensor", self.dropout(F.relu(hidden)))

    def _late(self, z: Mapping[str, Tensor], share: Tensor) -> Tensor:
        """Return the mean logits of the trusted modalities' own networks, (B, K, C)."""
        branches = torch.stack([layer(z[m]) for m, layer in self.branch_in.items()])
        logits: Tensor = self.branches(branches)
        return share.to(logits.dtype) @ rearrange(logits, "m b c -> b m c")

    def _mix_halves(self, half_logits: Tensor) -> Tensor:
        """Mix early and late fusion by the learned share, (B, K, 2, C) -> (B, K, C)."""
        early, late = half_logits.unbind(2)
        return torch.lerp(early, late, self.trust.late_share.to(early.dtype))

    def _evidence(self, z: Mapping[str, Tensor], log_quality: Tensor) -> Tensor:
        """Return the evidence for trusting each modality, (B, M)."""
        if self.training:  # what was learned belongs to the features of a finished training
            return log_quality - self.trust.log_prior
        return cast("Tensor", self.trust(z, log_quality))

    def _agreement(self, half_logits: Tensor, used: Tensor) -> Tensor:
        """Return how well the prediction from each modality agrees with that from the others.

        (B, K, 2, C) -> (B, M), see :func:`robustfusion.tasks.agreement`. Two modalities that
        disagree do not show which one is wrong, so for fewer than three it is 0.
        """
        modalities = len(self.dims)
        if modalities < 3:
            return self.trust.bias.new_zeros(used.shape)
        candidate_logits = half_logits.mean(2)
        single = candidate_logits[:, -modalities:]
        # Candidates without one modality are ordered by what they contain: the last one lacks the
        # first modality.
        others = candidate_logits[:, 1 : modalities + 1].flip(1)
        variance = self.residual_variance if self.task == "regression" else None
        agreed = agreement(single, others, self.task, variance)
        return agreed * (used & (used.sum(1, keepdim=True) > 2))

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Split (B, M) into one (B,) per modality."""
        return dict(zip(self.dims, values.unbind(1), strict=True))

    def _in_feature_units(
        self, recovered: Mapping[str, Tensor], scales: Mapping[str, Gaussian]
    ) -> dict[str, dict[str, Tensor]]:
        """Undo the standardization of what was recovered, by target and source."""
        outcome = {}
        for target, standardized in recovered.items():
            sources = [source for source in self.dims if source != target]
            rows = destandardize(standardized, scales[target]).unbind(1)
            outcome[target] = dict(zip(sources, rows, strict=True))
        return outcome
