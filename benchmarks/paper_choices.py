"""Four choices of the paper, each measured alone: the figure that made us depart from them.

    python benchmarks/paper_choices.py --mvsa DIR/mvsa_single

Writes ``results/paper_choices.json``, the page of results and its figures; ``--render`` makes page
and figures of the record. The features of MVSA-Single are frozen and standardised.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _data import Split, batches, load_digit_halves, load_mvsa
from _record import dated, read_record, write_record
from torch import Tensor, nn
from torch.nn import functional as F

from robustfusion import (
    CrossModalRecovery,
    DistributionRecoveryLoss,
    FeatureQueue,
    GaussianQualityEstimator,
    ModalityConverter,
    Standardize,
    admit_above_mean,
    admit_all,
)
from robustfusion.functional import fit_gaussian, gaussian_log_prob

NAME = "paper_choices"
PAGES = Path(__file__).parent.parent / "docs" / "pages"
SEEDS = (0, 1, 2)
CAPACITY, BATCH = 512, 16  # the paper's
EPOCHS = {"admission": 10, "converter": 5, "encoders": 120}
EARLY = 30  # an epoch of the encoders that the table shows besides the last
SHARES = torch.tensor([0.1, 0.5, 0.9])
WAYS = (("image", "text"), ("text", "image"))
TRAINED = {
    "classification alone": None,
    "with (4), (7), converters only": True,
    "with (4), (7), encoders too": False,
}
FIGURES = {
    "(12)": "choice-weights.png",
    "(13)": "choice-admission.png",
    "(10), (11)": "choice-recovered.png",
    "(4), (7)": "choice-gradients.png",
}
CAPTIONS = {
    "(12)": "the weight of an intact post falls with the width of its features",
    "(13)": "the queue spans less and less of the data",
    "(10), (11)": "most recovered features are denser than the real ones",
    "(4), (7)": "features of the encoders shrink under the gradients",
}
NOTES = {
    "(12)": "The product of the densities (9) of image and text, Gaussians fitted to the training "
    "posts. The band holds 80 % of the test posts.",
    "(13)": f"Training posts pass a queue of {CAPACITY} rows in batches of {BATCH}, for "
    f"{EPOCHS['admission']} epochs; the table has the last. Below two rows everything enters.",
    "(10), (11)": f"One converter a direction, {EPOCHS['converter']} epochs of the loss (8) on "
    "training posts, features frozen; share of the test posts.",
    "(4), (7)": "Two small encoders of scikit-learn's digits in halves. The terms stand beside "
    "the cross-entropy of a linear layer on both features, without (3) and without the weights "
    "of (12), so this is not the paper's whole model. Test samples.",
}
IMAGE, TEXT, THIRD = "#0b6e99", "#b5541c", "#4d4d4d"


def standardized(splits: Mapping[str, Split]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and test features by the moments of the training posts."""
    train, test = splits["train"].features, splits["test"].features
    scales = {m: Standardize(x.shape[1]).fit(x).eval() for m, x in train.items()}
    return tuple({m: scales[m](x[m]) for m in train} for x in (train, test))  # type: ignore[return-value]


def weights(train: Mapping[str, Tensor], test: Mapping[str, Tensor]) -> dict[str, Any]:
    """(12): the weight of an intact post, by how many coordinates of each modality are used."""
    widths = [2**k for k in range(1, 9)] + [min(x.shape[1] for x in train.values())]
    made: dict[str, Any] = {"widths": widths, "quantiles": []}
    for width in widths:
        pair = torch.zeros(())
        for m, x in test.items():
            pair = pair + gaussian_log_prob(x[:, :width], fit_gaussian(train[m][:, :width]))
        made["quantiles"].append(pair.exp().quantile(SHARES).tolist())
    whole = sum(gaussian_log_prob(test[m], fit_gaussian(train[m])) for m in test)
    assert isinstance(whole, Tensor)
    return made | {"whole": whole.exp().median().item()}


def admission(train: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """(13): admitted rows and the queue's spread beside that of all posts, epoch by epoch."""
    made: dict[str, Any] = {}
    for rule in (admit_above_mean, admit_all):
        for m, x in train.items():
            queue, estimator = (
                FeatureQueue(x.shape[1], CAPACITY),
                GaussianQualityEstimator(x.shape[1]),
            )
            whole, order = fit_gaussian(x).scale, torch.Generator().manual_seed(seed)
            curve: dict[str, list[float]] = {"admitted": [], "spread": []}
            for _ in range(EPOCHS["admission"]):
                entered = seen = 0
                for rows in batches(len(x), BATCH, order):
                    scores = estimator.log_prob(x[rows]), estimator.log_prob(queue.storage)
                    accepted = rule(*scores, queue.valid) | (queue.count < estimator.min_samples)
                    queue.enqueue(x[rows], accepted)
                    estimator.fit(queue.storage, queue.valid)
                    entered, seen = entered + int(accepted.sum()), seen + len(rows)
                curve["admitted"].append(entered / seen)
                curve["spread"].append((estimator.scale / whole).item())
            made.setdefault(rule.__name__, {})[m] = curve
    return made


def recovery(
    train: Mapping[str, Tensor], test: Mapping[str, Tensor], seed: int
) -> dict[str, dict[str, Any]]:
    """(10), (11): log-density of a recovered feature minus that of the real one, test posts."""
    made = {}
    for source, target in WAYS:
        torch.manual_seed(seed)
        convert = ModalityConverter(train[source].shape[1], train[target].shape[1])
        criterion, reference = DistributionRecoveryLoss(), fit_gaussian(train[target])
        optimizer = torch.optim.AdamW(convert.parameters(), lr=3e-4)
        order = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS["converter"]):
            for rows in batches(len(train[source]), 64, order):
                queue = torch.randint(len(train[source]), (CAPACITY,), generator=order)
                loss = criterion(
                    convert(train[source][rows]),
                    train[target][rows],
                    fit_gaussian(convert(train[source][queue])),
                    reference,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            found = gaussian_log_prob(convert(test[source]), reference)
            gain = found - gaussian_log_prob(test[target], reference)
        counts, edges = torch.histogram(gain.clamp(-1.5, 1.5), bins=30, range=(-1.5, 1.5))
        made[f"{target} from {source}"] = {
            "denser": (gain > 0).float().mean().item(),
            "heights": (counts / len(gain)).tolist(),
            "edges": edges.tolist(),
        }
    return made


def gradients(seed: int) -> dict[str, dict[str, list[float]]]:
    """(4), (7): encoders of digits in halves, trained with and without their gradients."""
    split, made = load_digit_halves(seed), {}
    train, test = split["train"], split["test"]
    for name, detach in TRAINED.items():
        torch.manual_seed(seed)
        encoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for m in train.dims}
        )
        recover = CrossModalRecovery(dict.fromkeys(train.dims, 32), detach=bool(detach))
        classify, criterion = nn.Linear(64, train.num_classes), DistributionRecoveryLoss()
        optimizer = torch.optim.AdamW(
            nn.ModuleList([encoders, recover, classify]).parameters(), lr=2e-3
        )
        order = torch.Generator().manual_seed(seed)
        curve: dict[str, list[float]] = {"spread": [], "accuracy": []}
        for _ in range(EPOCHS["encoders"]):
            for rows in batches(len(train), 64, order):
                z = {m: encoder(train.features[m][rows]) for m, encoder in encoders.items()}
                loss = F.cross_entropy(
                    classify(torch.cat(list(z.values()), 1)), train.labels[rows]
                )
                if detach is not None:
                    wanted = {m: x.detach() if detach else x for m, x in z.items()}
                    for target, sources in recover(z).items():
                        for recovered in sources.values():
                            loss = loss + criterion(
                                recovered,
                                wanted[target],
                                fit_gaussian(recovered),
                                fit_gaussian(wanted[target]),
                            )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                z = {m: encoder(test.features[m]) for m, encoder in encoders.items()}
                right = classify(torch.cat(list(z.values()), 1)).argmax(1) == test.labels
            spreads = [fit_gaussian(x).scale for x in z.values()]
            curve["spread"].append(torch.stack(spreads).mean().item())
            curve["accuracy"].append(right.float().mean().item())
        made[name] = curve
    return made


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """One figure a choice."""
    figure, panel = _panel(ylabel="weight of an intact post", xlabel="coordinates used, of each")
    low, middle, high = torch.tensor(results["weights"]["quantiles"]).T.tolist()
    panel.fill_between(results["weights"]["widths"], low, high, color=THIRD, alpha=0.2, lw=0)
    panel.plot(results["weights"]["widths"], middle, color=THIRD, marker="o", ms=4)
    panel.set(xscale="log", yscale="log")
    figure.savefig(folder / FIGURES["(12)"])

    figure, panel = _panel(ylabel="spread / that of all posts", xlabel="epoch", ylim=(0, 1.1))
    steps = range(1, EPOCHS["admission"] + 1)
    for rule, line, words in ((admit_all, ":", "all enter"), (admit_above_mean, "-", "(13)")):
        for m, colour in (("image", IMAGE), ("text", TEXT)):
            curves = [run[rule.__name__][m]["spread"] for run in results["admission"]]
            panel.plot(steps, _mean(curves), line, color=colour, label=f"{m}, {words}")
    panel.legend(frameon=False, ncols=2)
    figure.savefig(folder / FIGURES["(13)"])

    figure, panel = _panel(
        ylabel="test posts (%)", xlabel="log-density of the recovered minus that of the real"
    )
    for way, colour in (("image from text", IMAGE), ("text from image", TEXT)):
        heights = [run[way]["heights"] for run in results["recovery"]]
        values = [100 * value for value in _mean(heights)]
        panel.stairs(values, results["recovery"][0][way]["edges"], color=colour, label=way)
    panel.axvline(0, color=THIRD, lw=0.8)
    panel.legend(frameon=False, loc="upper left")
    figure.savefig(folder / FIGURES["(10), (11)"])

    figure, panel = _panel(ylabel="σ of test features", xlabel="epoch", yscale="log")
    steps = range(1, EPOCHS["encoders"] + 1)
    for name, colour, line in zip(TRAINED, (THIRD, IMAGE, TEXT), ("-", ":", "-"), strict=True):
        curves = [run[name]["spread"] for run in results["gradients"]]
        panel.plot(steps, _mean(curves), line, color=colour, label=name)
    panel.legend(frameon=False)
    figure.savefig(folder / FIGURES["(4), (7)"])


def _panel(**labels: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.1), layout="constrained", dpi=144)
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    panel.set(**labels)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(visible=True, color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    return figure, panel


def page(record: Mapping[str, Any]) -> str:
    """The page of results: a section a choice."""
    results = record["results"]
    rows: dict[str, list[tuple[str, str]]] = {equation: [] for equation in FIGURES}
    wide, last = results["weights"]["widths"][-1], results["weights"]["quantiles"][-1][1]
    rows["(12)"] = [
        (f"median, {wide} coordinates of each modality", f"{last:.1e}"),
        ("median, all coordinates", f"{results['weights']['whole']:.1e}"),
    ]
    for m in ("image", "text"):
        for rule, words in ((admit_above_mean, "(13)"), (admit_all, "all enter")):
            curves = [run[rule.__name__][m] for run in results["admission"]]
            admitted = _mean([curve["admitted"] for curve in curves])[-1]
            spread = _mean([curve["spread"] for curve in curves])[-1]
            rows["(13)"] += [
                (f"{m}, {words}: rows admitted", f"{100 * admitted:.1f} %"),
                (f"{m}, {words}: spread beside that of all posts", f"{spread:.2f}"),
            ]
    for source, target in WAYS:
        way = f"{target} from {source}"
        denser = _mean([[run[way]["denser"]] for run in results["recovery"]])[0]
        rows["(10), (11)"].append((f"{way}: denser than the real one", f"{100 * denser:.0f} %"))
    for name in TRAINED:
        for kind, words in (("spread", "σ"), ("accuracy", "accuracy")):
            curve = _mean([run[name][kind] for run in results["gradients"]])
            for epoch in (EARLY, EPOCHS["encoders"]):
                value = curve[epoch - 1]
                shown = f"{value:.2f}" if kind == "spread" else f"{100 * value:.1f} %"
                rows["(4), (7)"].append((f"{name}: {words}, epoch {epoch}", shown))
    lines = [
        "# Four choices of the paper, each alone",
        "",
        "What the paper's equations do on their own, all else held fixed. "
        "[The method](../about/method.md#what-we-changed-and-why) says what the default head "
        "does instead.",
    ]
    for equation, file in FIGURES.items():
        title, words = CAPTIONS[equation], NOTES[equation]
        lines += ["", f"## {equation}: {title}", "", f"![{title}](../assets/{file})", "", words]
        lines += ["", "| | value |", "| --- | ---: |"]
        lines += [f"| {what} | {value} |" for what, value in rows[equation]]
    lines += [
        "",
        "## Record",
        "",
        f"Means over {len(record['seeds'])} seeds, except (12), which has nothing random. "
        f"`benchmarks/results/{NAME}.json`: `{record['command']}`, commit {record['commit']}, "
        f"{record['date']}; {record['data']}; {record['machine']['processor']}, torch "
        f"{record['machine']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def render() -> None:
    """Write page and figure of the record."""
    record = read_record(NAME)
    draw(record["results"], PAGES / "assets")
    (PAGES / "results" / "paper-choices.md").write_text(dated(page(record), record))


def main() -> None:
    """Measure, unless told to render only."""
    parser = argparse.ArgumentParser(description="Four choices of the paper, each alone.")
    parser.add_argument("--mvsa", type=Path, help="folder with features.npz of the data pack")
    parser.add_argument("--render", action="store_true", help="page and figure of the record")
    given = parser.parse_args()
    if not given.render:
        if given.mvsa is None:
            parser.error("--mvsa is needed to measure")
        train, test = standardized(load_mvsa(given.mvsa / "features.npz"))
        results = {
            "weights": weights(train, test),
            "admission": [admission(train, seed) for seed in SEEDS],
            "recovery": [recovery(train, test, seed) for seed in SEEDS],
            "gradients": [gradients(seed) for seed in SEEDS],
        }
        data = "MVSA-Single, frozen EfficientNet-Lite0 and MiniLM-L6 features; digits in halves"
        write_record(NAME, results, data=data, seeds=list(SEEDS))
    render()


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    mean: list[float] = torch.tensor(curves).mean(0).tolist()
    return mean


if __name__ == "__main__":
    main()
