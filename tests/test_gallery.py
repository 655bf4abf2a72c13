"""The gallery: each example runs, is short, writes its figure, and shows what it says it shows."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for _name in ("sklearn", "matplotlib", "PIL"):
    pytest.importorskip(_name)

GALLERY = Path(__file__).parents[1] / "examples" / "gallery"
EXAMPLES = sorted(path.stem for path in GALLERY.glob("[!_]*.py"))

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run an example and check that it wrote its figure, and nothing else."""
    monkeypatch.syspath_prepend(str(GALLERY))
    monkeypatch.chdir(tmp_path)

    def go(name: str, **options: Any) -> Any:
        result = importlib.import_module(name).main(tmp_path / "figures", **options)
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{name}.png"]
        content = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5_000
        return result

    return go


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_short_and_tested(name: str) -> None:
    source = (GALLERY / f"{name}.py").read_text()
    assert len(source.splitlines()) < 100
    assert "--output-dir" in source or "output_dir(__doc__)" in source
    assert f"def test_{name}(" in Path(__file__).read_text()


def test_drift_monitor(run: Run) -> None:
    waits = run("drift_monitor", good_rows=1000)
    assert 0 <= waits["exchanged"] < 60
    assert 0 <= waits["100 % damaged"] < 60 <= waits["30 % damaged"] < 400


def test_pairing(run: Run) -> None:
    alarms = run("pairing")
    assert alarms["own half"] < 0.1
    assert alarms["half of another"] > 0.3


def test_out_of_distribution(run: Run) -> None:
    table = run("out_of_distribution", steps=200)
    assert table["NeighborQualityEstimator"]["digits 7-9"] > 0.8


def test_converter_alone(run: Run) -> None:
    scores = run("converter_alone", steps=150)
    assert scores["sample term"][0] < scores["both terms"][0]
    assert scores["sample term"][1] < scores["both terms"][1]


def test_ensemble(run: Run) -> None:
    accuracy = run("ensemble", steps=150)
    assert accuracy["by quality"] > accuracy["average"] + 0.1


def test_three_modalities(run: Run) -> None:
    scores = run("three_modalities", n=160, epochs=8)
    assert set(scores) == {"DRF", "concatenation"}
    assert len(scores["DRF"]) == 7
    assert scores["DRF"]["clean"] > 0.5


def test_tabular(run: Run) -> None:
    accuracy = run("tabular", n=600, epochs=10)
    half = {way: by_share[0.5] for way, by_share in accuracy.items()}
    assert half["imputed, with indicators"] > half["an empty cell makes the row missing"] + 0.02


def test_retrofit(run: Run) -> None:
    scores = run("retrofit", iterations=20)
    plain, gated = zip(*scores.values(), strict=True)
    assert gated[0] > plain[0] - 0.02
    assert sum(gated[1:]) > sum(plain[1:])


def test_transformers_encoders(run: Run) -> None:
    pytest.importorskip("transformers")
    losses = run("transformers_encoders", n=64, epochs=2)
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_transformers_encoders_takes_the_towers_of_a_clip(run: Run, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 40, "bos_token_id": 2, "eos_token_id": 3, **size}
    vision = {"image_size": 32, "patch_size": 16, **size}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision)
    folder = tmp_path.parent / f"{tmp_path.name}-clip"
    transformers.CLIPModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=square, crop_size=square).save_pretrained(folder)
    losses = run("transformers_encoders", models=(folder, folder), n=32, epochs=1)
    assert len(losses) == 2
