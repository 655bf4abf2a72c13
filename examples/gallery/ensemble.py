"""An ensemble whose members know different inputs, fused by quality.

Three classifiers were each trained on other digits. In their average, the two that never saw a
digit outvote the one that did. Weighted by how likely the input is among the training samples of
each, the one that knows the digit decides. All densities are of the same pixels, so they can be
compared directly.
"""

import sys
from pathlib import Path

try:
    import torch
    from _gallery import BLUE, GRAY, ORANGE, new_figure, output_dir, save
    from sklearn.datasets import load_digits
    from torch import Tensor, nn

    from robustfusion import GaussianQualityEstimator, QualityWeightedFusion
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples]"')

EXPERTS = {"0-3": (0, 1, 2, 3), "3-6": (3, 4, 5, 6), "6-9": (6, 7, 8, 9)}


def train_expert(x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """Train a classifier with ten outputs on some of the classes."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(folder: Path, steps: int = 300) -> dict[str, float]:
    """Return the accuracy of each expert and of both ensembles on all digits."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    test = torch.arange(len(x)) % 3 == 0
    probabilities, qualities = [], []
    for classes in EXPERTS.values():
        own = torch.isin(y, torch.tensor(classes)) & ~test
        expert = train_expert(x[own], y[own], steps)
        with torch.no_grad():
            probabilities.append(expert(x[test]).softmax(1))
            estimator = GaussianQualityEstimator(64, covariance_type="full", shrinkage=0.05)
            qualities.append(estimator.fit(x[own]).log_prob(x[test]))
    candidates = torch.stack(probabilities, dim=1)  # (B, K, C), the candidates to fuse
    fusion = QualityWeightedFusion()
    by_quality = fusion(candidates, torch.stack(qualities, dim=1))
    answers = {f"expert {name}": candidates[:, k] for k, name in enumerate(EXPERTS)}
    answers |= {"average": candidates.mean(1), "by quality": by_quality}
    truth = y[test]
    accuracy = {n: float((p.argmax(1) == truth).float().mean()) for n, p in answers.items()}
    figure, panel = new_figure()
    colors = [GRAY] * len(EXPERTS) + [ORANGE, BLUE]
    bars = panel.bar(list(accuracy), [100 * a for a in accuracy.values()], color=colors)
    panel.bar_label(bars, fmt="%.0f")
    panel.set(ylabel="accuracy on all digits (%)", ylim=(0, 105))
    save(figure, folder, "ensemble")
    print({name: round(value, 3) for name, value in accuracy.items()})
    return accuracy


if __name__ == "__main__":
    main(output_dir(__doc__))
