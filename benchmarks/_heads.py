"""The rows of the comparison: every head of this repository, and heads of your own."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from reproductions import (
    CLMLFHead,
    DyMoHead,
    HSANHead,
    LateTransformerHead,
    MGNNSHead,
    MissingPromptsHead,
    MMINHead,
    MVANHead,
    MVCNHead,
    NearestImputationHead,
    NearestVoteHead,
    StackingHead,
)
from torch import nn

from robustfusion import DRFHead, NeighborVoteHead, PaperDRFHead
from robustfusion.baselines import (
    ConcatenationHead,
    ECMLHead,
    EmbraceNetHead,
    ImputationHead,
    LateMeanHead,
    MajorityHead,
    PDFHead,
    QMFHead,
    TMCHead,
    UnimodalHead,
)

Maker = Callable[..., nn.Module]  # (dims, num_classes, **options)


def voting(
    dims: Mapping[str, int], num_classes: int, *, hidden_features: int = 256, dropout: float = 0.5
) -> NeighborVoteHead:
    """The default head with the votes of the nearest training samples."""
    head = DRFHead(dims, num_classes, hidden_features=hidden_features, dropout=dropout)
    return NeighborVoteHead(head)


MAKERS: dict[str, Maker] = {
    "DRFHead": DRFHead,
    "NeighborVoteHead": voting,
    "PaperDRFHead": PaperDRFHead,
    "Concatenation + modality dropout": ConcatenationHead,
    "Concatenation": ConcatenationHead,
    "Late Transformer": LateTransformerHead,
    "DyMo": DyMoHead,
    "Stacking": StackingHead,
    "Nearest vote": NearestVoteHead,
    "ECML": ECMLHead,
    "TMC": TMCHead,
    "ETMC": TMCHead,
    "QMF": QMFHead,
    "PDF": PDFHead,
    "Late mean": LateMeanHead,
    "EmbraceNet": EmbraceNetHead,
    "Zero imputation": ImputationHead,
    "Mean imputation": ImputationHead,
    "Nearest imputation": NearestImputationHead,
    "MMIN": MMINHead,
    "Missing prompts": MissingPromptsHead,
    "HSAN": HSANHead,
    "MVAN": MVANHead,
    "MVCN": MVCNHead,
    "MGNNS": MGNNSHead,
    "CLMLF": CLMLFHead,
    "Majority class": MajorityHead,
}
FIXED: dict[str, dict[str, Any]] = {
    "ETMC": {"pseudo_view": True},
    "Zero imputation": {"strategy": "zero"},
    "Mean imputation": {"strategy": "mean"},
    "Concatenation + modality dropout": {"modality_dropout": 0.3},
}
TUNED = ("hidden_features", "dropout", "modality_dropout")  # if the head has them
UNTUNED = {"Concatenation": ("modality_dropout",)}  # it is the row without


def head_names(modalities: tuple[str, ...]) -> list[str]:
    """All rows of the table but the user's own."""
    return [*MAKERS, *(f"Only {name}" for name in modalities)]


def options_of(name: str, makers: Mapping[str, Maker]) -> set[str]:
    """The arguments that are tuned: those of `TUNED` that the head has."""
    maker = UnimodalHead if name.startswith("Only ") else makers[name]
    arguments = inspect.signature(maker).parameters
    return {key for key in TUNED if key in arguments} - set(UNTUNED.get(name, ()))


@cache
def own_makers(
    models: tuple[str, ...], dims: tuple[tuple[str, int], ...], classes: int
) -> dict[str, Maker]:
    """Heads of your own, by the name of their row.

    Args:
        models: each "FILE:NAME". NAME is a class or function of ``(dims, num_classes)`` and, if it
            likes, of ``hidden_features``, ``dropout`` and ``modality_dropout``, which are then
            tuned as for all heads. It makes a head, or a dict of heads by name.
        dims: width of each modality.
        classes: number of classes.
    """
    makers: dict[str, Maker] = {}
    for model in models:
        path, _, name = model.rpartition(":")
        if not path or not Path(path).is_file():
            raise ValueError(f"--model must be FILE:NAME with a Python file, got {model!r}")
        maker = getattr(_module(Path(path)), name, None)
        if maker is None:
            raise ValueError(f"--model {model!r}: there is no {name} in {path}")
        heads = maker(dict(dims), classes)
        rows = {name: maker}
        if isinstance(heads, Mapping):
            rows = {key: _member(maker, key) for key in heads}
        for row in rows:
            if row in MAKERS or row in makers:
                raise ValueError(f"--model {model!r}: there is another row named {row!r}")
        makers |= rows
    return makers


def _member(maker: Callable[..., Mapping[str, nn.Module]], key: str) -> Maker:
    """Make one of several heads; the signature has no options, so none is tuned."""
    return lambda dims, num_classes: maker(dims, num_classes)[key]


def _module(path: Path) -> Any:
    name = f"own_{path.stem}_{zlib.crc32(str(path.resolve()).encode())}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that the file of a class is known
    spec.loader.exec_module(module)
    return module
