"""Does this input resemble the training data? A quality estimator as a detector.

A small network learns to classify the digits 0-6. The hidden features of 7-9, of noise and of
half digits should score as unusual. The baseline is scikit-learn's LocalOutlierFactor. A single
Gaussian fails for inputs whose features shrink: it takes the region between the classes for
typical.
"""

import sys
from pathlib import Path

try:
    import torch
    from _gallery import BLUE, GRAY, GREEN, ORANGE, new_figure, output_dir, save
    from sklearn.datasets import load_digits
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import LocalOutlierFactor
    from torch import Tensor, nn

    from robustfusion import GaussianQualityEstimator, NeighborQualityEstimator
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples]"')


def train_encoder(x: Tensor, y: Tensor, steps: int) -> nn.Module:
    """Train a classifier and return its hidden layers."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    model = nn.Sequential(encoder, nn.Linear(32, 7))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval()


def main(folder: Path, steps: int = 400) -> dict[str, dict[str, float]]:
    """Return the AUROC of each detector for each kind of unfamiliar input."""
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    known = y < 7
    test = torch.arange(len(x)) % 3 == 0
    train_x, known_x = x[known & ~test], x[known & test]
    unfamiliar = {
        "digits 7-9": x[~known],
        "noise": torch.rand(len(known_x), 64),
        "lower half black": torch.cat([known_x[:, :32], torch.zeros(len(known_x), 32)], dim=1),
    }
    encoder = train_encoder(train_x, y[known & ~test], steps)
    with torch.no_grad():
        train, intact = encoder(train_x), encoder(known_x)
        features = {name: encoder(value) for name, value in unfamiliar.items()}
        neighbors = NeighborQualityEstimator(32).fit(train)
        gaussian = GaussianQualityEstimator(32, covariance_type="full", shrinkage=0.05).fit(train)
        outliers = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(train.numpy())
        detectors = {
            "NeighborQualityEstimator": lambda f: neighbors(f).numpy(),
            "GaussianQualityEstimator": lambda f: gaussian(f).numpy(),
            "LocalOutlierFactor": lambda f: outliers.score_samples(f.numpy()),
        }
        table: dict[str, dict[str, float]] = {}
        for name, score in detectors.items():
            reference = score(intact)
            table[name] = {}
            for kind, f in features.items():
                truth = [1] * len(intact) + [0] * len(f)
                table[name][kind] = float(roc_auc_score(truth, [*reference, *score(f)]))
    figure, panel = new_figure()
    for index, (name, color) in enumerate(zip(table, (BLUE, GREEN, ORANGE), strict=True)):
        positions = [tick + 0.25 * (index - 1) for tick in range(len(unfamiliar))]
        panel.bar(positions, table[name].values(), width=0.22, color=color, label=name)
        print(name, {kind: round(value, 3) for kind, value in table[name].items()})
    panel.axhline(0.5, color=GRAY, linestyle=":")
    panel.set_xticks(range(len(unfamiliar)), list(unfamiliar))
    panel.set(ylabel="AUROC (0.5 is chance)", ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save(figure, folder, "out_of_distribution")
    return table


if __name__ == "__main__":
    main(output_dir(__doc__))
