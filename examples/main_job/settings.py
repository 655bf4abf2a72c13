"""Settings of a run, and the recipe, encoders and heads that follow from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from main_job.encoders import (
    SetupError,
    SmallImageEncoder,
    SmallTextEncoder,
    TableEncoder,
    image_encoder,
    text_encoder,
)
from main_job.training import Recipe
from robustfusion import DRFClassifier, DRFHead, PaperDRFHead, Standardize
from robustfusion.baselines import ConcatenationHead
from robustfusion.datasets import TableColumns
from robustfusion.tasks import Task

TEST_SEEDS = (0, 1, 2)
VAL_SEED = 1000
SEVERITIES = (0.2, 0.6, 1.0)  # how severely test posts are damaged
NAMES = {"drf": "DRF", "concatenation": "concatenation + modality dropout"}


class RecipeName(StrEnum):
    """Name of a training recipe: the default, or that of the paper."""

    default = "default"
    paper = "paper"


class TaskName(StrEnum):
    """Kind of the labels of a post."""

    multiclass = "multiclass"
    multilabel = "multilabel"
    regression = "regression"


class ClassWeight(StrEnum):
    """Weights of the classes in the training loss."""

    none = "none"
    balanced = "balanced"


class Score(StrEnum):
    """Score that chooses the epoch."""

    accuracy = "accuracy"
    macro_f1 = "macro-f1"


@dataclass
class Settings:
    """Settings of a run, saved in its folder so that it can be resumed."""

    data: str | None
    image_column: str
    text_column: str
    label_column: str
    image_root: str | None
    image_encoder: str
    text_encoder: str
    frozen: list[str]
    recipe: str
    epochs: int | None
    batch_size: int | None
    limit: int | None
    seed: int
    device: str
    threads: int
    allow_outside: bool = False
    damage: str = "all"
    train_damage: float = 0.0  # share of the training posts to damage
    encoding: str = ""  # encoding of the table; UTF-8 if empty
    task: Task = "multiclass"
    label_columns: list[str] = field(default_factory=list)  # instead of label_column
    label_sep: str = ""
    weight_column: str = ""
    table_columns: list[str] = field(default_factory=list)
    class_weight: str = ""  # or "balanced"
    select: str = "accuracy"  # or "macro-f1", the score that chooses the epoch


def split_names(names: str) -> list[str]:
    """Return the columns of an option."""
    return [name.strip() for name in names.split(",") if name.strip()]


def chosen_score(task: TaskName, select: Score | None, class_weight: ClassWeight) -> str:
    """Return the score that chooses the epoch; of numbers it is always R²."""
    if task is TaskName.regression:
        if select is not None:
            raise SetupError(f"--select {select.value} is for classes; numbers are chosen by R2")
        if class_weight is not ClassWeight.none:
            raise SetupError("--class-weight is for classes; --weight-column weighs posts")
        return "r2"
    labels = task is TaskName.multilabel
    return (select or (Score.macro_f1 if labels else Score.accuracy)).value


def without_folders(settings: Settings) -> dict[str, Any]:
    """Return the settings for a model that is passed on: names of the data, without folders."""
    names = {"data": settings.data, "image_root": settings.image_root}
    own = {key: None if value is None else Path(value).name for key, value in names.items()}
    return {**asdict(settings), **own}


def recipe_of(settings: Settings) -> Recipe:
    """Return the training recipe for these encoders."""
    names = {"image": settings.image_encoder, "text": settings.text_encoder}
    paper = settings.recipe == "paper"
    lr = 2e-4 if paper else 1e-3
    encoder_lr = {m: lr if name == "small" else 2e-5 for m, name in names.items()}
    if settings.table_columns:
        encoder_lr["table"] = lr
    fine_tuned = any(name != "small" and m not in settings.frozen for m, name in names.items())
    epochs = 30 if paper else 4 if fine_tuned else 15
    batch_size, weight_decay = 16 if paper else 32, 0.01
    if not paper and set(settings.frozen) == set(names):
        # Heads on frozen features overfit soon, hence few epochs, large batches and strong decay.
        epochs, batch_size, weight_decay = 6, 128, 0.1
    return Recipe(
        settings.epochs or epochs,
        settings.batch_size or batch_size,
        encoder_lr,
        lr,
        weight_decay=weight_decay,
    )


def make_encoders(settings: Settings, columns: TableColumns | None = None) -> dict[str, Any]:
    """Build an encoder for each modality, with the same initial weights every time."""
    torch.manual_seed(settings.seed)
    encoders = {
        "image": image_encoder(settings.image_encoder).to(settings.device),
        "text": text_encoder(settings.text_encoder).to(settings.device),
    }
    if columns is not None:
        encoders["table"] = TableEncoder(columns).to(settings.device)
    for name in settings.frozen:
        if isinstance(encoders[name], SmallImageEncoder | SmallTextEncoder):
            raise SetupError(f"the small {name} encoder is untrained and cannot be frozen")
        encoders[name].eval().requires_grad_(False)
    return encoders


def make_model(
    kind: str, encoders: Mapping[str, Any], num_classes: int, settings: Settings
) -> DRFClassifier:
    """Combine encoders and head; a frozen encoder is replaced by a scaling of its features."""
    dims = {name: encoder.dim for name, encoder in encoders.items()}
    paper = kind == "drf" and settings.recipe == "paper"
    head: nn.Module
    if kind == "drf":
        make = PaperDRFHead if paper else DRFHead
        head = make(dims, num_classes, task=settings.task)
    else:
        head = ConcatenationHead(dims, num_classes, modality_dropout=0.3, task=settings.task)
    own: dict[str, nn.Module] = {}
    for name, encoder in encoders.items():
        scale = Standardize(dims[name])
        if paper:  # the densities (9) vanish on features of a larger scale
            scale = Standardize(dims[name], covariance_type="spherical", target_std=0.4)
        if name in settings.frozen:
            own[name] = scale
        else:
            own[name] = nn.Sequential(encoder, scale) if paper else encoder
    return DRFClassifier(own, head)
