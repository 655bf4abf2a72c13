"""DyMo: let a recovered modality in only where it brings the sample nearer to a class."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfusion._modules import ModuleDict, mlp
from robustfusion.baselines.head import BaselineHead, cross_entropy, squared_error
from robustfusion.baselines.transformer import ModalityTransformer
from robustfusion.functional import at_least_float32

TEMPERATURE = 0.1  # the authors'
NUM_LAYERS = 2  # as LateTransformerHead has unless told; the authors' depth is unverified
MOMENTUM = 0.1  # of the running means, as of torch's batch normalization


def log_tail(distance: Tensor, spread: Tensor) -> Tensor:
    """Log of ``2 (1 - Φ(d / σ))``, how usual a distance from the class center is; at most 0."""
    log_upper: Tensor = torch.special.log_ndtr(-distance / spread)
    return math.log(2) + log_upper


def reward(
    quality: Tensor, new_quality: Tensor, log_typicality: Tensor, new_log_typicality: Tensor
) -> Tensor:
    """``Γ Q' - Q``: confidence won, discounted by ``Γ = log g / log g'`` where g' is below g."""
    less = new_log_typicality < log_typicality
    ratio = log_typicality / new_log_typicality.where(less, -1.0)
    return ratio.where(less, 1.0) * new_quality - quality


class DyMoOutput(NamedTuple):
    """Output of :class:`DyMoHead`.

    ``projected`` (B, F) are unit vectors; ``shown`` (B, M) is what was there and not hidden,
    ``accepted`` (B, M) which recovered modalities were let in, both in the order of ``dims``.
    """

    logits: Tensor
    fused: Tensor
    aux_loss: Tensor
    projected: Tensor
    shown: Tensor
    accepted: Tensor


class DyMoHead(BaselineHead[DyMoOutput]):
    r"""Dynamic modality selection: recover what is missing, keep what pays.

    With the unit vector :math:`h_A` of a sample with the modalities :math:`A`, class prototypes
    :math:`\pi_c`, and class centers :math:`\pi_{A,c}` and spreads :math:`\sigma_{A,c}` per subset,

    .. math:: Q_A = \max_c \mathrm{softmax}_c(h_A^\top \pi_c / \tau), \qquad
              g_A = 2\,(1 - \Phi((1 - h_A^\top \pi_{A,\hat y}) / \sigma_{A,\hat y})), \qquad
              R_u = \Gamma_u Q_{A \cup u} - Q_A

    with :math:`\Gamma_u = \log g_A / \log g_{A \cup u}` where typicality fell, else 1. Evaluation
    lets the recovered modality of the highest reward in, while that is positive; one whose reward
    is negative is out for good.

    - Kept: rewards, their discount and the greedy selection, at cosine distance and
      :math:`\tau = 0.1`; a Transformer with one token a modality, a class token and modality
      embeddings; cross-entropy plus that of the prototypes, trained on random subsets.
    - Replaced: the generative model that recovers inputs, trained before and frozen, becomes one
      network per modality over the other modalities' features, trained along by squared error and
      detached from the classifier; one random subset per row and step instead of several for the
      batch; prototypes, centers and spreads are running means over training, where the authors
      recompute the first each epoch and the others once after training.
    - Unverified: the authors' subset statistics (their code reads them from a file), depth and
      width of the Transformer, and the weights of the two losses per data set.
    - Missing rule: what is missing is recovered, and counts only if let in. With everything
      missing nothing is recovered.

    ``loss`` writes the running means in training mode. In a distributed run each rank keeps its
    own: wrap with ``forward_sync_buffers=False``.

    Other arguments, shapes, errors: :class:`BaselineHead`, :class:`DyMoOutput`.

    Args:
        dims: Width of each modality, ``{name: D_m}``; two to eight modalities.
        hidden_features: Width F of tokens and projection, divisible by four.
        prototype_weight: Weight of the prototypes' cross-entropy.
        recovery_weight: Weight of the squared error of what is recovered.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import DyMoHead
        >>> head = DyMoHead({"text": 3, "image": 4}, num_classes=2).eval()
        >>> features = {"text": torch.randn(5, 3), "image": torch.randn(5, 4)}
        >>> available = {"text": torch.ones(5).bool(), "image": torch.arange(5) < 3}
        >>> head(features, available).accepted[:3].any().item()
        False

    Reference:
        Du et al., "Inference-Time Dynamic Modality Selection for Incomplete Multimodal
        Classification", ICLR 2026, https://arxiv.org/abs/2601.22853.
    """

    powers: Tensor
    centers: Tensor
    squares: Tensor
    updates: Tensor

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 128,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
        prototype_weight: float = 1.0,
        recovery_weight: float = 1.0,
    ) -> None:
        super().__init__(dims, num_classes, modality_dropout=modality_dropout, fewest=2)
        if len(self.dims) > 8:  # each of the 2^M subsets has centers of its own
            raise ValueError(f"dims must name at most 8 modalities, got {len(self.dims)}")
        self.prototype_weight = prototype_weight
        self.recovery_weight = recovery_weight
        width = sum(self.dims.values()) + len(self.dims)
        self.recovery = ModuleDict(
            {name: mlp(width, hidden_features, dim) for name, dim in self.dims.items()}
        )
        self.transformer = ModalityTransformer(
            self.dims, hidden_features=hidden_features, num_layers=NUM_LAYERS, dropout=dropout
        )
        self.projection = nn.Linear(hidden_features, hidden_features)
        self.classifier = nn.Linear(hidden_features, num_classes)
        # A subset's number has bit m set if modality m is in it.
        self.register_buffer("powers", 2 ** torch.arange(len(self.dims)))
        shape = (2 ** len(self.dims), num_classes)
        self.register_buffer("centers", torch.zeros(*shape, hidden_features))
        self.register_buffer("squares", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros(shape, dtype=torch.long))

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> DyMoOutput:
        """Classify; in evaluation mode also from the recovered modalities that pay."""
        shown = self.hide_some(mask)
        recovered = self._recover(inputs, shown)
        accepted = torch.zeros_like(mask)
        if not self.training:
            inputs = {
                name: x.where(mask[:, index, None], recovered[name].detach().to(x.dtype))
                for index, (name, x) in enumerate(inputs.items())
            }
            accepted = self._select(inputs, mask) & ~mask
        fused, logits, projected = self._classify(inputs, shown | accepted)
        error = [
            squared_error(recovered[name], inputs[name], mask[:, index])
            for index, name in enumerate(self.dims)
        ]
        aux_loss = self.recovery_weight * torch.stack(error).sum()
        return DyMoOutput(logits, fused, aux_loss, projected, shown, accepted)

    def loss(self, output: DyMoOutput, labels: Tensor) -> Tensor:
        """Cross-entropies of classifier and prototypes, and recovery; in training mode writes."""
        prototypes, seen = self._prototypes()
        keep = (seen & output.shown.any(dim=1)).detach()
        pull = cross_entropy(output.projected @ prototypes.T / TEMPERATURE, labels, keep)
        total = cross_entropy(output.logits, labels) + self.prototype_weight * pull
        if self.training:
            self._remember(output.projected.detach(), output.shown, labels)
        return total + output.aux_loss

    def _classify(
        self, inputs: Mapping[str, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.transformer(inputs, mask)
        projected = F.normalize(at_least_float32(self.projection(fused)), dim=-1)
        return fused, self.classifier(fused), projected

    def _recover(self, inputs: Mapping[str, Tensor], shown: Tensor) -> dict[str, Tensor]:
        """Each modality from those shown of the others."""
        made = {}
        for index, (name, network) in enumerate(self.recovery.items()):
            others = shown & (torch.arange(len(self.dims), device=shown.device) != index)
            given = [x.where(others[:, m, None], 0.0) for m, x in enumerate(inputs.values())]
            given.append(others.to(given[0].dtype))
            made[name] = network(torch.cat(given, dim=1).detach())
        return made

    @torch.no_grad()
    def _select(self, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Add recovered modalities one by one while a reward is positive; (B, M)."""
        number = len(self.dims)
        one_more = torch.eye(number, dtype=torch.bool, device=mask.device)
        repeated = {name: x.repeat_interleave(number, 0) for name, x in inputs.items()}
        taken, refused = mask, ~mask.any(dim=1, keepdim=True) | mask
        quality, typicality = (x[:, None] for x in self._score(inputs, taken))
        for _ in range(number - 1):
            trial = (taken.unsqueeze(1) | one_more).flatten(0, 1)
            new_quality, new_typicality = (
                x.view(mask.shape) for x in self._score(repeated, trial)
            )
            rewards = reward(quality, new_quality, typicality, new_typicality)
            refused = refused | (rewards < 0)
            rewards = rewards.where(~refused, 0.0)
            best, place = rewards.max(dim=1, keepdim=True)
            chosen = one_more[place.squeeze(1)] & (best > 0)
            taken, refused = taken | chosen, refused | chosen
            quality = torch.where(best > 0, new_quality.gather(1, place), quality)
            typicality = torch.where(best > 0, new_typicality.gather(1, place), typicality)
        return taken

    def _score(self, inputs: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence in the space of prototypes and log-typicality, (B,) and (B,)."""
        _, logits, projected = self._classify(inputs, mask)
        prototypes, _ = self._prototypes()
        confidence = (projected @ prototypes.T / TEMPERATURE).softmax(dim=-1).amax(dim=-1)
        subset, label = (mask * self.powers).sum(dim=1), logits.argmax(dim=-1)
        spread = at_least_float32(self.squares[subset, label]).sqrt()
        center = at_least_float32(self.centers[subset, label])
        distance = 1 - (projected * center).sum(dim=-1)
        known = spread > 0  # else nothing is told of how usual it is
        typicality = log_tail(distance.clamp_min(0), spread.where(known, 1.0))
        return confidence, typicality.where(known, 0.0)

    def _prototypes(self) -> tuple[Tensor, Tensor]:
        """Mean center of each class over the subsets it was seen in (C, F), and if all were."""
        seen = (self.updates > 0).unsqueeze(-1)
        total = at_least_float32(self.centers).where(seen, 0.0).sum(dim=0)
        count = seen.sum(dim=0)
        return total / count.clamp_min(1), (count > 0).all()

    @torch.no_grad()
    def _remember(self, projected: Tensor, shown: Tensor, labels: Tensor) -> None:
        cell = (shown * self.powers).sum(dim=1) * self.centers.shape[1] + labels
        keep = shown.any(dim=1).to(self.centers.dtype)
        rows = projected.to(self.centers.dtype)
        centers, squares, updates = (
            x.flatten(0, 1) for x in (self.centers, self.squares, self.updates)
        )
        number = torch.zeros_like(squares).index_add_(0, cell, keep)
        updates.add_(number > 0)
        rate = torch.where(number > 0, (1 / updates.clamp_min(1)).clamp_min(MOMENTUM), 0.0)
        mean = torch.zeros_like(centers).index_add_(0, cell, rows * keep.unsqueeze(1))
        mean = mean / number.clamp_min(1).unsqueeze(1)
        centers.add_(rate.unsqueeze(1).to(mean.dtype) * (mean - centers))
        distance = 1 - (rows * centers[cell]).sum(dim=-1)
        square = torch.zeros_like(squares).index_add_(0, cell, keep * distance.square())
        squares.add_(rate.to(square.dtype) * (square / number.clamp_min(1) - squares))
