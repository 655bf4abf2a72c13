"""The DRF head: features in, a robust prediction out."""

import math
from collections.abc import Callable, Mapping

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion._inputs import make_safe
from robustfusion._modules import ModuleDict
from robustfusion._state import refuse_recompute
from robustfusion._validation import check_between, check_dims, check_labels, check_positive
from robustfusion.candidates import distinct_candidates, enumerate_candidates
from robustfusion.distributed import gather_rows
from robustfusion.feature_queue import FeatureQueue
from robustfusion.functional import masked_mean
from robustfusion.fusion import QualityWeightedFusion
from robustfusion.neighbor_quality import Look, NeighborQualityEstimator
from robustfusion.output import DRFOutput
from robustfusion.paper import PaperDRFHead

_MEMBERS = 4


class DRFHead(nn.Module):
    r"""Classify from the features of several modalities, any of which may be missing or poor.

    The paper's idea with the parts that measurement chose. Each modality keeps a queue of its
    features; the queue standardises them and says how likely a new one is intact
    (:class:`~robustfusion.NeighborQualityEstimator`). A sample expands into candidates :math:`S`,
    each of which trusts some modalities and stands a learned token in for the others:

    .. math::
        h_S = \operatorname{ReLU}\Big(\sum_{m \in S} W_m z_m + \sum_{m \notin S} t_m\Big), \qquad
        w_S = \operatorname{softmax}_S \sum_{m \in S} \ell_m, \qquad
        \hat y = W \sum_S w_S h_S + b

    with standardised features :math:`z` and log-odds :math:`\ell` of being intact. The weights are
    the probabilities that exactly the modalities in :math:`S` are intact, so a modality whose
    corruption shows in its features counts as a missing one. Where at least three
    modalities are there, :math:`\ell_m` also holds how well the prediction from m alone agrees
    with that of the others: a feature from another sample is typical, but contradicts them.

    Training supervises every candidate, not the fused prediction; the hidden units form four
    blocks that are supervised one by one, as an ensemble that shares its input layer. From four
    modalities on, some are dropped at random, since not every subset is a candidate. A row that
    holds NaN, inf or a value beyond 1e9 counts as missing. A sample without any modality gets the
    classifier's bias.

    Args:
        dims: Feature width of each modality, at least two.
        num_classes: Number of classes C.
        hidden_features: Width F of the fused vector, a multiple of 4.
        dropout: Probability of dropping a hidden unit in training.
        quality: Factory of a quality estimator, called with the width of a modality.
        gather_distributed: Whether queues take the rows of all ranks. Then every rank holds the
            same state and DDP's default buffer broadcast is harmless; local queues need
            ``forward_sync_buffers=False`` (``broadcast_buffers=False`` before torch 2.13).

    Attributes:
        candidates: The modalities that each candidate trusts: all, all but one, one alone.
        queues: The :class:`~robustfusion.FeatureQueue` of each modality.

    Shape:
        - ``features[name]``: (B, dims[name]); ``available[name]``: (B,) bool
        - Output: :class:`~robustfusion.DRFOutput`; ``labels``: (B,) long

    Raises:
        ValueError: If a modality is missing, unknown or of the wrong shape, or a label too large.
        TypeError: If a dtype does not fit.

    Example:
        >>> head = DRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> features = {"image": torch.randn(16, 8), "text": torch.randn(16, 4)}
        >>> available = {"image": torch.arange(16) > 3, "text": torch.ones(16, dtype=torch.bool)}
        >>> out = head(features, available)
        >>> loss = head.loss(out, torch.randint(3, (16,)))
        >>> loss.backward()

    Reference:
        After https://arxiv.org/abs/2511.18751; :meth:`paper` builds that paper's head.
    """

    trusted: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 256,
        dropout: float = 0.5,
        quality: Callable[[int], NeighborQualityEstimator] = NeighborQualityEstimator,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__()
        self.dims = check_dims(dims)
        check_positive(num_classes, "num_classes")
        check_positive(hidden_features, "hidden_features")
        check_between(dropout, 0.0, 1.0, "dropout")
        if hidden_features % _MEMBERS:
            raise ValueError(
                f"hidden_features must be a multiple of {_MEMBERS}, got {hidden_features}"
            )
        self.num_classes = num_classes
        self.hidden_features = hidden_features
        self.gather_distributed = gather_distributed
        self.candidates = enumerate_candidates(self.dims)
        trusted = [[name in subset for name in self.dims] for subset in self.candidates]
        # Persistent, or a head made without storage would not get it back from its state dict.
        self.register_buffer("trusted", torch.tensor(trusted))
        self.estimators = ModuleDict({name: quality(dim) for name, dim in self.dims.items()})
        self.embed = ModuleDict(
            {name: nn.Linear(dim, hidden_features) for name, dim in self.dims.items()}
        )
        self.tokens = nn.Parameter(torch.zeros(len(self.dims), hidden_features))
        self.dropout = nn.Dropout(dropout)
        self.fusion = QualityWeightedFusion()
        self.classifier = nn.Linear(hidden_features, num_classes)

    @classmethod
    def paper(
        cls,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        sample_recovery: bool = True,
        distribution_recovery: bool = True,
        gaussian_quality: bool = True,
        expansion: bool = True,
        distribution_constraint: bool = True,
    ) -> PaperDRFHead:
        """Build the paper's equations to the letter; see :class:`~robustfusion.PaperDRFHead`.

        Each switch that is set to ``False`` is one ablation of the paper's Table 4.
        """
        return PaperDRFHead(
            dims,
            num_classes,
            sample_recovery=sample_recovery,
            distribution_recovery=distribution_recovery,
            gaussian_quality=gaussian_quality,
            expansion=expansion,
            distribution_constraint=distribution_constraint,
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
            refuse_recompute("DRFHead")
        x, present = make_safe(features, available, self.dims)
        here = torch.stack(list(present.values()), dim=1)
        shown = self._drop_modalities(here) if self.training else here
        members, usable = distinct_candidates(self.trusted, shown)

        embedded = torch.stack(
            [
                self.embed[m](e.standardize(x[m]).to(self.tokens.dtype))
                for m, e in self.estimators.items()
            ],
            dim=1,
        )
        # One matrix product per modality, shared by all candidates.
        mixing = members.to(embedded.dtype)
        hidden = mixing @ embedded + (1 - mixing) @ self.tokens.to(embedded.dtype)
        hidden = self.dropout(F.relu(hidden))
        member_logits = self._member_logits(hidden) if self.training else None
        candidate_logits = (
            self.classifier(hidden) if member_logits is None else member_logits.mean(2)
        )

        looks = {m: e.look(x[m].detach()) for m, e in self.estimators.items()}
        odds = torch.stack([e.log_odds(looks[m].score) for m, e in self.estimators.items()], dim=1)
        odds = odds + self._agreement(candidate_logits.detach(), shown)
        # Not a matrix product: autocast would round log-odds to half precision.
        log_weight = (members * odds[:, None]).sum(-1)
        weights = self.fusion.weights(log_weight, usable)
        fused = (weights.to(hidden.dtype)[:, None] @ hidden).squeeze(1)
        log_quality = F.logsigmoid(odds).where(here, -torch.inf)
        output = DRFOutput(
            logits=self.classifier(fused),
            fused=fused,
            features=x,
            candidate_logits=candidate_logits,
            weights=weights,
            log_quality=dict(zip(self.dims, log_quality.unbind(1), strict=True)),
            recovered={},
            aux_loss=torch.zeros((), dtype=weights.dtype, device=fused.device),
            usable=usable,
            member_logits=member_logits,
        )
        if self.training:
            self._observe(x, present, looks)
        return output

    def loss(self, output: DRFOutput, labels: Tensor) -> Tensor:
        """Return the training objective: the mean cross-entropy of the members of candidates."""
        check_labels(labels, output.usable.shape[0], self.num_classes)
        members = output.member_logits
        logits = output.candidate_logits[:, :, None] if members is None else members
        target = labels[:, None, None].expand(logits.shape[:3])
        loss = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        loss = loss.view(target.shape).mean(2).where(output.usable, 0.0)
        per_sample = loss.sum(1) / output.usable.sum(1).clamp_min(1)
        return masked_mean(per_sample, output.usable.any(1)) + output.aux_loss

    def _member_logits(self, hidden: Tensor) -> Tensor:
        """The prediction of each block of hidden units alone, (B, K, F) -> (B, K, E, C)."""
        blocks = rearrange(hidden, "b k (e f) -> b k e f", e=_MEMBERS)
        # Each block stands for the whole, so its share of the weights is scaled up; the mean of
        # the members is then what the classifier says of all hidden units together.
        weight = _MEMBERS * rearrange(self.classifier.weight, "c (e f) -> c e f", e=_MEMBERS)
        return einsum(blocks, weight, "b k e f, c e f -> b k e c") + self.classifier.bias

    def _drop_modalities(self, here: Tensor) -> Tensor:
        """From four modalities on, hide some of each sample, at least one stays."""
        if len(self.dims) < 4:
            return here
        rate = 0.8 * torch.rand(here.shape[0], 1, device=here.device)
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

    @torch.no_grad()
    def _observe(
        self,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        looks: Mapping[str, Look],
    ) -> None:
        """Update queues and calibration, after this batch was scored against what they held."""
        for name, estimator in self.estimators.items():
            if self.gather_distributed:
                rows, mask = gather_rows(x[name], present[name])
                look = looks[name] if rows is x[name] else None
            else:
                rows, mask, look = x[name], present[name], looks[name]
            estimator.observe(rows, mask, look=look)
