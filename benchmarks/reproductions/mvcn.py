"""MVCN-style: sparse text-guided fusion, congruent modalities, calibrated labels."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions._pooling import CLOSED, gated_share, masked_token_mean
from reproductions._tokens import TokenHead, pick_text, projections
from reproductions._transformer import MultiHeadAttention
from robustfusion._modules import ModuleDict, mlp
from robustfusion._validation import check_labels
from robustfusion.baselines._branches import column_means, normalize, unimodal_losses, weighted_sum
from robustfusion.functional import at_least_float32, masked_mean
from robustfusion.output import HeadOutput

TEMPERATURE = 0.1  # Our choice: the paper's value is unverified.


def keep_gate(scores: Tensor, training: bool) -> Tensor:
    """Return 0 or 1 per token: training draws with a straight-through gradient, else rounds."""
    scores = at_least_float32(scores)
    if not training:
        return (scores > 0).to(scores.dtype)
    uniform = torch.rand(scores.shape, device=scores.device).clamp_(1e-6, 1 - 1e-6)
    soft = torch.sigmoid(scores + torch.logit(uniform))
    return (soft > 0.5).to(soft.dtype) + soft - soft.detach()


def divergence(log_probability: Tensor, available: Tensor) -> Tensor:
    """Average ``KL(p_m || p̄)`` over the available distributions; (B, M, C), (B, M) -> (B,).

    This is the Jensen-Shannon divergence: zero where they agree or only one is available.
    """
    weights = normalize(available.to(log_probability.dtype))
    mean = weighted_sum(log_probability.exp(), weights)
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log().unsqueeze(1)
    terms = (log_probability.exp() * (log_probability - log_mean)).sum(dim=-1)
    return (weights * terms).sum(dim=1)


def disagreement(probability: Tensor, available: Tensor) -> Tensor:
    """Average the total variation over the available pairs; (B, M, C), (B, M) -> (B,)."""
    distance = (probability.unsqueeze(1) - probability.unsqueeze(2)).abs().sum(dim=-1) / 2
    pairs = distance.where(available.unsqueeze(1) & available.unsqueeze(2), 0.0)
    count = available.sum(dim=1)
    return pairs.sum(dim=(1, 2)) / (count * (count - 1)).clamp_min(1)


class MVCNHead(TokenHead):
    r"""Multi-view calibration network, reconstructed from an abstract-level description.

    - Fusion: text tokens attend to the other modality's tokens, those with gate 0 left out,
      :math:`\tilde A_{ij} \propto e^{A_{ij}} G_j`, :math:`G_j` drawn from
      :math:`\mathrm{MLP}([v_j; \bar t])`.
    - Congruity: :math:`p_m = \mathrm{softmax}_k(\cos(h_m, c_{m,k}) / \tau)` is pulled to the label
      and to the other modalities' (:func:`divergence`).
    - Calibration: cross-entropy against :math:`(1 - \beta) y + \beta \bar p` with
      :math:`\beta = \beta_{max} \cdot` :func:`disagreement`.

    - Kept: the three ideas and their order.
    - Replaced: the class centroids are learned vectors, not running means; the match of the
      centroid similarities is a Jensen-Shannon divergence, so any number of modalities fits.
    - Unverified: all details (gate, centroids, form of the calibration); the paper's abstract is
      all that could be checked, and no code was published.
    - Missing rule: a missing modality has no tokens to attend to, no congruity term and no part in
      the calibration; a learned token replaces its vector.

    Other arguments, shapes and errors are those of :class:`~reproductions._tokens.TokenHead`;
    ``aux_loss`` is the weighted divergence.

    Args:
        text: The guiding modality; by default "text", else the first.
        congruity_weight: Weight of both congruity terms.
        max_calibration: The :math:`\beta_{max}` above; 0 trusts all labels.
        hidden_features: Width F of tokens and hidden layer, divisible by four.

    Shape:
        - ``extras["similarity"]``: (B, M, C), scaled cosines with the class centroids
        - ``extras["available"]``: (B, M) bool

    Example:
        >>> import torch
        >>> from reproductions import MVCNHead
        >>> head = MVCNHead({"text": 3, "image": 4}, num_classes=2)
        >>> output = head({"text": torch.randn(5, 7, 3), "image": torch.randn(5, 9, 4)})
        >>> output.extras["similarity"].shape
        torch.Size([5, 2, 2])

    Reference:
        Wei et al., "Tackling Modality Heterogeneity with Multi-View Calibration Network for
        Multimodal Sentiment Detection", ACL 2023.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        text: str | None = None,
        congruity_weight: float = 0.1,
        max_calibration: float = 0.5,
        hidden_features: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        self.text = pick_text(self.dims, text)
        self.congruity_weight = congruity_weight
        self.max_calibration = max_calibration
        width = hidden_features
        others = [name for name in self.dims if name != self.text]
        self.projections = projections(self.dims, width)
        self.gates = ModuleDict({name: mlp(2 * width, width, 1) for name in others})
        self.attentions = ModuleDict({name: MultiHeadAttention(width) for name in others})
        self.missing = nn.Parameter(torch.zeros(len(self.dims), width))
        self.centroids = nn.Parameter(torch.randn(len(self.dims), num_classes, width))
        self.network = mlp(
            (len(self.dims) + 1) * width, width, dropout=dropout, activate_last=True
        )
        self.classifier = nn.Linear(width, num_classes)

    def fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> HeadOutput:
        """Let the text attend to the other modalities, and compare all with the centroids."""
        projected = {name: layer(tokens[name]) for name, layer in self.projections.items()}
        words, guide = (
            projected[self.text],
            masked_token_mean(projected[self.text], valid[self.text]),
        )
        vectors, guided = {self.text: guide}, words
        for name, attention in self.attentions.items():
            patches = projected[name]
            repeated = guide.unsqueeze(1).expand(-1, patches.shape[1], -1).to(patches.dtype)
            scores = self.gates[name](torch.cat([patches, repeated], dim=-1)).squeeze(-1)
            gate = keep_gate(scores, self.training)
            guided = guided + attention(words, patches, valid[name], (gate + CLOSED).log())
            vectors[name] = weighted_sum(patches, gated_share(valid[name].to(gate.dtype), gate))
        stacked = torch.stack(
            [
                torch.where(mask[:, index, None], vectors[name], self.missing[index])
                for index, name in enumerate(self.dims)
            ],
            dim=1,
        )
        summary = masked_token_mean(guided, valid[self.text])
        fused: Tensor = self.network(torch.cat([summary, stacked.flatten(1)], dim=1))
        logits: Tensor = self.classifier(fused)
        similarity = self._similarity(stacked)
        incongruity = masked_mean(divergence(similarity.log_softmax(dim=-1), mask))
        extras = {"similarity": similarity, "available": mask}
        return HeadOutput(logits, fused, self.congruity_weight * incongruity, extras)

    def loss(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Return the calibrated cross-entropy plus both congruity terms."""
        check_labels(labels, *output.logits.shape)
        target = self.calibrated_labels(output, labels)
        log_probability = at_least_float32(output.logits).log_softmax(dim=-1)
        fit = masked_mean(-(target * log_probability).sum(dim=-1))
        pull = column_means(
            unimodal_losses(output.extras["similarity"], labels), output.extras["available"]
        ).sum()
        return fit + output.aux_loss + self.congruity_weight * pull

    def calibrated_labels(self, output: HeadOutput, labels: Tensor) -> Tensor:
        """Soften the label of a sample whose modalities disagree, (B, C)."""
        available = output.extras["available"]
        probability = output.extras["similarity"].detach().softmax(dim=-1)
        share = self.max_calibration * disagreement(probability, available).unsqueeze(1)
        weights = normalize(available.to(probability.dtype))
        belief = weighted_sum(probability, weights)
        hard = F.one_hot(labels, probability.shape[-1]).to(probability.dtype)
        return (1 - share) * hard + share * belief

    def _similarity(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            unit = F.normalize(at_least_float32(vectors), dim=-1)
            centroids = F.normalize(at_least_float32(self.centroids), dim=-1)
            return torch.einsum("bmh,mch->bmc", unit, centroids) / TEMPERATURE
