"""Images, texts and a table: three modalities, any of which may be missing or wrong.

The generated posts have a picture, a text and three numbers: hour, likes and replies. A modality
taken from another post is the hard case: it looks typical and only contradicts the other two.
"""

import sys
import tempfile
from pathlib import Path

try:
    import numpy as np
    from _gallery import BLUE, GRAY, ORANGE, new_figure, output_dir, save
    from main_job.posts import make_posts
    from sklearn.feature_extraction.text import HashingVectorizer

    from robustfusion.baselines import ConcatenationHead
    from robustfusion.datasets import MVSA
    from robustfusion.integrations.sklearn import RobustFusionClassifier
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples,sklearn]"')

Features = dict[str, np.ndarray]


def read_posts(folder: Path, n: int) -> tuple[Features, np.ndarray]:
    """Generate posts and turn them into thumbnails, hashed words and numbers."""
    posts = MVSA(make_posts(folder, n=n))
    samples = [posts[index] for index in range(len(posts))]
    labels = np.array(posts.labels)
    thumbnails = [
        np.asarray(sample["inputs"]["image"].resize((12, 12)), dtype=np.float64).ravel() / 255
        for sample in samples
    ]
    words = HashingVectorizer(n_features=256, ngram_range=(1, 2), alternate_sign=False)
    texts = words.transform([sample["inputs"]["text"] for sample in samples]).toarray()
    rng = np.random.default_rng(0)
    likes, replies = np.array([30, 12, 9])[labels], np.array([4, 3, 9])[labels]
    hour = rng.normal(np.array([15, 11, 20])[labels], 4) % 24
    columns = [np.log1p(rng.poisson(likes)), np.log1p(rng.poisson(replies)), hour]
    table = np.stack([*columns, columns[0] - columns[1]], axis=1)
    return {"image": np.stack(thumbnails), "text": texts, "table": table}, labels


def disrupt(features: Features, name: str, how: str) -> Features:
    """Remove one modality, or exchange it between posts."""
    x = features[name]
    return {**features, name: x * np.nan if how == "missing" else np.roll(x, 7, axis=0)}


def main(folder: Path, n: int = 1000, epochs: int = 15) -> dict[str, dict[str, float]]:
    """Return the accuracy of each head under each disruption."""
    with tempfile.TemporaryDirectory() as scratch:
        features, labels = read_posts(Path(scratch) / "posts", n)
    test = np.arange(len(labels)) % 4 == 0
    train_x = {name: x[~test] for name, x in features.items()}
    test_x = {name: x[test] for name, x in features.items()}
    conditions = {"clean": test_x}
    for name in features:
        for how in ("missing", "wrong"):
            conditions[f"{name}\n{how}"] = disrupt(test_x, name, how)
    scores: dict[str, dict[str, float]] = {}
    for title, head in (("DRF", None), ("concatenation", ConcatenationHead)):
        model = RobustFusionClassifier(head=head, epochs=epochs, random_state=0)
        model.fit(train_x, labels[~test])
        scores[title] = {c: model.score(x, labels[test]) for c, x in conditions.items()}
        print(title, {c.replace("\n", " "): round(v, 3) for c, v in scores[title].items()})
    majority = np.bincount(labels[test]).max() / test.sum()
    figure, panel = new_figure(width=7)
    for index, (title, color) in enumerate(zip(scores, (BLUE, ORANGE), strict=True)):
        positions = [tick + 0.38 * (index - 0.5) for tick in range(len(conditions))]
        panel.bar(
            positions, [100 * v for v in scores[title].values()], 0.36, color=color, label=title
        )
    panel.axhline(100 * majority, color=GRAY, linestyle=":", label="majority")
    panel.set_xticks(range(len(conditions)), list(conditions), fontsize=8)
    panel.set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, folder, "three_modalities")
    return scores


if __name__ == "__main__":
    main(output_dir(__doc__))
