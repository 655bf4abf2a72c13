"""Make a trained model more robust without retraining: quality gates on its inputs.

The model reads the upper and the lower half of a digit and knows nothing of quality. Two
estimators are fitted to its training features. At inference each half is pulled towards the
training mean, the more strongly the more unusual it is.
"""

import sys
from pathlib import Path

try:
    import torch
    from _gallery import BLUE, GRAY, ORANGE, new_figure, output_dir, save
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from torch import Tensor

    from robustfusion import NeighborQualityEstimator
    from robustfusion.disruption import FeatureCorruption
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples]"')

HALVES = {"upper": slice(0, 32), "lower": slice(32, 64)}


def main(folder: Path, iterations: int = 60) -> dict[str, tuple[float, float]]:
    """Return the accuracy without and with gates under each disruption."""
    digits = load_digits()
    pixels, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(y)) % 3 == 0
    train = pixels[~test]

    # You have a trained model and the features it was trained on.
    model = MLPClassifier(128, max_iter=iterations, tol=0, n_iter_no_change=iterations)
    model.set_params(random_state=0, early_stopping=False)
    for _ in range(iterations):
        model.partial_fit(train.numpy(), y[~test].numpy(), classes=range(10))

    # You add one estimator per modality, and the mean of its features.
    torch.manual_seed(0)
    gates = {
        name: NeighborQualityEstimator(32).fit(train[:, columns])
        for name, columns in HALVES.items()
    }
    means = {name: train[:, columns].mean(0) for name, columns in HALVES.items()}

    def gated(x: Tensor) -> Tensor:
        parts = []
        for name, columns in HALVES.items():
            # At a p-value of 0.05 the gate is half open.
            p_value = gates[name].p_value(x[:, columns])[:, None]
            trust = p_value / (p_value + 0.05)
            parts.append(trust * x[:, columns] + (1 - trust) * means[name])
        return torch.cat(parts, dim=1)

    conditions = {"clean": pixels[test]}
    corrupt = FeatureCorruption(kind="shuffle", severity=(0.5, 1.0))
    for name, columns in HALVES.items():
        shuffled = pixels[test].clone()
        rows = shuffled[:, columns]
        shuffled[:, columns] = corrupt.rows(rows, range(len(rows)), seed=0, modality=name)
        conditions[f"{name} half\nshuffled"] = shuffled
        inverted = pixels[test].clone()
        inverted[:, columns] = 1 - inverted[:, columns]
        conditions[f"{name} half\ninverted"] = inverted
    scores = {}
    for name, x in conditions.items():
        plain, with_gates = (model.score(v.numpy(), y[test].numpy()) for v in (x, gated(x)))
        scores[name] = (plain, with_gates)
        title = name.replace("\n", " ")
        print(f"{title:20} without gates {plain:.3f}, with gates {with_gates:.3f}")
    figure, panel = new_figure(width=6.5)
    for index, (label, color) in enumerate((("without gates", ORANGE), ("with gates", BLUE))):
        positions = [tick + 0.38 * (index - 0.5) for tick in range(len(scores))]
        values = [100 * pair[index] for pair in scores.values()]
        panel.bar(positions, values, 0.36, color=color, label=label)
    panel.axhline(10, color=GRAY, linestyle=":", label="chance")
    panel.set_xticks(range(len(scores)), list(scores), fontsize=8)
    panel.set(ylabel="accuracy (%)", ylim=(0, 105))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, folder, "retrofit")
    return scores


if __name__ == "__main__":
    main(output_dir(__doc__))
