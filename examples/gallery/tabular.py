"""A table with empty cells as the third modality.

The table of a sample counts as missing only if all of its cells are empty. A single empty cell is
imputed, and an indicator column says so; otherwise one empty cell of six would make the whole row
missing. In these data a cell is empty more often for some classes than for others, so that the
empty cell itself helps to predict the class.
"""

from pathlib import Path

import numpy as np
from _gallery import BLUE, GRAY, GREEN, ORANGE, new_figure, output_dir, save
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from robustfusion.integrations.sklearn import RobustFusionClassifier

NUMBERS, CATEGORY = slice(0, 5), slice(5, 6)
SHARES = (0.0, 0.25, 0.5)
Features = dict[str, np.ndarray]


def make(n: int, share: float, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Make image and text features and a table with five numbers and a category, partly empty."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    directions = np.random.default_rng(99).normal(size=(3, 3, 8))
    image, text = (0.25 * directions[m][labels] + rng.normal(size=(n, 8)) for m in (0, 1))
    table = np.empty((n, 6))
    table[:, NUMBERS] = 0.7 * directions[2][labels][:, :5] + rng.normal(size=(n, 5))
    table[:, 5] = (labels + (rng.random(n) < 0.5) * rng.integers(3, size=n)) % 3
    empty = rng.random(table.shape) < share * np.array([0.4, 1.0, 1.6])[labels][:, None]
    table[empty] = np.nan
    return {"image": image, "text": text, "table": table}, labels


def columns(indicator: bool) -> ColumnTransformer:
    """Impute numbers by their mean; an empty category becomes a category of its own."""
    number = SimpleImputer(add_indicator=indicator, keep_empty_features=True)
    category = make_pipeline(
        SimpleImputer(strategy="constant", fill_value=-1 if indicator else 0),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    return make_column_transformer((number, NUMBERS), (category, CATEGORY))


def prepare(transform: ColumnTransformer, table: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Impute empty cells, but keep NaN in the rows that count as missing."""
    filled = np.asarray(transform.transform(table), dtype=np.float64)
    filled[missing] = np.nan
    return filled


def main(folder: Path, n: int = 1000, epochs: int = 15) -> dict[str, dict[float, float]]:
    """Return the accuracy of each way to treat empty cells, by their share."""
    ways = {
        "imputed, with indicators": (True, np.all, BLUE),
        "imputed": (False, np.all, GREEN),
        "an empty cell makes the row missing": (False, np.any, ORANGE),
    }
    accuracy: dict[str, dict[float, float]] = {way: {} for way in ways}
    for share in SHARES:
        features, labels = make(n, share)
        train, test = np.arange(n) % 2 == 0, np.arange(n) % 2 == 1
        for way, (indicator, counts, _) in ways.items():
            table = features["table"]
            transform = columns(indicator).fit(table[train])  # on training rows only
            filled = prepare(transform, table, counts(np.isnan(table), axis=1))
            inputs = {**features, "table": filled}
            model = RobustFusionClassifier(epochs=epochs, random_state=0)
            model.fit({m: x[train] for m, x in inputs.items()}, labels[train])
            accuracy[way][share] = model.score(
                {m: x[test] for m, x in inputs.items()}, labels[test]
            )
            print(f"{share:.0%} empty, {way}: {accuracy[way][share]:.3f}")
    figure, panel = new_figure()
    for way, (_, _, color) in ways.items():
        panel.plot(
            [100 * s for s in SHARES],
            [100 * value for value in accuracy[way].values()],
            "o-",
            color=color,
            label=way,
        )
    panel.axhline(100 / 3, color=GRAY, linestyle=":", label="chance")
    panel.set(xlabel="empty cells (%)", ylabel="accuracy (%)", ylim=(30, 100))
    panel.legend(frameon=False)
    save(figure, folder, "tabular")
    return accuracy


if __name__ == "__main__":
    main(output_dir(__doc__))
