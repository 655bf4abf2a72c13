"""Do an image and a text belong together? A score of the pair, and its p-value.

Each input may be intact and the two still be of different samples, as after an index that is off
by one. The score is the log-likelihood ratio of a pair against two strangers, from canonical
correlations. Here the two inputs are the halves of a digit.
"""

from pathlib import Path
from typing import Self

import torch
from _gallery import new_figure, output_dir, save
from sklearn.datasets import load_digits
from torch import Tensor, nn


class PairingScore(nn.Module):
    """Score pairs of features (B, D_1) and (B, D_2): (B,), higher for true pairs."""

    def __init__(self, dim_1: int, dim_2: int, components: int = 32, shrinkage: float = 0.8):
        super().__init__()
        self.shrinkage, self.components = shrinkage, min(components, dim_1, dim_2)
        for side, dim in enumerate((dim_1, dim_2)):
            self.register_buffer(f"mean_{side}", torch.zeros(dim))
            self.register_buffer(f"directions_{side}", torch.zeros(dim, self.components))
        self.register_buffer("correlation", torch.zeros(self.components))
        self.register_buffer("held_out", torch.full((2048,), torch.nan))  # NaN: no score yet

    @torch.no_grad()
    def fit(self, first: Tensor, second: Tensor) -> Self:
        """Learn directions from three quarters of the pairs, correlations from the others."""
        if not 8 <= len(first) == len(second):
            raise ValueError(f"fit needs 8 pairs or more, got {len(first)} and {len(second)} rows")
        # Correlations of the pairs that the directions were fitted to would be far too high.
        fit, sides = torch.arange(len(first)) % 4 > 0, []
        for x in (first.double(), second.double()):
            mean, scale = x[fit].mean(0), x[fit].std(0)
            scale = scale + 0.01 * scale.mean() + 1e-12  # some coordinates hardly ever vary
            z = (x - mean) / scale
            identity = torch.eye(z.shape[1], dtype=z.dtype)
            covariance = torch.lerp(z[fit].T @ z[fit] / fit.sum(), identity, self.shrinkage)
            sides.append((mean, scale, z, torch.linalg.cholesky(covariance)))
        (*_, z_1, root_1), (*_, z_2, root_2) = sides
        cross = torch.linalg.solve_triangular(root_1, z_1[fit].T @ z_2[fit], upper=False)
        cross = torch.linalg.solve_triangular(root_2, cross.T / fit.sum(), upper=False).T
        left, _, right = torch.linalg.svd(cross, full_matrices=False)
        projected = []
        for side, vectors in enumerate((left[:, : self.components], right[: self.components].T)):
            mean, scale, z, root = sides[side]
            directions = torch.linalg.solve_triangular(root.T, vectors, upper=True)
            length = (z[~fit] @ directions).square().mean(0).sqrt() + 1e-12
            getattr(self, f"mean_{side}").copy_(mean)
            getattr(self, f"directions_{side}").copy_(directions / length / scale[:, None])
            projected.append(z[~fit] @ directions / length)
        correlation = (projected[0] * projected[1]).mean(0)
        self.correlation.copy_(correlation.clamp(0, 0.99))  # at 1 no pair would be good enough
        return self

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the log-likelihood ratio of each pair: above 0 speaks for a pair."""
        u = (first.float() - self.mean_0) @ self.directions_0
        v = (second.float() - self.mean_1) @ self.directions_1
        rho, square = self.correlation, self.correlation.square()
        distance = square * (u.square() + v.square()) - 2 * rho * u * v
        return (-0.5 * torch.log1p(-square) - distance / (2 * (1 - square))).sum(-1)

    @torch.no_grad()
    def calibrate(self, first: Tensor, second: Tensor) -> Self:
        """Store the scores of pairs that ``fit`` has not seen; p-values are ranked among them."""
        scores = self(first, second)[: len(self.held_out)]
        self.held_out.fill_(torch.nan)[: len(scores)] = scores
        return self

    def p_value(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the share of true pairs with a score as low; a broken score is the lowest."""
        scores = self(first, second).nan_to_num(-torch.inf, posinf=-torch.inf)
        held_out = self.held_out[~self.held_out.isnan()]
        return (1 + (held_out[:, None] <= scores).sum(0)) / (1 + len(held_out))


def main(folder: Path) -> dict[str, float]:
    """Return the share of true pairs and of exchanged halves that alarm at a p-value of 0.05."""
    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    left, right = pixels.chunk(2, dim=1)
    score = PairingScore(32, 32).fit(left[:900], right[:900])
    score.calibrate(left[900:1300], right[900:1300])
    pairs = {"own half": right[1300:], "half of another": right[1300:].roll(1, 0)}
    p = {name: score.p_value(left[1300:], half) for name, half in pairs.items()}
    figure, panel = new_figure()
    panel.hist(list(p.values()), bins=20, label=list(p))
    panel.set(xlabel="p-value of the pair", ylabel="samples")
    panel.legend()
    save(figure, folder, "pairing")
    return {name: float((values <= 0.05).float().mean()) for name, values in p.items()}


if __name__ == "__main__":
    print(main(output_dir(__doc__)))
