"""The blocks of the README that come from records: two numbers, and the main job's table."""

from __future__ import annotations

from _pages import table
from _record import read_record
from _render_cross_validation import KINDS, best
from _render_runs import NAME

ROWS = {
    "clean": "nothing wrong",
    "fixed/image/C": "40-80 % of the pixels masked",
    "fixed/image/D": "image missing",
    "fixed/text/C": "40-80 % of the words masked",
    "fixed/text/D": "text missing",
}


def blocks() -> dict[str, list[str]]:
    """Return the blocks by name."""
    return {"picture": picture(), "number": number(), "table": main_job()}


def picture() -> list[str]:
    """Return what the first picture shows: accuracy over the share of black pixels."""
    results = read_record("hero")["results"]
    ours, theirs = results["lines"].values()
    shares = results["shares"]
    first, last, weak, level = (shares.index(share) for share in (40.0, 70.0, 90.0, 20.0))
    held = ours["accuracy"][first : last + 1]
    fell = theirs["accuracy"][first : last + 1]
    return [
        f"> **{results['test_posts']} generated posts, texts intact:** when 40-70 % of the pixels "
        "of each image are black, `DRFHead` keeps",
        f"> {min(held):.0f}-{max(held):.0f} % accuracy, concatenation with modality dropout "
        f"{min(fell):.0f}-{max(fell):.0f}. Up to 20 % black they are level "
        f"({ours['accuracy'][level]:.0f} and {theirs['accuracy'][level]:.0f}).",
        f"> The weak place is near 90 % ({ours['accuracy'][weak]:.0f}). With the image *declared* "
        f"missing concatenation has {theirs['missing']:.0f}, `DRFHead` {ours['missing']:.0f}.",
        "> `DRFHead` had learned trust from damaged validation posts, black pixels among them.",
    ]


def number() -> list[str]:
    """Return the accuracy on MVSA-Single with masked images, compared with the baselines."""
    record = read_record("cross_validation")
    data = record["results"]["data"]["mvsa"]
    heads = data["heads"]
    names = best(heads, KINDS["default"]), data["baseline"], best(heads, KINDS["concatenation"])
    masked = [f"{heads[name]['image C']['accuracy']:.1f}" for name in names]
    intact = [f"{heads[name]['clean']['accuracy']:.1f}" for name in names]
    return [
        f"> **{data['samples']:,} posts of MVSA-Single, frozen encoders, cross-validated:** when "
        "40-80 % of the pixels of each",
        f"> image are masked, `DRFHead` has {masked[0]} % accuracy, the best tuned baseline "
        f"{masked[1]}, concatenation {masked[2]}.",
        f"> With intact inputs they are level ({', '.join(intact)}); the most frequent class has "
        f"{data['majority']:.1f}.",
        f"> Measured at commit `{record['commit']}`, before trust was learned from damage.",
    ]


def main_job() -> list[str]:
    """Return the accuracy of both models of the main job, and their difference."""
    results = read_record(NAME)["results"]
    (ours, first), (theirs, second) = results["accuracy"].items()
    body = []
    for key, words in ROWS.items():
        own, other = first[key][0], second[key][0]
        body.append([words, f"{own:.1f}", f"{other:.1f}", f"{own - other:+.1f}"])
    head = [f"accuracy (%) on {results['test_posts']} generated posts", ours, theirs, "difference"]
    reach = max(c[2] - c[1] for cells in (first, second) for c in map(cells.get, ROWS)) / 2
    return [
        *table(head, body),
        "",
        f"The most frequent class has {results['majority']:.1f} %. Each accuracy is known to "
        f"about ± {reach:.0f} points.",
    ]
