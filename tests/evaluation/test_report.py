"""Files and tables of a report."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from robustfusion.evaluation import (
    RobustnessReport,
    compare,
)


def test_a_report_is_read_back(report: RobustnessReport, tmp_path: Path) -> None:
    text, packed = report.save(tmp_path / "report")
    assert (text.name, packed.name) == ("report.json", "report.npz")
    document = json.loads(text.read_text(encoding="utf-8"))
    assert document["record"] == {"commit": "abc"}
    assert document["scores"]
    assert len(text.read_text(encoding="utf-8")) < 150_000  # for readers: no arrays in it
    for back in (RobustnessReport.load(text), RobustnessReport.load(tmp_path / "report")):
        again = [path.read_bytes() for path in back.save(tmp_path / "again")]
        assert again == [path.read_bytes() for path in (text, packed)]
        assert back.to_markdown() == report.to_markdown()
        assert back["random/0.4/C+D"].accuracy == report["random/0.4/C+D"].accuracy
        assert compare(back, report, replicates=10).overall.value == 0


def test_files_that_are_no_report_are_refused(report: RobustnessReport, tmp_path: Path) -> None:
    text, packed = report.save(tmp_path / "report")
    document = json.loads(text.read_text(encoding="utf-8"))
    other = dataclasses.replace(report, labels=report.labels[::-1]).save(tmp_path / "other")[1]
    packed.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=r"report.npz does not hold the results of .*report.json"):
        RobustnessReport.load(text)
    packed.write_bytes(other.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"report\.npz cannot be read"):
        RobustnessReport.load(text)
    text.write_text("{}")
    with pytest.raises(ValueError, match="not a robustness report"):
        RobustnessReport.load(text)
    text.write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        RobustnessReport.load(text)


def test_csv_holds_every_score(report: RobustnessReport, tmp_path: Path) -> None:
    path = tmp_path / "report.csv"
    text = report.to_csv(path)
    assert path.read_text(encoding="utf-8") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    found = {(row["condition"], row["metric"]): row for row in rows}
    cell = found["fixed/image/C+D", "accuracy"]
    assert float(cell["value"]) == report["fixed/image/C+D"].accuracy.value
    assert float(cell["low"]) == report["fixed/image/C+D"].accuracy.low
    assert not any("nan" in row["value"] for row in rows)


def test_markdown_tells_what_a_reader_needs(report: RobustnessReport) -> None:
    text = report.to_markdown()
    for part in (
        "Majority line",
        "| random 0.6 C+D |",
        "## Corruption premium",
        "AUROC",
        "area under the curve",
        "- commit: abc",
        "disruption seeds 0, 1, 2",
    ):
        assert part in text
    widths: dict[int, set[int]] = {}
    block = 0
    for line in text.splitlines():
        block += not line.startswith("|")
        if line.startswith("|"):
            widths.setdefault(block, set()).add(line.count("|"))
    assert all(len(counts) == 1 for counts in widths.values())
