"""Heads in folders and repositories, without the hub."""

import copy
import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

huggingface_hub: Any = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

from robustfusion import DRFClassifier, DRFHead, NeighborQualityEstimator  # noqa: E402, after the skip
from robustfusion.baselines import ConcatenationHead  # noqa: E402
from robustfusion.disruption import robustness_grid  # noqa: E402
from robustfusion.evaluation import CachedFeatures, robustness_report  # noqa: E402
from robustfusion.integrations import hub  # noqa: E402
from robustfusion.integrations.hub import HubDRFHead  # noqa: E402

DIMS = {"image": 6, "text": 4}


def features(n: int = 40) -> dict[str, Tensor]:
    return {name: torch.randn(n, dim) for name, dim in DIMS.items()}


def train(model: nn.Module) -> Any:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        loss = model.loss(model(features()), torch.randint(3, (40,)))  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def encoders() -> dict[str, nn.Module]:
    return {name: nn.Linear(dim, dim) for name, dim in DIMS.items()}


def test_a_head_comes_back_with_its_queues(tmp_path: Path) -> None:
    head = train(HubDRFHead(DIMS, num_classes=3, hidden_features=32))
    head.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "SHA256SUMS",
        "README.md",
    }
    back = HubDRFHead.from_pretrained(tmp_path)
    assert not back.training
    given = features()
    one, two = head(given), back(given)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.log_quality["image"], two.log_quality["image"])
    assert json.loads((tmp_path / "config.json").read_text())["dims"] == DIMS


def test_it_is_the_head_and_can_be_copied() -> None:
    torch.manual_seed(0)
    plain = DRFHead(DIMS, 3).eval()
    torch.manual_seed(0)
    head = HubDRFHead(DIMS, 3).eval()
    given = features()
    assert torch.equal(plain(given).logits, head(given).logits)
    assert copy.deepcopy(head).arguments == head.arguments


def test_what_json_cannot_hold_is_not_dropped_in_silence(tmp_path: Path) -> None:
    HubDRFHead(DIMS, 3).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="quality cannot be written as JSON"):
        HubDRFHead(DIMS, 3, quality=few).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    default = inspect.signature(DRFHead).parameters["quality"].default
    HubDRFHead(DIMS, 3, quality=default).save_pretrained(tmp_path)
    HubDRFHead.from_pretrained(tmp_path)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    HubDRFHead(DIMS, 3).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged, cut off"):
        HubDRFHead.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        HubDRFHead.from_pretrained(tmp_path.parent)
    (tmp_path / "config.json").write_text('{"dims": {"image": 2}}')
    with pytest.raises(ValueError, match="of another library"):
        HubDRFHead.from_pretrained(tmp_path)


def few(dim: int) -> NeighborQualityEstimator:
    return NeighborQualityEstimator(dim, neighbors=3)


HOSTILE: list[Any] = [
    {},
    [],
    None,
    {"dims": DIMS},
    {"dims": DIMS, "num_classes": 3, "os": "system"},
    {"dims": DIMS, "num_classes": 3, "quality": "os.system"},
    {"dims": DIMS, "num_classes": "3"},
    {"dims": DIMS, "num_classes": 3, "dropout": "high"},
    {"dims": [["image", 6]], "num_classes": 3},
    {"dims": DIMS, "num_classes": 3, "hidden_features": 512},
    {"dims": {"image": 10**9, "text": 10**9}, "num_classes": 3},
    {"dims": {"image": 10**30, "text": 4}, "num_classes": 3},
    {"dims": DIMS, "num_classes": 10**12},
    {"dims": DIMS, "num_classes": 3, "hidden_features": 4 * 10**11},
]


@pytest.mark.parametrize("config", HOSTILE, ids=lambda config: str(config)[:60])
def test_hostile_configs_are_refused_before_anything_is_built(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: list[Any] = []
    kaiming = torch.nn.init.kaiming_uniform_

    def spy(tensor: Tensor, **options: Any) -> Tensor:
        real.extend([] if tensor.is_meta else [tensor])
        return kaiming(tensor, **options)

    HubDRFHead(DIMS, 3).save_pretrained(tmp_path)
    sign(tmp_path, config)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", spy)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        HubDRFHead.from_pretrained(tmp_path)
    assert not real


def sign(folder: Path, config: Any) -> None:
    """Write a config as save_model would have, digests included."""
    (folder / "config.json").write_text(json.dumps(config))
    names = ("config.json", "model.safetensors")
    digests = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names)
    lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def report() -> Any:
    clean = features(30)
    data = CachedFeatures(
        clean,
        torch.arange(30) % 3,
        corrupted={name: torch.randn_like(x) for name, x in clean.items()},
        class_names=("bad", "fine", "good"),
    )
    head = train(HubDRFHead(DIMS, 3))
    grid = robustness_grid(data.modalities, settings=("C", "D"), rates=(0.5,))
    return robustness_report(head, data, grid).with_intervals(replicates=20).named("tiny DRF")


def test_the_card_says_what_was_measured(tmp_path: Path, report: Any) -> None:
    head = HubDRFHead(DIMS, 3)
    kwargs = {"report": report, "dataset": "Made Up", "license": "mit"}
    head.save_pretrained(tmp_path, model_card_kwargs=kwargs)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "robustfusion"
    assert card.data.license == "mit"
    scores = {
        (result.dataset_config, result.metric_type): result.metric_value
        for result in card.data.eval_results
    }
    assert len(scores) == 2 * len(report.scores)
    expected = report["fixed/image/C"].accuracy.value
    assert scores["fixed/image/C", "accuracy"] == pytest.approx(expected, abs=1e-4)
    assert "Measured on Made Up" in card.text
    assert "## Robustness of tiny DRF" in card.text
    assert f"{100 * expected:.1f} [" in card.text
    assert "HubDRFHead.from_pretrained(" in card.text
    # Headings nest: the model's name is the only one of the first level.
    assert [line for line in card.text.splitlines() if line.startswith("# ")] == ["# tiny DRF"]
    # A card that someone has written is kept.
    (tmp_path / "README.md").write_text("mine")
    head.save_pretrained(tmp_path, model_card_kwargs=kwargs)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_card_without_a_report_says_so() -> None:
    text = str(hub.model_card(HubDRFHead(DIMS, 3)))
    assert "No robustness report came with this model" in text
    assert "image (6), text (4)" in text
    assert '.from_pretrained("folder or repository")' in text
    assert "the method is that of" in text
    other = str(hub.model_card(DRFClassifier(encoders(), ConcatenationHead(DIMS, 3))))
    assert "from_pretrained" not in other
    assert "- Head: `ConcatenationHead`, feature widths: image (6), text (4)" in other
    assert "the method is that of" not in other


def test_push_uploads_the_folder(monkeypatch: pytest.MonkeyPatch, report: Any) -> None:
    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, repo_id: str, **_: Any) -> str:
            seen.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
            return f"pushed {repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    head = HubDRFHead(DIMS, 3)
    said = head.push_to_hub("me/tiny", model_card_kwargs={"report": report})
    assert said == "pushed me/tiny"
    assert set(seen) == {"model.safetensors", "config.json", "SHA256SUMS", "README.md"}
    assert b"tiny DRF" in seen["README.md"]


def test_from_the_hub_only_three_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = HubDRFHead(DIMS, 3).eval()
    head.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    back = HubDRFHead.from_pretrained("me/tiny", revision="abc")
    assert asked["repo_id"] == "me/tiny"
    assert asked["revision"] == "abc"
    assert asked["allow_patterns"] == ["config.json", "model.safetensors", "SHA256SUMS"]
    given = features()
    assert torch.equal(back(given).logits, head(given).logits)
