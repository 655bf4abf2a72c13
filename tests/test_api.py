"""The public surface: names, signatures, import layers, and what an import brings in."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robustfusion as rf
from robustfusion import baselines, datasets, disruption, evaluation, monitor

PACKAGE = Path(rf.__file__).parent

NAMES = [
    "AttentionPooling",
    "CalibrationReport",
    "CrossModalRecovery",
    "DRFClassifier",
    "DRFHead",
    "DRFOutput",
    "DistributionConstraintLoss",
    "DistributionRecoveryLoss",
    "FeatureQueue",
    "GaussianQualityEstimator",
    "HeadOutput",
    "LearnedTokens",
    "MaskedMean",
    "ModalityConverter",
    "NeighborQualityEstimator",
    "PaperDRFHead",
    "QualityEstimator",
    "QualityWeightedFusion",
    "RecoveredFeatures",
    "StandIn",
    "Standardize",
    "NeighborVoteHead",
    "admit_above_mean",
    "admit_above_quantile",
    "admit_all",
    "calibrate",
    "functional",
]

# The five parts and the heads, as the documentation promises them.
SIGNATURES = {
    "FeatureQueue": "(dim: int, capacity: int = 512, *, track_moments: bool = False) -> None",
    "FeatureQueue.enqueue": "(self, features: Tensor, available: Tensor | None = None) -> None",
    "FeatureQueue.forward": "(self, features: Tensor, available: Tensor | None = None) -> Tensor",
    "FeatureQueue.reset": "(self) -> None",
    "GaussianQualityEstimator": (
        "(dim: int, *, covariance_type: Literal['spherical', 'diag', 'full'] = 'spherical', "
        "capacity: int = 2048, min_samples: int = 2, shrinkage: float = 0.0, eps: float = 1e-06) "
        "-> None"
    ),
    "GaussianQualityEstimator.log_prob": "(self, features: Tensor) -> Tensor",
    "NeighborQualityEstimator": "(dim: int, *, capacity: int = 2048, neighbors: int = 10) -> None",
    "QualityEstimator.observe": (
        "(self, features: Tensor, available: Tensor | None = None) -> Tensor"
    ),
    "QualityEstimator.fit": "(self, samples: Tensor, valid: Tensor | None = None) -> Self",
    "QualityEstimator.calibrate": (
        "(self, held_out: Tensor, available: Tensor | None = None) -> Self"
    ),
    "QualityEstimator.forward": "(self, features: Tensor) -> Tensor",
    "QualityEstimator.p_value": "(self, features: Tensor) -> Tensor",
    "Standardize": (
        "(dim: int, *, covariance_type: Literal['diag', 'spherical'] = 'diag', "
        "spread: float = 1.0, window: int = 2048) -> None"
    ),
    "StandIn.forward": (
        "(self, features: Mapping[str, Tensor], available: Tensor, embed: Mapping[str, Module]) "
        "-> StandInOutput"
    ),
    "LearnedTokens": "(dims: Mapping[str, int], out_features: int) -> None",
    "RecoveredFeatures": (
        "(dims: Mapping[str, int], out_features: int, *, hidden_features: int = 128, "
        "distribution_weight: float = 0.0) -> None"
    ),
    "ModalityConverter": (
        "(in_features: int, out_features: int, *, hidden_features: int | None = None, "
        "dropout: float = 0.0) -> None"
    ),
    "ModalityConverter.forward": "(self, features: Tensor) -> Tensor",
    "DistributionRecoveryLoss": (
        "(*, sample_weight: float = 1.0, distribution_weight: float = 1.0) -> None"
    ),
    "DistributionRecoveryLoss.forward": (
        "(self, recovered: Tensor, target: Tensor, generated: Gaussian, reference: Gaussian, *, "
        "paired: Tensor | None = None) -> Tensor"
    ),
    "QualityWeightedFusion": "(*, normalize: bool = True, temperature: float = 1.0) -> None",
    "QualityWeightedFusion.weights": (
        "(self, log_quality: Tensor, available: Tensor | None = None) -> Tensor"
    ),
    "QualityWeightedFusion.forward": (
        "(self, candidates: Tensor, log_quality: Tensor, available: Tensor | None = None) "
        "-> Tensor"
    ),
    "PaperDRFHead": (
        "(dims: Mapping[str, int], num_classes: int, *, sample_recovery: bool = True, "
        "distribution_recovery: bool = True, gaussian_quality: bool = True, "
        "expansion: bool = True, distribution_constraint: bool = True) -> None"
    ),
    "DRFHead": (
        "(dims: Mapping[str, int], num_classes: int, *, "
        "quality: Callable[[int], QualityEstimator] = NeighborQualityEstimator, "
        "stand_in: Callable[[dict[str, int], int], StandIn] = RecoveredFeatures, "
        "hidden_features: int = 256, dropout: float = 0.5, gather_distributed: bool = True) "
        "-> None"
    ),
    "DRFHead.forward": (
        "(self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None) "
        "-> DRFOutput"
    ),
    "DRFHead.loss": "(self, output: DRFOutput, labels: Tensor) -> Tensor",
    "DRFHead.p_values": "(self, output: DRFOutput) -> dict[str, Tensor]",
    "DRFClassifier": "(encoders: Mapping[str, Module], head: Module) -> None",
}

# A file may import from files of lower layers only. What is not here stands on top of all.
LAYERS = [
    {"_state", "_modules", "_tree", "_validation"},
    {"functional"},
    {"conversion", "distributed", "fusion", "losses", "moments", "pooling"},
    {"_inputs", "candidates", "output"},
    {"feature_queue", "recovery", "stand_in", "standardize"},
    {"quality"},
    {"neighbor_quality"},
    {"drf", "paper"},
    {"voting"},
    {"calibration", "classifier"},
]
CORE = {name: level for level, names in enumerate(LAYERS) for name in names}


def test_public_names() -> None:
    assert rf.__all__ == sorted(NAMES)
    assert all(hasattr(rf, name) for name in NAMES)
    assert rf.__version__


def test_dir_shows_the_public_names_and_the_subpackages() -> None:
    subpackages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(dir(rf)) == {*NAMES, *subpackages, "__version__"}
    assert all(inspect.ismodule(getattr(rf, name)) for name in subpackages)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(rf, "nothing")  # noqa: B009


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    value = rf
    for part in name.split("."):
        value = getattr(value, part)
    text = str(inspect.signature(value))  # type: ignore[arg-type]
    for prefix in ("torch.nn.modules.module.", "collections.abc.", "typing.", "torch."):
        text = text.replace(prefix, "")
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    text = re.sub(r"robustfusion\.\w+\.", "", text)
    assert text == SIGNATURES[name]


def test_every_public_name_has_a_docstring_with_an_example() -> None:
    for name in NAMES:
        value = getattr(rf, name)
        assert value.__doc__, name
        if inspect.isclass(value) and name != "CalibrationReport":  # what `calibrate` returns
            assert ">>>" in value.__doc__, name


PASTED = {
    value.__name__: value
    for package in (rf, rf.functional, baselines, datasets, disruption, evaluation, monitor)
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
