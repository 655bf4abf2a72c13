"""MVAN-style: a memory of the text and several views of the image, refined in hops."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reproductions._pooling import AttentionPool, masked_token_mean
from reproductions._tokens import TokenHead, pick_text
from robustfusion._modules import ModuleList, mlp
from robustfusion._validation import check_positive
from robustfusion.baselines.head import zero_loss
from robustfusion.output import HeadOutput


class MVANHead(TokenHead):
    r"""Multi-view attentional network: text queries a view, the view queries the text, repeat.

    For a view :math:`x`, with :math:`q_0` the mean text token and hops :math:`k = 1 \dots K`:

    .. math:: r_k = \textstyle\sum_i \mathrm{softmax}_i(w^\top \tanh(W_x x_i + W_q q_{k-1})) x_i,
              \quad s_k = \sum_j \mathrm{softmax}_j(v^\top \tanh(W_t t_j + W_r r_k)) t_j,
              \quad q_k = q_{k-1} + s_k

    Each view gives :math:`h_x = \mathrm{MLP}([r_K; s_K])`; the stack of the :math:`h_x` is pooled
    by maximum and mean, concatenated, and classified.

    - Kept: two views of the image (object and scene), multi-hop memory, MLP and stacking-pooling.
    - Replaced: the two image networks become two learned projections of the one image modality;
      with several other modalities each of them is a view (so two image encoders can be passed).
      Attention weights are shared by the hops.
    - Unverified: hops, exact pooling and the memory update, from secondary descriptions; code
      was announced but not published.
    - Missing rule: a learned token replaces the last reading of a missing modality.

    Other arguments, shapes and errors are those of :class:`~reproductions._tokens.TokenHead`;
    ``fused`` is (B, 2 F).

    Args:
        text: The modality that holds the memory; by default "text", else the first.
        num_hops: The :math:`K` above.

    Example:
        >>> import torch
        >>> from reproductions import MVANHead
        >>> head = MVANHead({"text": 3, "image": 4}, num_classes=2)
        >>> head({"text": torch.randn(5, 7, 3), "image": torch.randn(5, 9, 4)}).fused.shape
        torch.Size([5, 256])

    Reference:
        Yang et al., "Image-Text Multimodal Emotion Classification via Multi-View Attentional
        Network", IEEE Transactions on Multimedia 23, 2021.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        text: str | None = None,
        num_hops: int = 2,
        hidden_features: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_positive(num_hops, "num_hops")
        self.text = pick_text(self.dims, text)
        self.num_hops = num_hops
        others = [name for name in self.dims if name != self.text]
        self.views = tuple(others * 2 if len(others) == 1 else others)
        width = hidden_features
        self.text_projection = nn.Linear(self.dims[self.text], width)
        self.view_projections = ModuleList(nn.Linear(self.dims[n], width) for n in self.views)
        self.view_pools = ModuleList(AttentionPool(width, contextual=True) for _ in self.views)
        self.text_pools = ModuleList(AttentionPool(width, contextual=True) for _ in self.views)
        self.missing_text = nn.Parameter(torch.zeros(width))
        self.missing_views = nn.Parameter(torch.zeros(len(self.views), width))
        self.network = mlp(2 * width, width, dropout=dropout, activate_last=True)
        self.classifier = nn.Linear(2 * width, num_classes)

    def fuse(
        self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor], mask: Tensor
    ) -> HeadOutput:
        """Refine the text by every view, stack the results and pool them."""
        positions = {name: index for index, name in enumerate(self.dims)}
        words: Tensor = self.text_projection(tokens[self.text])
        has_text = mask[:, positions[self.text], None]
        stack = []
        for index, name in enumerate(self.views):
            view = self.view_projections[index](tokens[name])
            has_view = mask[:, positions[name], None]
            memory = masked_token_mean(words, valid[self.text])
            reading = attended = torch.zeros_like(memory)
            for _ in range(self.num_hops):
                reading = self.view_pools[index](view, valid[name], memory)
                attended = self.text_pools[index](words, valid[self.text], reading)
                memory = memory + attended
            reading = torch.where(has_view, reading, self.missing_views[index])
            attended = torch.where(has_text, attended, self.missing_text)
            stack.append(self.network(torch.cat([reading, attended], dim=1)))
        stacked = torch.stack(stack, dim=1)
        fused = torch.cat([stacked.amax(dim=1), stacked.mean(dim=1)], dim=1)
        logits: Tensor = self.classifier(fused)
        return HeadOutput(logits, fused, zero_loss(logits))
