"""DRF exactly as published: equations (1) to (16), to the letter."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustfusion._identity import register_identity
from robustfusion._inputs import make_safe
from robustfusion._modules import ModuleDict, arguments_of, mlp
from robustfusion._state import refuse_recompute, snapshot
from robustfusion._task_head import Supervision, TaskHead
from robustfusion._validation import check_dims, check_features
from robustfusion.candidates import Candidates
from robustfusion.conversion import ModalityConverter
from robustfusion.distributed import gather_rows
from robustfusion.feature_queue import FeatureQueue, admit_above_mean, admit_all
from robustfusion.functional import Gaussian, fit_gaussian
from robustfusion.fusion import QualityWeightedFusion
from robustfusion.gaussian_quality import GaussianQualityEstimator
from robustfusion.losses import DistributionConstraintLoss, DistributionRecoveryLoss
from robustfusion.output import DRFOutput
from robustfusion.tasks import Task

_QUEUE_LENGTH = 512  # the paper's L
_WIDTH = 768  # width of F; the paper names none, this is the width of BERT's and ViT's features


class CrossModalRecovery(nn.Module):
    r"""Convert every modality into every other one: ``recovered[target][source]``.

    With ``detach``, a converter's input carries no gradient, so that recovery cannot pull the
    encoders of two modalities towards each other or shrink their features, which is the easiest
    way to make one predict the other.

    Args:
        dims: Feature width of each modality, at least two.
        converter: Factory of a converter, called with (in_features, out_features).
        detach: Whether converters see their input without gradient. The paper does not detach.

    Reference:
        Section 3.3 of https://arxiv.org/abs/2511.18751.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        converter: Callable[[int, int], nn.Module] = ModalityConverter,
        detach: bool = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        self.detach = detach
        self.converters = ModuleDict[ModuleDict[nn.Module]](
            {
                target: ModuleDict(
                    {
                        source: converter(self.dims[source], self.dims[target])
                        for source in self.dims
                        if source != target
                    }
                )
                for target in self.dims
            }
        )

    def convert(self, source: str, target: str, features: Tensor) -> Tensor:
        """Convert features of one modality into another, with gradient to the converter."""
        converted: Tensor = self.converters[target][source](
            features.detach() if self.detach else features
        )
        return converted

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return every recovery; rows of a missing source must hold a finite placeholder."""
        check_features(features, self.dims)
        return {
            target: {source: self.convert(source, target, features[source]) for source in sources}
            for target, sources in self.converters.items()
        }

    extra_repr = arguments_of


class PaperDRFHead(TaskHead):
    r"""Classify with the DRF head exactly as the paper states it.

    Each sample expands into candidates: the complete sample, and each smaller set of modalities
    with the rest recovered. A candidate's weight is the product of the densities (9) of its real
    and recovered features, unnormalized (12). The loss is (16): cross-entropy plus the
    distribution constraint (3) plus the recovery loss (8). A feature enters its queue if it is
    denser than the queue's mean (13).

    Use it to reproduce or study the paper, with features of the scale that (9) expects: its peak
    is :math:`1 / (\sqrt{2\pi}\,\sigma)`. At σ = 14, typical of frozen encoders, the weights (12)
    are near 1e-3, so the fused vector starts near zero and the classifier learns little but the
    class prior at first. Near σ = 0.4 they are near 1;
    ``Standardize(dim, covariance_type="spherical", target_std=0.4)`` behind each encoder gives
    that. Loss and gradients are finite for all features. But where features hardly differ, weights
    reach 1e5 for two modalities, and where they are thousands apart, gradients reach 1e13, and one
    plain step along those makes the next loss infinite: clip the norm of the gradients.
    :class:`~robustfusion.DRFHead` is the default, which needs no such care.

    Args:
        dims: Feature width of each modality, at least two.
        num_classes: Number C of classes, labels or numbers.
        task: "multiclass", as in the paper, or "multilabel" or "regression", for which the
            cross-entropy in (16) becomes the binary cross-entropy or the squared error.
        sample_recovery: Keep the sample-based loss (4).
        distribution_recovery: Keep the distribution-based loss (7).
        gaussian_quality: Weight by density. Without it every density counts as 1 and every row
            enters the queues.
        expansion: Expand each sample into candidates. Without it there is one candidate, whose
            missing modalities are recovered from the available ones.
        distribution_constraint: Keep the constraint (3).

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool, True where the
          modality is present; a modality that ``available`` leaves out is present everywhere
        - Output: :class:`~robustfusion.DRFOutput`; ``target``: see :mod:`robustfusion.tasks`

    Raises:
        ValueError: If a modality is missing, unknown or of the wrong shape, or the target does not
            fit the task.
        TypeError: If a dtype does not fit.

    Example:
        >>> import torch
        >>> from robustfusion import PaperDRFHead
        >>> head = PaperDRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> out = head({"image": torch.randn(16, 8), "text": torch.randn(16, 4)})
        >>> loss = head.loss(out, torch.randint(3, (16,)))
        >>> loss.backward()

    Note:
        Choices where the paper is silent: F has ReLU between its three layers and one width; terms
        average over the rows they concern and sum over modalities; below two queued rows a queue
        admits everything and keeps the moments of N(0, I); from three modalities on, recoveries
        from several sources are averaged; from four on, candidates are limited
        (``head.candidates``). A row with NaN, inf or a value beyond 1e9 counts as missing.

    Reference:
        https://arxiv.org/abs/2511.18751
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        task: Task = "multiclass",
        sample_recovery: bool = True,
        distribution_recovery: bool = True,
        gaussian_quality: bool = True,
        expansion: bool = True,
        distribution_constraint: bool = True,
    ) -> None:
        super().__init__(num_classes, task)
        self.dims = check_dims(dims)
        self.gaussian_quality = gaussian_quality
        self.expansion = expansion
        self.candidates = Candidates(self.dims, None if expansion else [tuple(self.dims)])
        self.estimators = ModuleDict(
            {
                m: GaussianQualityEstimator(dim, capacity=_QUEUE_LENGTH)
                for m, dim in self.dims.items()
            }
        )
        self.recovery = CrossModalRecovery(self.dims, detach=False)
        self.fusion = QualityWeightedFusion(normalize=False)
        self.network = mlp(sum(self.dims.values()), _WIDTH, _WIDTH, _WIDTH)
        self.classifier = nn.Linear(_WIDTH, num_classes)
        self.recovery_loss = DistributionRecoveryLoss(
            sample_weight=float(sample_recovery), distribution_weight=float(distribution_recovery)
        )
        self.constraint_loss = DistributionConstraintLoss() if distribution_constraint else None
        register_identity(
            self,
            modalities=list(self.dims),
            gaussian_quality=gaussian_quality,
            expansion=expansion,
            task=task,
        )

    @property
    def queues(self) -> dict[str, FeatureQueue]:
        """The queue of each modality."""
        return {name: estimator.queue for name, estimator in self.estimators.items()}

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> DRFOutput:
        """Predict, and in training mode update the queues."""
        if self.training:
            refuse_recompute("PaperDRFHead")
        x, observed = make_safe(features, available, self.dims, largest=1e9)
        present = dict(zip(self.dims, observed.unbind(1), strict=True))
        x = {name: rows.to(self.classifier.weight.dtype) for name, rows in x.items()}
        recovered = self.recovery(x)

        vectors, log_quality, usable = [], [], []
        for trusted in self.candidates:
            completed = [self._complete(m, trusted, x, recovered, present) for m in self.dims]
            vectors.append(self.network(torch.cat([part for part, _ in completed], dim=-1)))
            log_quality.append(torch.stack([log_prob for _, log_prob in completed]).sum(0))
            masks = torch.stack([present[name] for name in trusted])
            usable.append(masks.all(0) if self.expansion else masks.any(0))
        candidates, mask = torch.stack(vectors, dim=1), torch.stack(usable, dim=1)
        weights = self.fusion.weights(torch.stack(log_quality, dim=1), mask)
        fused = self.fusion(candidates, torch.stack(log_quality, dim=1), mask)

        scores = self.classifier(fused)
        output = DRFOutput(
            logits=self.in_target_units(scores),
            fused=fused,
            aux_loss=self._aux_loss(x, present, recovered),
            features=x,
            candidate_logits=self.in_target_units(self.classifier(candidates)),
            weights=weights,
            trust=self._trust(weights, present),
            log_quality={
                name: self._log_prob(name, x[name]).where(present[name], -torch.inf)
                for name in self.dims
            },
            recovered=recovered,
            extras={"scores": scores} if self.task == "regression" else {},
        )
        if self.training:
            self._update(x, present)
        return output

    def supervised_loss(self, output: Any, supervision: Supervision) -> Tensor:
        """Return the first term of the objective (16)."""
        return supervision.mean(self.scores(output))

    def _log_prob(self, name: str, features: Tensor) -> Tensor:
        """Return (9), (10), (11); 0 where the ablation treats every density as 1."""
        log_prob = self.estimators[name].log_prob(features)
        return log_prob if self.gaussian_quality else torch.zeros_like(log_prob)

    def _complete(
        self,
        name: str,
        trusted: tuple[str, ...],
        x: Mapping[str, Tensor],
        recovered: Mapping[str, Mapping[str, Tensor]],
        present: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Features and log-density of one modality in the candidate that trusts ``trusted``."""
        sources = [source for source in trusted if source != name]
        if name in trusted and self.expansion:
            return x[name], self._log_prob(name, x[name])
        # The average over available sources; with two modalities there is only one.
        mask = torch.stack([present[source] for source in sources], dim=1)[..., None]
        by_source = torch.stack([recovered[name][source] for source in sources], dim=1)
        filled = by_source.where(mask, 0.0).sum(1) / mask.sum(1).clamp_min(1)
        if not self.expansion:
            filled = torch.where(present[name][:, None], x[name], filled)
        return filled, self._log_prob(name, filled)

    def _trust(self, weights: Tensor, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Divide each candidate's weight equally among the available modalities it trusts."""
        mask = self.candidates.mask * torch.stack(list(present.values()), dim=1)[:, None]
        share = mask / mask.sum(-1, keepdim=True).clamp_min(1)
        trust = (weights[..., None] * share).sum(1)
        return dict(zip(self.dims, trust.unbind(1), strict=True))

    def _aux_loss(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        recovered: Mapping[str, Mapping[str, Tensor]],
    ) -> Tensor:
        """Return (3) plus (8)."""
        reference = {name: estimator.distribution for name, estimator in self.estimators.items()}
        loss = torch.zeros((), device=next(iter(x.values())).device)
        for target in self.dims:
            others = [name for name in self.dims if name != target]
            if self.constraint_loss is not None:
                loss = loss + self.constraint_loss(
                    x[target],
                    reference[target].mean,
                    [reference[name].mean for name in others],
                    present[target],
                )
            for source in others:
                loss = loss + self.recovery_loss(
                    recovered[target][source],
                    x[target],
                    self._converted(source, target, reference[target]),
                    reference[target],
                    paired=present[source] & present[target],
                )
        return loss

    def _converted(self, source: str, target: str, reference: Gaussian) -> Gaussian:
        """Return (5), (6), or the reference, which gives no loss, if the queue is short."""
        if not self.recovery_loss.distribution_weight:
            return reference
        queue = self.estimators[source].queue
        stored, valid = snapshot(queue.storage, training=self.training), queue.valid
        generated = fit_gaussian(self.recovery.convert(source, target, stored), valid)
        enough = valid.sum() >= self.estimators[source].min_samples
        return Gaussian(
            torch.where(enough, generated.mean, reference.mean),
            torch.where(enough, generated.scale, reference.scale),
        )

    @torch.no_grad()
    def _update(self, x: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        """Apply (13), then (1) and (2) for the next step: no sample scores against itself."""
        admit = admit_above_mean if self.gaussian_quality else admit_all
        for name, estimator in self.estimators.items():
            rows, mask = gather_rows(x[name], present[name])
            queue = estimator.queue
            accepted = admit(
                estimator.log_prob(rows), estimator.log_prob(queue.storage), queue.valid
            )
            short = queue.count < estimator.min_samples
            estimator.observe(rows, mask & (accepted | short))
