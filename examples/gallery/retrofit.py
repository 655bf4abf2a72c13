"""A trained model, left as it is, made wary: quality gates in front of it.

The model reads the upper and the lower half of a digit side by side and knows nothing of quality.
Two estimators are fitted to its cached training features. At inference each half is moved towards
the training mean as fewer intact ones look as odd: nothing is retrained.
"""

import sys
from pathlib import Path

try:
    import torch
    from _gallery import BLUE, GREY, ORANGE, new_figure, output_dir, save
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from torch import Tensor

    from robustfusion import NeighborQualityEstimator
    from robustfusion.disruption import FeatureCorruption
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install "robustfusion[examples]"')

HALVES = {"upper": slice(0, 32), "lower": slice(32, 64)}


def main(folder: Path, iterations: int = 60) -> dict[str, tuple[float, float]]:
    """Return the accuracy without and with gates under each disruption."""
    digits = load_digits()
    pixels, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(y)) % 3 == 0
    train = pixels[~test]

    # What you have: a trained model and the features it was trained on.
    model = MLPClassifier(128, max_iter=iterations, tol=0, n_iter_no_change=iterations)
    model.set_params(random_state=0, early_stopping=False)
    for _ in range(iterations):
        model.partial_fit(train.numpy(), y[~test].numpy(), classes=range(10))

    # What you add: one estimator for each modality, and its mean.
    torch.manual_seed(0)
    gates = {
        name: NeighborQualityEstimator(32).fit(train[:, columns])
        for name, columns in HALVES.items()
    }
    means = {name: train[:, columns].mean(0) for name, columns in HALVES.items()}

    def gated(x: Tensor) -> Tensor:
        parts = []
        for name, columns in HALVES.items():
            # Half is believed of a feature as odd as one in twenty of the intact ones.
            p_value = gates[name].p_value(x[:, columns])[:, None]
            trust = p_value / (p_value + 0.05)
            parts.append(trust * x[:, columns] + (1 - trust) * means[name])
        return torch.cat(parts, dim=1)

    conditions = {"clean": pixels[test]}
    corrupt = FeatureCorruption(kind="shuffle", severity=(0.5, 1.0))
    for name, columns in HALVES.items():
        spoiled = pixels[test].clone()
        rows = spoiled[:, columns]
        spoiled[:, columns] = corrupt.rows(rows, range(len(rows)), seed=0, modality=name)
        conditions[f"{name} half\nshuffled"] = spoiled
        inverted = pixels[test].clone()
        inverted[:, columns] = 1 - inverted[:, columns]
        conditions[f"{name} half\ninverted"] = inverted
    scores = {}
    for name, x in conditions.items():
        plain, wary = (model.score(given.numpy(), y[test].numpy()) for given in (x, gated(x)))
        scores[name] = (plain, wary)
        print(f"{name.replace(chr(10), ' '):20} as it is {plain:.3f}, gated {wary:.3f}")
    figure, panel = new_figure(width=6.5)
    for index, (label, colour) in enumerate((("as it is", ORANGE), ("gated", BLUE))):
        places = [place + 0.38 * (index - 0.5) for place in range(len(scores))]
        values = [100 * pair[index] for pair in scores.values()]
        panel.bar(places, values, 0.36, color=colour, label=label)
    panel.axhline(10, color=GREY, linestyle=":", label="chance")
    panel.set_xticks(range(len(scores)), list(scores), fontsize=8)
    panel.set(ylabel="accuracy (%)", ylim=(0, 105))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, folder, "retrofit")
    return scores


if __name__ == "__main__":
    main(output_dir(__doc__))
