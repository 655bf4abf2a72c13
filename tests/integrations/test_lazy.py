"""Nothing optional is imported unless its own module is."""

import subprocess
import sys

import pytest

OPTIONAL = ("transformers", "huggingface_hub", "sklearn", "PIL", "matplotlib", "safetensors")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )


def test_the_package_imports_nothing_optional() -> None:
    code = "import sys, robustfusion, robustfusion.integrations\n"
    done = python(f"{code}print([m for m in {OPTIONAL} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("module", "without", "extra"),
    [
        ("hub", "huggingface_hub", "hub"),
        ("sklearn", "sklearn.base", "sklearn"),
    ],
)
def test_a_missing_extra_is_named(module: str, without: str, extra: str) -> None:
    code = f"import sys; sys.modules[{without!r}] = None\n"
    done = python(f"{code}import robustfusion.integrations.{module}")
    assert f'pip install "robustfusion[{extra}]"' in done.stderr


def test_functions_are_collated_without_transformers() -> None:
    code = """
import sys; sys.modules["transformers"] = None
import torch
from robustfusion.integrations.transformers import TransformersCollate
batch = TransformersCollate({"text": lambda text: torch.ones(len(text))})([
    {"inputs": {"text": "abc"}}, {"inputs": {}},
])
print(batch["inputs"]["text"].tolist(), batch["available"]["text"].tolist())
"""
    done = python(code)
    assert done.stdout.strip() == "[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]] [True, False]", done.stderr
