"""MGNNS-style: one graph per modality of co-occurrences over the whole data set."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions._pooling import masked_token_mean
from reproductions._tokens import TokenHead, projections
from reproductions._transformer import MultiHeadAttention
from robustfusion._modules import ModuleDict, ModuleList, mlp
from robustfusion._state import refuse_recompute
from robustfusion._validation import check_positive
from robustfusion.baselines.head import zero_loss
from robustfusion.functional import at_least_float32
from robustfusion.output import HeadOutput

MOMENTUM = 0.1  # The momentum of the running mean is that of torch's batch normalization.


def adjacency(cooccurrence: Tensor) -> Tensor:
    """Normalize by rows the graph of the pairs above their row's average, with loops; (K, K)."""
    share = cooccurrence / cooccurrence.sum(dim=1, keepdim=True).clamp_min(
        torch.finfo(cooccurrence.dtype).tiny
    )
    strong = share.where(share >= 1 / share.shape[1], 0.0)
    graph = strong + torch.eye(len(share), dtype=share.dtype, device=share.device)
    return graph / graph.sum(dim=1, keepdim=True)


class AnchorGraph(nn.Module):
    r"""Learned anchors, their activation by the tokens of a sample, and a GCN over them.

    ``s = max_tokens softmax(x Eᵀ / √H)``, ``G = Â LeakyReLU(Â E W₁) W₂``, nodes ``s_k G_k``. The
    co-occurrence behind ``Â`` is a running mean of ``sᵀ s``, written in training mode.

    Args:
        width: Width H of tokens and nodes.
        num_anchors: Number of nodes K.

    Shape:
        - tokens (B, L, H); valid (B, L)
        - Output: (B, K, H), zero where no token is valid
    """

    cooccurrence: Tensor

    def __init__(self, width: int, num_anchors: int) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.randn(num_anchors, width))
        self.first = nn.Linear(width, width, bias=False)
        self.second = nn.Linear(width, width, bias=False)
        self.register_buffer("cooccurrence", torch.eye(num_anchors))

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Return the sample's nodes."""
        scores = at_least_float32(tokens @ self.anchors.T) / tokens.shape[-1] ** 0.5
        share = torch.softmax(scores, dim=-1).where(valid.unsqueeze(-1), 0.0)
        active = share.amax(dim=1)
        graph = adjacency(self.cooccurrence)
        nodes: Tensor = self.second(graph @ F.leaky_relu(self.first(graph @ self.anchors)))
        if self.training:
            self._count(active.detach(), valid.any(dim=1))
        return active.unsqueeze(-1) * nodes

    @torch.no_grad()
    def _count(self, active: Tensor, available: Tensor) -> None:
        rows = available.sum()
        with torch.autocast(active.device.type, enabled=False):
            together = active.T @ active / rows.clamp_min(1)
        step = MOMENTUM * (rows > 0)
        self.cooccurrence.add_(step * (together.to(self.cooccurrence) - self.cooccurrence))


class MGNNSHead(TokenHead):
    r"""Multi-channel graph network: global co-occurrence, then attention across modalities.

    Channel :math:`m` reads its nodes with one learned query per class,
    :math:`g_m = \mathrm{mean}_c\,\mathrm{MHA}(q_c, s_m \circ G_m)`. Every ordered pair of
    modalities is crossed, :math:`\mathrm{MHA}([g_a, \bar x_a], x_b)`, and all of it goes through
    an MLP to the classes.

    - Kept: one graph per channel from data-set-wide co-occurrence, two GCN layers, attention with
      sentiment queries, multi-head attention in both directions, MLP.
    - Replaced: 80 object and 365 scene labels with GloVe names, and the word graph with mutual
      information, become learned anchors whose co-occurrence is counted over the training
      stream; one channel per modality (pass two image encoders for two image channels).
    - Unverified: how much of the published result the label vocabularies carry.
    - Missing rule: a missing modality activates no anchor and is not among the keys; a learned
      token replaces each crossing in which it takes part.

    Each rank of a distributed run counts its own co-occurrence, so wrap the model with
    ``forward_sync_buffers=False``, or use the counts of rank 0. Activation checkpointing is
    refused.

    Other arguments, shapes and errors are those of :class:`~reproductions._tokens.TokenHead`.

    Args:
        num_anchors: Nodes per channel.
        hidden_features: Width F of tokens and hidden layer, divisible by four.

    Example:
        >>> import torch
        >>> from reproductions import MGNNSHead
        >>> head = MGNNSHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 7, 3), "image": torch.randn(5, 9, 4)}).logits.shape
        torch.Size([5, 2])

    Reference:
        Yang et al., "Multimodal Sentiment Detection Based on Multi-channel Graph Neural
        Networks", ACL 2021.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        num_anchors: int = 32,
        hidden_features: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_positive(num_anchors, "num_anchors")
        self.pairs = tuple((a, b) for a in self.dims for b in self.dims if a != b)
        width = hidden_features
        self.projections = projections(self.dims, width)
        self.graphs = ModuleDict({name: AnchorGraph(width, num_anchors) for name in self.dims})
        self.readers = ModuleDict({name: MultiHeadAttention(width) for name in self.dims})
        self.class_queries = nn.Parameter(torch.randn(num_classes, width))
        self.crossings = ModuleList(MultiHeadAttention(width) for _ in self.pairs)
        self.missing = nn.Parameter(torch.zeros(len(self.pairs), width))
        channels = len(self.dims) + len(self.pairs)
        self.network = mlp(channels * width, width, dropout=dropout, activate_last=True)
        self.classifier = nn.Linear(width, num_classes)

    def fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> HeadOutput:
        """Read every channel's graph, cross the channels, classify."""
        if self.training:
            refuse_recompute("MGNNSHead")
        is_available = {name: mask[:, index, None] for index, name in enumerate(self.dims)}
        queries = self.class_queries.expand(mask.shape[0], -1, -1)
        projected = {name: layer(tokens[name]) for name, layer in self.projections.items()}
        channels: dict[str, Tensor] = {}
        for name, reader in self.readers.items():
            nodes = self.graphs[name](projected[name], valid[name])
            keys = is_available[name].expand(-1, nodes.shape[1])
            channels[name] = reader(queries, nodes, keys).mean(dim=1)
        parts = list(channels.values())
        for index, (source, target) in enumerate(self.pairs):
            mean = masked_token_mean(projected[source], valid[source])
            query = torch.stack([channels[source], mean.to(channels[source].dtype)], dim=1)
            crossed = self.crossings[index](query, projected[target], valid[target]).mean(dim=1)
            both = is_available[source] & is_available[target]
            parts.append(torch.where(both, crossed, self.missing[index]))
        fused: Tensor = self.network(torch.cat(parts, dim=1))
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))
