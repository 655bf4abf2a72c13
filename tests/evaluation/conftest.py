"""One report that several tests read."""

import pytest
from reports import FakeHead, make_data, measure

from robustfusion.evaluation import RobustnessReport


@pytest.fixture(scope="session")
def report() -> RobustnessReport:
    made = measure(FakeHead(), make_data(), seeds=(0, 1, 2), replicates=200)
    return made.named("FakeHead", commit="abc")
