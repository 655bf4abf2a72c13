"""Fixed seeds, one thread, and one hypothesis profile for the whole suite."""

import pytest
import torch
from hypothesis import settings

# Derandomised and without a database: a run depends on the code alone and writes nothing.
settings.register_profile("suite", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="kill, fuzz and rank tests at full size")
    parser.addoption("--mvsa", metavar="FOLDER", help="a copy of MVSA-Single, for one test")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
