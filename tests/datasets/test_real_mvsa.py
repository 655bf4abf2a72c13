"""One look at real posts, where a copy of MVSA-Single happens to lie beside the repository."""

from pathlib import Path

import pytest

from robustfusion.datasets import MVSA, load_splits

ROOT = Path(__file__).parents[3] / "shared" / "mvsa_single"


@pytest.mark.skipif(
    not (ROOT / "labelResultAll.txt").is_file(),
    reason="no copy of MVSA-Single at ../shared/mvsa_single beside the repository",
)
def test_real_posts() -> None:
    dataset = MVSA(ROOT, verify=False)
    report = dataset.report()
    assert report.rows == report.kept + len(report.problems)
    assert len(dataset) > len(MVSA(ROOT, label_rule="equal", verify=False)) > 1000
    if (ROOT / "splits.json").is_file():
        splits = load_splits(ROOT / "splits.json")
        assert dataset.select(splits.train[:3])[2]["inputs"]["image"].mode == "RGB"
