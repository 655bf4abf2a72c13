"""The public surface: names, signatures, import layers, and what an import brings in."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import robustfusion as rf
from robustfusion import baselines, datasets, disruption, evaluation, explanation, monitor

PACKAGE = Path(rf.__file__).parent
sys.path.insert(0, str(PACKAGE.parent / "docs"))
from layers import LAYERS  # noqa: E402  the one table, which the architecture page shows, too

NAMES = [
    "AttentionPooling",
    "CalibrationReport",
    "DRFClassifier",
    "DRFHead",
    "DRFOutput",
    "DistributionConstraintLoss",
    "DistributionRecoveryLoss",
    "FeatureQueue",
    "GaussianQualityEstimator",
    "HeadOutput",
    "LearnedTokens",
    "LearnedTrust",
    "MaskedMean",
    "ModalityConverter",
    "NeighborQualityEstimator",
    "NeighborVoteHead",
    "PaperDRFHead",
    "QualityEstimator",
    "QualityWeightedFusion",
    "RecoveredFeatures",
    "StandIn",
    "Standardize",
    "admit_above_mean",
    "admit_above_quantile",
    "admit_all",
    "calibrate",
    "functional",
]

# A file may import from files of lower layers only. What is in no layer stands on top of all.
CORE = {name: level for level, (_, names) in enumerate(LAYERS) for name in names}


def test_public_names() -> None:
    assert rf.__all__ == sorted(NAMES)
    assert all(hasattr(rf, name) for name in NAMES)
    assert rf.__version__


def test_dir_shows_the_public_names_and_what_is_imported_on_demand() -> None:
    subpackages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {"checkpoint", "diagnostics", "distributed", "explanation", "monitor", "testing"}
    on_demand = {*subpackages, *modules}
    assert set(dir(rf)) == {*NAMES, *on_demand, "__version__"}
    assert all(inspect.ismodule(getattr(rf, name)) for name in on_demand)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(rf, "nothing")  # noqa: B009


def test_every_public_name_has_a_docstring_with_an_example() -> None:
    for name in NAMES:
        value = getattr(rf, name)
        assert value.__doc__, name
        if inspect.isclass(value) and name != "CalibrationReport":  # what `calibrate` returns
            assert ">>>" in value.__doc__, name


TOOLS = (baselines, datasets, disruption, evaluation, explanation, monitor)
PASTED = {
    value.__name__: value
    for package in (rf, rf.functional, *TOOLS)
    for value in (getattr(package, name) for name in dir(package) if name[0] != "_")
    if not inspect.ismodule(value) and ">>>" in (value.__doc__ or "")
}


@pytest.mark.parametrize("name", PASTED)
def test_examples_run_as_pasted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a namespace of their own, where pytest's doctests are given that of their module.
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(PASTED[name].__doc__, {}, name, None, None)
    failed, tried = doctest.DocTestRunner().run(test)
    assert failed == 0 < tried


def imports_of(path: Path) -> set[str]:
    """The parts of the package that a file imports at its top level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, *rest = node.module.split(".")
            if first == "robustfusion":
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", CORE)
def test_imports_point_one_way(name: str) -> None:
    for other in imports_of(PACKAGE / f"{name}.py"):
        assert CORE.get(other, len(LAYERS)) < CORE[name], f"{name} imports {other}"


def test_every_core_file_has_a_layer() -> None:
    # What the package imports at once is the core; all else is imported by name when wanted.
    at_once = imports_of(PACKAGE / "__init__.py")
    assert at_once <= set(CORE)
    assert set(CORE) <= {path.stem for path in PACKAGE.glob("*.py")}


def test_importing_brings_in_no_optional_dependency() -> None:
    # Against torch, einops and numpy alone, so that what torch itself imports does not count.
    code = (
        "import sys, torch, einops, numpy, typing_extensions; before = set(sys.modules)\n"
        "import robustfusion\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    new = set(run.stdout.split()) - set(sys.stdlib_module_names)
    assert new <= {"robustfusion", "torch", "einops", "numpy"}, new
    assert not {"datasets", "evaluation"} & new
