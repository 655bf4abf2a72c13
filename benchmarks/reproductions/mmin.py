"""MMIN-style: imagine the missing modalities with cascaded residual autoencoders."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reproductions._losses import squared_error
from robustfusion._modules import ModuleDict, ModuleList, mlp
from robustfusion.baselines.head import BaselineHead
from robustfusion.output import HeadOutput

NUM_BLOCKS = 3  # Our choice.


class ResidualCascade(nn.Module):
    """A chain of autoencoders, each of which corrects the sum so far; (B, W) -> (B, W)."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.encoders = ModuleList(mlp(width, latent, latent) for _ in range(NUM_BLOCKS))
        self.decoders = ModuleList(mlp(latent, latent, width) for _ in range(NUM_BLOCKS))

    def forward(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corrected vector and the latents (B, NUM_BLOCKS * latent)."""
        latents = []
        for encoder, decoder in zip(self.encoders, self.decoders, strict=True):
            latents.append(encoder(joint))
            joint = joint + decoder(torch.relu(latents[-1]))
        return joint, torch.cat(latents, dim=1)


class MMINHead(BaselineHead):
    r"""Missing modality imagination: classify from the latents of an imagination network.

    .. math:: h = [a_m e_m]_m, \quad (h', c) = \mathrm{CRA}(h), \quad z = W c + b, \qquad
              L = \mathrm{CE}(z) + \lambda_1 \|h' - e\|^2_{hidden}
                + \lambda_2 \|\mathrm{CRA}^{-1}(h') - h\|^2_{seen}

    where :math:`e_m` embeds modality :math:`m` and CRA is a cascade of residual autoencoders.
    Training hides available modalities, so that their embedding is a target.

    - Kept: cascade with residual sums, latents of all blocks to the classifier, forward
      imagination and the backward cycle.
    - Replaced: the encoders pre-trained on complete data become one layer per modality trained
      together with the rest (targets detached); one embedding vector per modality instead of
      sequences; missing patterns drawn at random instead of six fixed ones for three modalities.
    - Unverified: number and width of the blocks in the authors' runs.
    - Missing rule: the embedding of a missing modality is zero and is imagined; a modality that
      the data lack is never a target. With everything missing the cascade runs on zeros.

    Other arguments, shapes and errors are those of
    :class:`~robustfusion.baselines.BaselineHead`; ``fused`` (B, 3 H) are the latents.

    Args:
        hidden_features: Width H of an embedding and of a latent.
        imagination_weight: The :math:`\lambda_1` above.
        cycle_weight: The :math:`\lambda_2` above.

    Shape:
        - ``extras["imagined"]``: (B, M, H), the imagined embeddings

    Example:
        >>> import torch
        >>> from reproductions import MMINHead
        >>> head = MMINHead({"text": 3, "image": 4}, num_classes=2, hidden_features=16)
        >>> output = head({"text": torch.randn(5, 3), "image": torch.randn(5, 4)})
        >>> output.extras["imagined"].shape
        torch.Size([5, 2, 16])

    Reference:
        Zhao et al., "Missing Modality Imagination Network for Emotion Recognition with Uncertain
        Missing Modalities", ACL 2021.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        *,
        hidden_features: int = 128,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
        imagination_weight: float = 1.0,
        cycle_weight: float = 1.0,
    ) -> None:
        super().__init__(dims, num_classes, modality_dropout=modality_dropout)
        self.imagination_weight = imagination_weight
        self.cycle_weight = cycle_weight
        self.embeddings = ModuleDict(
            {
                name: mlp(dim, hidden_features, dropout=dropout, activate_last=True)
                for name, dim in dims.items()
            }
        )
        width = len(self.dims) * hidden_features
        self.imagination = ResidualCascade(width, hidden_features)
        self.cycle = ResidualCascade(width, hidden_features)
        self.classifier = nn.Linear(NUM_BLOCKS * hidden_features, num_classes)

    def fuse(self, inputs: Mapping[str, Tensor], mask: Tensor) -> HeadOutput:
        """Imagine the embeddings of missing modalities and classify from the latents."""
        seen = self.apply_modality_dropout(mask)
        embedded = torch.stack(
            [network(inputs[name]) for name, network in self.embeddings.items()], dim=1
        )
        visible = embedded.where(seen.unsqueeze(-1), 0.0)
        joint, fused = self.imagination(visible.flatten(1))
        back, _ = self.cycle(joint)
        logits: Tensor = self.classifier(fused)
        imagined, back = (x.unflatten(1, embedded.shape[1:]) for x in (joint, back))
        aux_loss = self.imagination_weight * squared_error(imagined, embedded, mask & ~seen)
        aux_loss = aux_loss + self.cycle_weight * squared_error(back, embedded, seen)
        return HeadOutput(logits, fused, aux_loss, {"imagined": imagined})
