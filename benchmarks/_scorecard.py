"""From finished jobs to records: tables with intervals and paired tests, and the scorecard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _ablation import ROWS
from _record import read_record, write_record
from numpy.typing import NDArray

from robustfusion.evaluation.compare import paired
from robustfusion.evaluation.statistics import bootstrap_means, estimate, separation_auroc

Job = dict[str, NDArray[Any]]
Jobs = dict[str, dict[int, Job]]

BASELINES = ("concatenation", "concatenation + dropout")
OURS = "DRF"
REPLICATES = 2000  # of accuracies; the tests have those of the library
RATES = (0.2, 0.4, 0.6, 0.8, 1.0)
MVSA = "MVSA-Single, 450 official test posts of the pack, frozen EfficientNet-Lite0 and MiniLM-L6"


def load(runs: Path, part: str) -> Jobs:
    """All finished jobs of a part, by name and seed."""
    jobs: Jobs = defaultdict(dict)
    for path in sorted((runs / part).glob("*.npz")):
        name, seed = path.stem.rsplit("~", 1)
        with np.load(path) as file:
            jobs[name][int(seed)] = {key: file[key] for key in file.files}
    return dict(jobs)


def common_seeds(jobs: Jobs, names: Sequence[str]) -> list[int]:
    """Seeds that every one of the heads was trained under."""
    if any(name not in jobs for name in names):
        return []
    return sorted(set.intersection(*(set(jobs[name]) for name in names)))


def right(jobs: Mapping[int, Job], seeds: Sequence[int], cell: str) -> NDArray[np.bool_]:
    """Which samples are right, (training seeds, disruption seeds, samples)."""
    return np.stack([jobs[seed][f"right/{cell}"] for seed in seeds])


def points(values: NDArray[Any]) -> list[float]:
    """Mean of (T, S, N) and its interval in percent."""
    draws = bootstrap_means({"": values.astype(np.float32)}, REPLICATES, 0)[""]
    return percent(estimate(float(values.mean(dtype=np.float64)), draws, 0.95))


def percent(values: Sequence[float]) -> list[float]:
    """For a record."""
    return [round(100 * value, 2) for value in values]


def against(
    ours: Mapping[int, Job],
    theirs: Mapping[int, Job],
    seeds: Sequence[int],
    cells: Mapping[str, str],
) -> dict[str, Any]:
    """Our paired differences by the names of the cells, and the mean one of all but "clean"."""
    first, second = (
        {name: right(side, seeds, cell) for name, cell in cells.items()} for side in (ours, theirs)
    )
    found, mean, p = paired(first, second)
    rows: dict[str, Any] = {
        name: {
            "difference": percent(row.difference),
            **{
                key: round(getattr(row, key), 4)
                for key in ("permutation_p", "mcnemar_p", "holm_p")
            },
        }
        for name, row in found.items()
    }
    return {**rows, "mean": {"difference": percent(mean), "permutation_p": round(p, 4)}}


def table(jobs: Jobs, cells: Sequence[str], rivals: Sequence[str] = BASELINES) -> dict[str, Any]:
    """Accuracy of all heads by condition, and ours against each rival, paired."""
    names = [*rivals, OURS]
    seeds = common_seeds(jobs, names)
    if not seeds:
        return {}
    made: dict[str, Any] = {"seeds": seeds, "accuracy": {}, "macro_f1": {}, "against": {}}
    for name in names:
        made["accuracy"][name] = {c: points(right(jobs[name], seeds, c)) for c in cells}
        scores = {
            c: [jobs[name][s][f"macro_f1/{c}"] for s in seeds]
            for c in cells
            if f"macro_f1/{c}" in jobs[name][seeds[0]]
        }
        made["macro_f1"][name] = {c: round(100 * float(np.mean(v)), 2) for c, v in scores.items()}
    for name in rivals:
        rows = against(jobs[OURS], jobs[name], seeds, {c: c for c in cells})
        made["against"][name] = {c: rows[c] for c in cells}
    return made


def fixed_cells(modalities: Sequence[str]) -> list[str]:
    """Clean and modality-fixed."""
    return ["clean", *(f"fixed/{m}/{s}" for m in modalities for s in ("C", "D", "C+D"))]


def best(made: Mapping[str, Any], cell: str) -> str:
    """The baseline with the highest accuracy in a cell."""
    return max(BASELINES, key=lambda name: made["accuracy"][name][cell][0])


def auroc_of(job: Job, name: str, corrupted: str) -> float:
    """AUROC of clean against corrupted, mean over the draws."""
    clean = job[f"quality/{name}/clean"].astype(np.float64)
    draws = job[f"quality/{corrupted}"].astype(np.float64)
    return float(np.mean([separation_auroc(clean, row)[0] for row in draws]))


def quality(
    jobs: Mapping[int, Job], labels: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """AUROC by kind of corruption; mean probability of being intact by class."""
    made: dict[str, Any] = {}
    for modality in ("image", "text"):
        found: dict[str, Any] = {"auroc": {}, "class_means": {}}
        kinds = sorted(
            {
                key.split(":", 1)[1]
                for job in jobs.values()
                for key in job
                if _unseen(key, modality)
            }
        )
        kept = [("mask", f"{modality}/corrupted"), *((k, f"{modality}:{k}") for k in kinds)]
        for kind, key in kept:
            values = [auroc_of(job, modality, key) for job in jobs.values()]
            found["auroc"][kind] = [round(float(np.mean(values)), 4), round(_spread(values), 4)]
        clean = np.exp(np.stack([job[f"quality/{modality}/clean"] for job in jobs.values()]))
        bad = np.exp(
            np.concatenate([job[f"quality/{modality}/corrupted"] for job in jobs.values()])
        )
        for number, name in enumerate(names):
            at = labels == number
            found["class_means"][name] = {
                "posts": int(at.sum()),
                "clean": round(float(clean[:, at].mean()), 3),
                "corrupted": round(float(bad[:, at].mean()), 3),
            }
        made[modality] = found
    return made


def _unseen(key: str, modality: str) -> bool:
    return key.startswith(f"quality/{modality}:")


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def by_share(jobs: Mapping[int, Job]) -> dict[str, Any]:
    """Mean quality and its quartiles at each corrupted share, clean first."""
    made: dict[str, Any] = {}
    jobs = {seed: job for seed, job in jobs.items() if "share" in job}
    if not jobs:
        return made
    shares = next(iter(jobs.values()))["share"]
    made["share"] = [0.0, *map(float, shares)]
    for modality in ("image", "text"):
        posts = next(iter(jobs.values()))[f"by-share/{modality}"].shape[1]
        clean = np.mean(
            [np.exp(job[f"quality/{modality}/clean"][:posts]) for job in jobs.values()], axis=0
        )
        values = np.mean([job[f"by-share/{modality}"] for job in jobs.values()], axis=0)
        rows = np.vstack([clean, values])
        made["posts"] = posts
        made[modality] = {
            "mean": rows.mean(1).round(4).tolist(),
            "low": np.quantile(rows, 0.25, axis=1).round(4).tolist(),
            "high": np.quantile(rows, 0.75, axis=1).round(4).tolist(),
        }
    return made


def goal(number: str, what: str, needed: str, found: str, met: bool | None) -> dict[str, Any]:
    """A line of the scorecard; `met` None: not measured here."""
    verdict = "not measured" if met is None else "met" if met else "not met"
    return {"goal": number, "what": what, "needed": needed, "found": found, "verdict": verdict}


def against_best(made: Mapping[str, Any], cell: str) -> tuple[float, dict[str, Any], str]:
    """Our difference from the best baseline of a cell."""
    name = best(made, cell)
    row = made["against"][name][cell]
    return row["difference"][0], row, name


def judge_cells(number: str, data: str, made: Mapping[str, Any], cells: Sequence[str]) -> Any:
    """At least the best baseline in each cell, literally."""
    for cell in cells:
        gap, row, name = against_best(made, cell)
        low, high = row["difference"][1:]
        yield goal(
            number,
            f"{data}, {cell.removeprefix('fixed/')}",
            f"≥ {name}",
            f"{gap:+.1f} [{low:+.1f}, {high:+.1f}], p {row['permutation_p']:.3f}",
            gap >= 0,
        )


def judge_clean(data: str, made: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Clean accuracy within half a standard error of the best baseline."""
    gap, row, name = against_best(made, "clean")
    share = made["accuracy"][name]["clean"][0] / 100
    half = 50 * float(np.sqrt(share * (1 - share) / samples))
    low, high = row["difference"][1:]
    strict = (high - low) / (4 * 1.96)
    return goal(
        "1",
        f"{data}, clean",
        f"≥ {name} − {half:.1f} (half a standard error of an accuracy)",
        f"{gap:+.1f}; half a standard error of the paired difference is {strict:.1f}",
        gap >= -half,
    )


def judge_premium(data: str, jobs: Mapping[int, Job], seeds: Sequence[int], names: Any) -> Any:
    """Accuracy under C at least that under D, less half a point."""
    for modality in names:
        corrupted, discarded = (right(jobs, seeds, f"fixed/{modality}/{s}") for s in "CD")
        found = points(corrupted.astype(np.float32) - discarded)
        yield goal(
            "3",
            f"{data}, {modality}: C − D",
            "≥ −0.5",
            f"{found[0]:+.1f} [{found[1]:+.1f}, {found[2]:+.1f}]",
            found[0] >= -0.5,
        )


def drops(jobs: Jobs, disrupted: Jobs | None) -> dict[str, Any]:
    """Drop from clean to modality-random C+D at each rate, by head."""
    names = [*BASELINES, OURS]
    made: dict[str, Any] = {}
    for rate in RATES:
        if disrupted is None:
            seeds = common_seeds(jobs, names)
            at = {n: right(jobs[n], seeds, f"random/{rate:g}/C+D") for n in names}
        else:
            keys = [f"{n}, {rate}" for n in names]
            seeds = common_seeds(disrupted, keys)
            if not seeds:
                continue
            at = {
                n: right(disrupted[k], seeds, f"random/{rate:g}/C+D")
                for n, k in zip(names, keys, strict=True)
            }
        clean = {n: right(jobs[n], seeds, "clean").astype(np.float32) for n in names}
        made[f"{rate:g}"] = {
            "seeds": len(seeds),
            "accuracy": {n: points(at[n]) for n in names},
            "drop": {n: points(clean[n] - at[n]) for n in names},
        }
        if disrupted is None:
            absent = right(jobs[OURS], seeds, f"random/{rate:g}/D")
            made[f"{rate:g}"]["absent_drop"] = points(clean[OURS] - absent)
    return made


def judge_drops(number: str, what: str, rows: Mapping[str, Any]) -> Any:
    """At most half the drop of the baseline that is best at the rate."""
    for rate, row in rows.items():
        name = max(BASELINES, key=lambda n: row["accuracy"][n][0])
        ours, theirs = row["drop"][OURS][0], row["drop"][name][0]
        yield goal(
            number,
            f"{what}, rate {rate}: drop from clean",
            f"≤ {theirs / 2:.1f}, half that of {name}",
            f"{ours:.1f} ({row['accuracy'][OURS][0]:.1f} against {row['accuracy'][name][0]:.1f})",
            ours <= theirs / 2,
        )


def judge_quality(found: Mapping[str, Any]) -> Any:
    """Goals 5 and 6 on frozen features."""
    for modality, needed in (("text", 0.95), ("image", 0.93)):
        value = found[modality]["auroc"]["mask"][0]
        yield goal(
            "5", f"AUROC, {modality}, frozen", f"≥ {needed}", f"{value:.3f}", value >= needed
        )
    trained = read_record("end_to_end")["results"]
    for modality, needed in (("text", 0.95), ("image", 0.93)):
        value = trained["quality_auroc"]["DRF"][modality][0]
        how = "frozen" if modality in trained["settings"]["frozen"] else "trained end to end"
        yield goal(
            "5",
            f"AUROC, {modality}, {how}, run of raw posts",
            f"≥ {needed}",
            f"{value:.3f}",
            value >= needed,
        )
    for modality in ("image", "text"):
        means = found[modality]["class_means"]
        clean = {name: row["clean"] for name, row in means.items()}
        worst = min(clean, key=lambda name: clean[name])
        corrupted = max(row["corrupted"] for row in means.values())
        yield goal(
            "6",
            f"{modality}: mean quality of clean posts of every class",
            "> 0.5, classes within 0.1",
            f"{worst} lowest, {clean[worst]:.2f}; highest {max(clean.values()):.2f}; "
            f"corrupted at most {corrupted:.2f}",
            clean[worst] > 0.5 and max(clean.values()) - clean[worst] <= 0.1,
        )


def ablation(runs: Path) -> dict[str, Any]:
    """Every row with intervals, and its paired difference from the default."""
    jobs = load(runs, "ablation")
    jobs["default"] = load(runs, "mvsa").get(OURS, {})
    cells = fixed_cells(("image", "text"))
    made: dict[str, Any] = {}
    known = {row: common_seeds(jobs, [row, "default"]) for row in ROWS}
    # The default is there for every seed of the other parts; here for those of the other rows.
    known["default"] = sorted(
        {s for row, seeds in known.items() if row != "default" for s in seeds}
    )
    for row, (title, *_) in ROWS.items():
        seeds = known[row]
        if not seeds:
            continue
        made[row] = {"title": title, "seeds": seeds, "accuracy": {}, "default_minus_row": {}}
        for cell in cells:
            made[row]["accuracy"][cell] = points(right(jobs[row], seeds, cell))
        if row != "default":
            sides = jobs["default"], jobs[row], seeds
            gaps = against(*sides, {cell: cell for cell in cells})
            chosen = {"intact": "clean", "image": "fixed/image/C+D", "text": "fixed/text/C+D"}
            gaps["mean"] = against(*sides, chosen)["mean"]
            made[row]["default_minus_row"] = gaps
        first = jobs[row][seeds[0]]
        if "quality/image/clean" in first:
            made[row]["auroc"] = {
                m: round(
                    float(np.mean([auroc_of(jobs[row][s], m, f"{m}/corrupted") for s in seeds])), 3
                )
                for m in ("image", "text")
            }
    return made


def write_all(runs: Path, settings: dict[str, Any], labels: NDArray[np.int64]) -> None:
    """Write the records of all parts whose jobs are there."""
    lines: list[dict[str, Any]] = []
    write_record(
        "recipe_tuning",
        {"settings": settings},
        data="training and validation samples only",
        seeds=[0],
    )
    jobs = load(runs, "mvsa")
    seeds = common_seeds(jobs, [*BASELINES, OURS])
    digits, views = load(runs, "digits"), load(runs, "views")
    digit_seeds = common_seeds(digits, [*BASELINES, OURS])
    view_seeds = common_seeds(views, [*BASELINES, OURS])
    results: dict[str, Any] = {"settings": settings}
    halves = ("upper", "lower")
    if seeds:
        cells = fixed_cells(("image", "text"))
        unseen = sorted(
            {
                k.removeprefix("right/")
                for k in jobs[OURS][seeds[0]]
                if k.startswith("right/") and ":" in k
            }
        )
        made = table(jobs, [*cells, *unseen])
        disrupted = load(runs, "disrupted")
        results["majority"] = round(100 * float(np.bincount(labels).max() / len(labels)), 2)
        results["mvsa"] = made
        results["unseen"] = unseen
        results["random"] = {
            "clean training": drops(jobs, None),
            "training disrupted alike": drops(jobs, disrupted),
        }
        results["quality"] = quality(jobs[OURS], labels, ("positive", "neutral", "negative"))
        results["by_share"] = by_share(jobs[OURS])
    if digit_seeds:
        results["digits"] = table(digits, fixed_cells(halves))
    if view_seeds:
        results["views"] = table(
            views, ["clean", "conflict", *(f"missing {n}" for n in range(1, 6))]
        )
    if seeds:
        lines.append(judge_clean("MVSA", made, len(labels)))
    if digit_seeds:
        lines.append(judge_clean("digits", results["digits"], 359))
    if seeds:
        lines += judge_cells("2", "MVSA", made, cells[1:])
        for cell, needed in (("fixed/image/C", 14.0), ("fixed/image/C+D", 7.0)):
            row = made["against"]["concatenation + dropout"][cell]["difference"]
            lines.append(
                goal(
                    "2",
                    f"MVSA, {cell.removeprefix('fixed/')}, over concatenation + dropout",
                    f"≥ +{needed:.0f}",
                    f"{row[0]:+.1f} [{row[1]:+.1f}, {row[2]:+.1f}]; +{needed:.0f} would be "
                    f"{made['accuracy'][BASELINES[1]][cell][0] + needed:.1f}, where DRF has "
                    f"{made['accuracy'][OURS]['clean'][0]:.1f} when clean",
                    row[0] >= needed,
                )
            )
    if digit_seeds:
        lines += judge_cells("2", "digits", results["digits"], fixed_cells(halves)[1:])
    if seeds:
        lines += judge_premium("MVSA", jobs[OURS], seeds, ("image", "text"))
    if digit_seeds:
        lines += judge_premium("digits", digits[OURS], digit_seeds, halves)
    if seeds:
        for how, rows in results["random"].items():
            lines += judge_drops("4", f"MVSA, {how}", rows)
        lines += [line for line in judge_quality(results["quality"]) if line["goal"] == "5"]
        lines += judge_cells("6", "MVSA", made, unseen)
        lines += [line for line in judge_quality(results["quality"]) if line["goal"] == "6"]
    if view_seeds:
        lines += judge_views(results["views"])
    results["scorecard"] = lines
    results["goals"] = {
        number: _overall([line["verdict"] for line in lines if line["goal"] == number])
        for number in ("1", "2", "3", "4", "5", "6", "N modalities")
    }
    write_record("recipe", results, data=MVSA, seeds=seeds)
    rows = ablation(runs)
    if rows:
        write_record("recipe_ablation", rows, data=MVSA, seeds=rows["default"]["seeds"])


def judge_views(made: Mapping[str, Any]) -> Any:
    """Six views: the two figures, and at least the best with views missing."""
    for cell, needed in (("clean", 99.0), ("conflict", 98.7)):
        value = made["accuracy"][OURS][cell]
        yield goal(
            "N modalities",
            f"six views, {cell}",
            f"≥ {needed}",
            f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]",
            value[0] >= needed,
        )
    cells = [f"missing {n}" for n in range(1, 6)]
    yield from judge_cells("N modalities", "six views", made, cells)


def _overall(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return "not measured"
    if "not met" in verdicts:
        return "not met"
    return "not measured in part" if "not measured" in verdicts else "met"
