"""One look at real posts: ``pytest tests/datasets/test_real_mvsa.py --mvsa FOLDER``."""

from pathlib import Path

import pytest

from robustfusion.datasets import MVSA, load_splits


def test_real_posts(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--mvsa") is None:
        pytest.skip("no folder of MVSA-Single given: --mvsa FOLDER")
    root = Path(request.config.getoption("--mvsa"))
    dataset = MVSA(root, verify=False)
    report = dataset.report()
    assert report.rows == report.posts + len(report.problems)
    assert len(dataset) > len(MVSA(root, label_rule="equal", verify=False)) > 1000
    if (root / "splits.json").is_file():
        splits = load_splits(root / "splits.json")
        assert dataset.select(splits.train[:3])[2]["inputs"]["image"].mode == "RGB"
