"""The paper's Tables 1, 3 and 4 and Figures 3, 5 and 6 in our numbers, on MVSA-Single.

    python benchmarks/paper_tables.py --mvsa DIR

reads the frozen features of the data pack in DIR, trains every head, measures it over the grid of
disruptions and writes records, tables and figures to `--output`. With `--record` they become those
of the docs. Each training leaves a report in `--output`. It is read from there, and the program
says so, while the code and weights of the head, the features, the training and the library are the
same: a stopped run goes on.

    python benchmarks/paper_tables.py --mvsa DIR --model my_head.py:MyHead

adds a head of your own, made by `MyHead(dims, num_classes)` with `dims` the width of each
modality; the page of results shows such a class, with its `loss`.

    python benchmarks/paper_tables.py --mvsa DIR --mpnet FILE

makes the tables once more, without the figures, from texts encoded by MPNet-base, of the size of
the paper's text encoder (`encode_text.py` writes FILE).

Encoders are frozen, so features keep the scale they came with, and at unit variance of each
coordinate the paper's weights (12) are near zero. Before its head, therefore, one fixed number a
modality gives them a deviation of 0.4. `paper_scale.py` shows the head without that.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _cache import digest
from _data import Split, load_mvsa
from _heads import own_makers
from _record import RESULTS, write_record
from _render_paper import write
from _train import Training, scaled, train
from torch import nn

from robustfusion import DRFHead, PaperDRFHead
from robustfusion.baselines import ConcatenationHead
from robustfusion.datasets.duplicates import normalize_text
from robustfusion.disruption import Disruption
from robustfusion.disruption.grid import RATES, robustness_grid
from robustfusion.evaluation import RobustnessReport, compare, robustness_report
from robustfusion.evaluation.statistics import holm

DEFAULT, PAPER, BASELINE = "DRFHead", "PaperDRFHead", "Concatenation + modality dropout"
PLAIN = "Concatenation"
ABLATIONS = {
    "without sample-based recovery": "sample_recovery",
    "without distribution-based recovery": "distribution_recovery",
    "without Gaussian probability": "gaussian_quality",
    "without pair expansion": "expansion",
    "without distribution constraint": "distribution_constraint",
}
# The scale of features before the head of the paper.
SCALE: dict[str, Any] = {"covariance_type": "spherical", "target_std": 0.4}
DISRUPTION_SEEDS = (0, 1, 2)
BINS = 24
POINTS = 120  # posts in the figure of recovered features

Maker = Callable[[Mapping[str, int], int], nn.Module]


class Job(NamedTuple):
    """One training: `rate` is the share of training posts that are disrupted (C+D)."""

    row: str
    seed: int
    rate: float = 0.0

    @property
    def file(self) -> str:
        """Name of its report."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.row.lower()).strip("-")
        return f"{slug}-seed{self.seed}-rate{self.rate:g}.json"


def makers() -> dict[str, Maker]:
    """Every row by name, in the order of the tables."""
    return {
        DEFAULT: DRFHead,
        PAPER: PaperDRFHead,
        **{row: partial(PaperDRFHead, **{switch: False}) for row, switch in ABLATIONS.items()},
        BASELINE: partial(ConcatenationHead, modality_dropout=0.3),
        PLAIN: ConcatenationHead,
    }


def schedule(own: Sequence[str], seeds: Sequence[int], rate_seeds: Sequence[int]) -> Iterator[Job]:
    """All trainings, so ordered that a run that is stopped early has the most needed ones."""
    curves = [DEFAULT, PAPER, BASELINE, *own]
    for seed in seeds[:2]:
        yield from (Job(row, seed) for row in (*curves, PLAIN, *ABLATIONS))
    yield from (Job(row, seed, rate) for seed in rate_seeds for rate in RATES for row in curves)
    for seed in seeds[2:]:
        yield from (Job(row, seed) for row in (*curves, PLAIN, *ABLATIONS))


def measure(
    job: Job, make: Maker, training: Training, splits: Mapping[str, Split], path: Path
) -> bool:
    """Train and write the report of the test posts; False if the same one was there before."""
    split, test = splits["train"], splits["test"]
    disruption = None
    if job.rate:
        disruption = Disruption(tuple(split.dims), setting="C+D", strategy="random", rate=job.rate)
    scale = SCALE if job.row == PAPER or job.row in ABLATIONS else {}

    def make_head() -> nn.Module:
        return scaled(make(split.dims, split.num_classes), split.features, **scale)

    torch.manual_seed(job.seed)
    settings = {**job._asdict(), **asdict(training), "threads": torch.get_num_threads()}
    key = digest(make_head(), (split, test), split, (settings, scale))
    if path.exists() and RobustnessReport.load(path).record.get("digest") == key:
        return False
    begun = time.process_time()
    model = train(make_head, split, training, job.seed, disruption=disruption)
    seconds = round(time.process_time() - begun, 1)
    data = test.evaluation()
    grid = robustness_grid(data.modalities, rates=(job.rate,) if job.rate else RATES)
    report = robustness_report(model, data, grid, seeds=DISRUPTION_SEEDS)
    report = report.named(job.row, settings=settings, digest=key, cpu_seconds=seconds)
    if job != Job(PAPER, job.seed):
        report = replace(report, recovered={})
    path.parent.mkdir(parents=True, exist_ok=True)
    report.with_intervals(replicates=0).save(path)
    return True


def texts_in_train(folder: Path) -> float:
    """Share of the test posts whose text, but for handles, links and case, is also in train."""
    with np.load(folder / "features.npz") as pack:
        names = {
            split: [str(i) for i in pack["id"][pack["split"] == split]]
            for split in ("train", "test")
        }

    def texts(split: str) -> list[str]:
        paths = [folder / "data" / f"{name}.txt" for name in names[split]]
        return [normalize_text(path.read_bytes().decode("utf-8", "ignore")) for path in paths]

    # Some posts have no text but handles and links.
    known = set(texts("train")) - {""}
    return float(np.mean([text in known for text in texts("test")]))


def scores(reports: Sequence[RobustnessReport]) -> dict[str, Any]:
    """The scores of one row: by condition and metric, one number for each training seed."""
    metrics = ("accuracy", "macro_f1", "weighted_f1")
    return {
        key: {m: [round(getattr(r[key], m).value, 5) for r in reports] for m in metrics}
        for key in reports[0].scores
    }


def p_values(
    ours: Sequence[RobustnessReport], theirs: Sequence[RobustnessReport]
) -> dict[str, float]:
    """Paired tests by condition: over the seeds of training twice the median, then Holm's."""
    count = min(len(ours), len(theirs))
    cells = compare(ours[:count], theirs[:count], replicates=0).cells
    keys = [key for key in cells if not key.startswith("random")]
    adjusted = holm(np.asarray([cells[key].mcnemar_p for key in keys]))
    return dict(zip(keys, (round(float(p), 5) for p in adjusted), strict=True))


def histogram(reports: Sequence[RobustnessReport], modality: str) -> dict[str, Any]:
    """Quality scores of the first training, binned; lower ones than the first bin are in it."""
    quality = reports[0].quality[modality]
    clean, corrupted = quality.clean, quality.corrupted.ravel()
    both = np.concatenate([clean, corrupted])
    low, high = np.quantile(both, 0.01), both.max()
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)

    def shares(values: Any) -> list[float]:
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        return [round(float(n), 4) for n in counts / len(values)]

    return {
        "edges": [round(float(e), 5) for e in edges],
        "clean": shares(clean),
        "corrupted": shares(corrupted),
        "auroc": [round(r.quality[modality].auroc.value, 4) for r in reports],
    }


def recovered(report: RobustnessReport) -> dict[str, Any]:
    """True and recovered features in the plane, by direction: principal axes and t-SNE."""
    from sklearn.manifold import TSNE

    planes = {}
    for (target, source), all_points in report.recovered.items():
        rows = slice(None, None, -(-len(all_points.labels) // POINTS))
        points = all_points._replace(
            true=all_points.true[rows], recovered=all_points.recovered[rows]
        )
        joint = np.concatenate([points.true, points.recovered])
        flat = TSNE(init="pca", random_state=0).fit_transform(joint)
        count = len(points.true)

        def packed(values: Any) -> str:
            return " ".join(f"{x:.3g},{y:.3g}" for x, y in values)

        distance = np.linalg.norm(points.true - points.recovered, axis=1).mean()
        mean_distance = np.linalg.norm(points.true - points.true.mean(0), axis=1).mean()
        planes[f"{target} from {source}"] = {
            "pca": {"true": packed(joint[:count, :2]), "recovered": packed(joint[count:, :2])},
            "tsne": {"true": packed(flat[:count]), "recovered": packed(flat[count:])},
            "explained": [round(float(share), 4) for share in points.explained[:2]],
            "distance_by_spread": round(float(distance / mean_distance), 4),
        }
    return planes


def collect(
    reports: Mapping[Job, RobustnessReport],
    rows: Sequence[str],
    folder: Path,
    splits: Mapping[str, Split],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two records: tables and curves, and the figures of single posts' numbers."""
    clean: dict[str, list[RobustnessReport]] = {}
    curves: dict[str, dict[str, dict[str, Any]]] = {}
    seeds: dict[str, list[int]] = {}
    for job, report in sorted(reports.items(), key=lambda item: item[0].seed):
        if not job.rate:
            clean.setdefault(job.row, []).append(report)
            seeds.setdefault(job.row, []).append(job.seed)
            continue
        for key, cell in report.scores.items():
            if key.startswith("random"):
                points = curves.setdefault(job.row, {}).setdefault(
                    key, {"seeds": [], "accuracy": []}
                )
                points["seeds"].append(job.seed)
                points["accuracy"].append(round(cell.accuracy.value, 5))
    first = next(iter(clean.values()))[0]
    present = [row for row in rows if row in clean]
    tables = {
        "posts": {name: len(split) for name, split in splits.items()},
        "majority": first.majority._asdict(),
        "texts_in_train": round(texts_in_train(folder), 4),
        "disruption_seeds": list(DISRUPTION_SEEDS),
        "rows": {
            row: {
                "seeds": seeds[row],
                "training": {k: clean[row][0].record["settings"][k] for k in vars(Training())},
                "cpu_seconds": [r.record["cpu_seconds"] for r in clean[row]],
                "scores": scores(clean[row]),
                "p_values": {} if row == BASELINE else p_values(clean[row], clean[BASELINE]),
                "auroc": {
                    m: [round(r.quality[m].auroc.value, 4) for r in clean[row]]
                    for m in first.modalities
                    if all(m in r.quality for r in clean[row])
                },
            }
            for row in present
        },
        "trained_disrupted": {row: curves[row] for row in rows if row in curves},
        "known_rows": list(makers()),
        "baseline": BASELINE,
        "ablations": list(ABLATIONS),
    }
    scored = {row: clean[row] for row in (DEFAULT, PAPER) if row in clean}
    figures = {
        "quality": {
            row: {modality: histogram(reports_of, modality) for modality in reports_of[0].quality}
            for row, reports_of in scored.items()
        },
        "recovered": recovered(clean[PAPER][0]) if PAPER in clean else {},
    }
    return tables, figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mvsa", type=Path, required=True, metavar="DIR", help="the data pack")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/paper_tables"),
        help="folder of its files",
    )
    parser.add_argument("--record", action="store_true", help="write the records of the docs")
    parser.add_argument("--model", metavar="FILE.py:FACTORY", help="a head of your own")
    parser.add_argument("--mpnet", type=Path, help="features.npz with texts of MPNet-base")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row")
    parser.add_argument("--rate-seeds", type=int, default=1, help="of these, for Figure 5")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no training after"
    )
    options = parser.parse_args()
    if not (options.mvsa / "features.npz").is_file():
        raise SystemExit(f"error: --mvsa {options.mvsa} has no features.npz")
    if options.model and (options.mpnet or options.record):
        raise SystemExit("error: --model goes with neither --mpnet nor --record")
    torch.set_num_threads(1)
    splits = load_mvsa(options.mpnet or options.mvsa / "features.npz")
    rows, own = makers(), []
    if options.model:
        dims, classes = splits["train"].dims, splits["train"].num_classes
        try:
            makers_of_own = own_makers((options.model,), tuple(dims.items()), classes)
        except ValueError as problem:
            raise SystemExit(f"error: {problem}") from None
        rows, own = rows | makers_of_own, list(makers_of_own)
        for name in own:
            if not hasattr(rows[name](dims, classes), "loss"):
                raise SystemExit(f"error: --model: what {name} makes needs loss(output, labels)")
    seeds = list(range(options.seeds))
    rate_seeds = [] if options.mpnet else seeds[: options.rate_seeds]
    jobs = list(schedule(own, seeds, rate_seeds))
    begun, reports = time.monotonic(), {}
    for number, job in enumerate(jobs, 1):
        path = options.output / ("mpnet" if options.mpnet else "reports") / job.file
        if path.exists() or time.monotonic() - begun < 60 * options.minutes:
            new = measure(job, rows[job.row], Training(epochs=options.epochs), splits, path)
            reports[job] = RobustnessReport.load(path)
            words = f"intact {100 * reports[job]['clean'].accuracy.value:.1f}"
            words += "" if new else " (from cache)"
            print(f"{number}/{len(jobs)} {job.file}: {words}", flush=True)
    lacking = {DEFAULT, PAPER, BASELINE, *own} - {job.row for job in reports if not job.rate}
    if lacking:
        raise SystemExit(
            f"not trained yet: {', '.join(sorted(lacking))}. The same command goes on"
        )
    tables, figures = collect(reports, list(rows), options.mvsa, splits)
    text = "MPNet-base" if options.mpnet else "MiniLM-L6"
    data = f"MVSA-Single, 4,061 posts of the data pack, frozen EfficientNet-Lite0 and {text}"
    folder = RESULTS if options.record else options.output
    name = "mvsa_mpnet" if options.mpnet else "mvsa"
    write_record(name, tables, data=data, seeds=seeds, folder=folder)
    if not options.mpnet:
        write_record("mvsa_figures", figures, data=data, seeds=seeds, folder=folder)
    if options.record:
        print("python benchmarks/render.py puts the tables into the page")
    elif (folder / "mvsa.json").exists():
        for path in write(folder):
            print(path)


if __name__ == "__main__":
    main()
