"""DyMo: use a recovered modality only where it moves the sample closer to a class."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions._losses import squared_error
from reproductions._transformer import ModalityTransformer
from robustfusion._modules import ModuleDict, mlp
from robustfusion.baselines.head import BaselineHead, cross_entropy
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput

TEMPERATURE = 0.1  # The authors' value.
NUM_LAYERS = 2  # The default of LateTransformerHead; the authors' depth is unverified.
MOMENTUM = 0.1  # The momentum of the running means is that of torch's batch normalization.


def log_tail(distance: Tensor, std: Tensor) -> Tensor:
    """Return ``log(2 (1 - Φ(d / σ)))``, the typicality of a distance from the class center."""
    log_upper: Tensor = torch.special.log_ndtr(-distance / std)
    return math.log(2) + log_upper


def reward(
    quality: Tensor, new_quality: Tensor, log_typicality: Tensor, new_log_typicality: Tensor
) -> Tensor:
    """Return the gain ``Γ Q' - Q``, discounted by ``Γ = log g / log g'`` where g' is below g."""
    is_lower = new_log_typicality < log_typicality
    ratio = log_typicality / new_log_typicality.where(is_lower, -1.0)
    return ratio.where(is_lower, 1.0) * new_quality - quality


class DyMoHead(BaselineHead):
    r"""Dynamic modality selection: recover missing modalities, keep those with a reward.

    With the unit vector :math:`h_A` of a sample with the modalities :math:`A`, class prototypes
    :math:`\pi_c`, and class centers :math:`\pi_{A,c}` and their standard deviations
    :math:`\sigma_{A,c}` per subset,

    .. math:: Q_A = \max_c \mathrm{softmax}_c(h_A^\top \pi_c / \tau), \qquad
              g_A = 2\,(1 - \Phi((1 - h_A^\top \pi_{A,\hat y}) / \sigma_{A,\hat y})), \qquad
              R_u = \Gamma_u Q_{A \cup u} - Q_A

    with :math:`\Gamma_u = \log g_A / \log g_{A \cup u}` where typicality fell, else 1. Evaluation
    accepts the recovered modality of the highest reward as long as that is positive; one whose
    reward was negative once is never accepted.

    - Kept: rewards, their discount and the greedy selection, at cosine distance and
      :math:`\tau = 0.1`; a Transformer with one token a modality, a class token and modality
      embeddings; cross-entropy plus that of the prototypes, trained on random subsets.
    - Replaced: the generative model that recovers inputs, trained before and frozen, becomes one
      network per modality over the other modalities' features, trained at the same time by squared
      error and detached from the classifier; one random subset per sample and step instead of
      several for the batch; prototypes, centers and deviations are running means over training,
      where the authors recompute the first each epoch and the others once after training.
    - Unverified: the authors' subset statistics (their code reads them from a file), depth and
      width of the Transformer, and the weights of the two losses per data set.
    - Missing rule: a missing modality is recovered, and enters only if accepted. With everything
      missing nothing is recovered.

    ``loss`` writes the running means in training mode. In a distributed run each rank has its own,
    so wrap the model with ``forward_sync_buffers=False``.

    Other arguments, shapes and errors are those of
    :class:`~robustfusion.baselines.BaselineHead`.

    Args:
        dims: Width of each modality, ``{name: D_m}``; two to eight modalities.
        hidden_features: Width F of tokens and projection, divisible by four.
        prototype_weight: Weight of the prototypes' cross-entropy.
        recovery_weight: Weight of the squared error of the recovered features.

    Shape:
        - ``extras["projected"]``: (B, F), unit vectors
        - ``extras["visible"]``: (B, M) bool, the modalities that were available and not hidden
        - ``extras["accepted"]``: (B, M) bool, the recovered modalities that were accepted

    Example:
        >>> import torch
        >>> from reproductions import DyMoHead
        >>> head = DyMoHead({"text": 3, "image": 4}, num_classes=2).eval()
        >>> features = {"text": torch.randn(5, 3), "image": torch.randn(5, 4)}
        >>> available = {"text": torch.ones(5).bool(), "image": torch.arange(5) < 3}
        >>> head(features, available).extras["accepted"][:3].any().item()
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
        super().__init__(dims, num_classes, modality_dropout=modality_dropout, min_modalities=2)
        if len(self.dims) > 8:  # Each of the 2^M subsets has its own centers.
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
        # Bit m of the index of a subset says whether modality m is in it.
        self.register_buffer("powers", 2 ** torch.arange(len(self.dims)))
        shape = (2 ** len(self.dims), num_classes)
        self.register_buffer("centers", torch.zeros(*shape, hidden_features))
        self.register_buffer("squares", torch.zeros(shape))
        self.register_buffer("updates", torch.zeros(shape, dtype=torch.long))

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Classify; in evaluation mode also from the accepted recovered modalities."""
        visible = self.apply_modality_dropout(mask)
        recovered = self._recover(inputs, visible)
        accepted = torch.zeros_like(mask)
        if not self.training:
            inputs = {
                name: x.where(mask[:, index, None], recovered[name].detach().to(x.dtype))
                for index, (name, x) in enumerate(inputs.items())
            }
            accepted = self._select(inputs, mask) & ~mask
        fused, logits, projected = self._classify(inputs, visible | accepted)
        error = [
            squared_error(recovered[name], inputs[name], mask[:, index])
            for index, name in enumerate(self.dims)
        ]
        aux_loss = self.recovery_weight * torch.stack(error).sum()
        extras = {"projected": projected, "visible": visible, "accepted": accepted}
        return HeadOutput(logits, fused, aux_loss, extras)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Return the cross-entropies and the recovery loss; training mode writes the means."""
        projected, visible = output.extras["projected"], output.extras["visible"]
        prototypes, seen = self._prototypes()
        keep = (seen & visible.any(dim=1)).detach()
        pull = cross_entropy(projected @ prototypes.T / TEMPERATURE, labels, keep)
        total = cross_entropy(output.logits, labels) + self.prototype_weight * pull
        if self.training:
            self._update_means(projected.detach(), visible, labels)
        return total + output.aux_loss

    def _classify(
        self, inputs: Mapping[str, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.transformer(inputs, mask)
        projected = F.normalize(at_least_float32(self.projection(fused)), dim=-1)
        return fused, self.classifier(fused), projected

    def _recover(self, inputs: Mapping[str, Tensor], visible: Tensor) -> dict[str, Tensor]:
        """Recover each modality from the visible ones among the others."""
        recovered = {}
        for index, (name, network) in enumerate(self.recovery.items()):
            others = visible & (torch.arange(len(self.dims), device=visible.device) != index)
            sources = [x.where(others[:, m, None], 0.0) for m, x in enumerate(inputs.values())]
            sources.append(others.to(sources[0].dtype))
            recovered[name] = network(torch.cat(sources, dim=1).detach())
        return recovered

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
            best, index = rewards.max(dim=1, keepdim=True)
            chosen = one_more[index.squeeze(1)] & (best > 0)
            taken, refused = taken | chosen, refused | chosen
            quality = torch.where(best > 0, new_quality.gather(1, index), quality)
            typicality = torch.where(best > 0, new_typicality.gather(1, index), typicality)
        return taken

    def _score(self, inputs: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the confidence by the prototypes and the log-typicality, (B,) and (B,)."""
        _, logits, projected = self._classify(inputs, mask)
        prototypes, _ = self._prototypes()
        confidence = (projected @ prototypes.T / TEMPERATURE).softmax(dim=-1).amax(dim=-1)
        subset, label = (mask * self.powers).sum(dim=1), logits.argmax(dim=-1)
        std = at_least_float32(self.squares[subset, label]).sqrt()
        center = at_least_float32(self.centers[subset, label])
        distance = 1 - (projected * center).sum(dim=-1)
        known = std > 0  # Before that, the typicality of a distance is undefined.
        typicality = log_tail(distance.clamp_min(0), std.where(known, 1.0))
        return confidence, typicality.where(known, 0.0)

    def _prototypes(self) -> tuple[Tensor, Tensor]:
        """Average each class center over the subsets seen, (C, F), and say if all were seen."""
        seen = (self.updates > 0).unsqueeze(-1)
        total = at_least_float32(self.centers).where(seen, 0.0).sum(dim=0)
        count = seen.sum(dim=0)
        return total / count.clamp_min(1), (count > 0).all()

    @torch.no_grad()
    def _update_means(self, projected: Tensor, visible: Tensor, labels: Tensor) -> None:
        cell = (visible * self.powers).sum(dim=1) * self.centers.shape[1] + labels
        keep = visible.any(dim=1).to(self.centers.dtype)
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
