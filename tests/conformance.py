"""What every public module promises: the table of all of them, and how one is run.

`CASES` has a row for each part, head and classifier; `test_contract.py` runs every promise over
it. A new head needs one line here and no test of its own contract.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
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
from torch import Tensor, nn

import robustfusion as rf
from robustfusion import baselines
from robustfusion.functional import Gaussian

Inputs = dict[str, Any]  # keyword arguments of forward
CLASSES = 3
DIMS = {
    2: {"image": 3, "text": 4},
    3: {"image": 3, "text": 4, "audio": 5},
    6: {"a": 3, "b": 4, "c": 5, "d": 2, "e": 3, "f": 6},
}


class Case(NamedTuple):
    """A public module, how to call it, and what it promises."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    head: bool = False  # has loss(output, labels) and takes dicts of features and availability
    drf: bool = False  # a head with candidates and qualities, or a classifier around one
    # The head itself, or its loss, writes state in training mode; None: nothing does.
    writes: Literal["forward", "loss"] | None = None
    clock: tuple[str, ...] = ()  # buffers that count steps, also those without a row
    own_evaluation: bool = False  # evaluation predicts in another way than training, by design
    smooth: bool = False  # its features' gradient is that of its outputs: nothing is detached
    masked: bool = True  # takes a mask whose rows may hold anything
    passes_through: bool = False  # returns its input as it is
    tokens: bool = False  # also takes (B, L, D) and token_mask
    compiled: tuple[bool, ...] = ()  # modes to trace without --long, too: True is training
    exported: bool = False  # builds tensors of the batch's size, so that one could be baked in
    learns: bool = True  # tells three far-apart classes after sixty steps


# ------------------------------------------------------------------------------------- inputs


def masks(names: Mapping[str, int], batch: int) -> dict[str, Tensor]:
    """Row i lacks modality i; then comes a complete row, one without anything, and so on."""
    row = torch.arange(batch) % (len(names) + 2)
    return {m: (row != place) & (row != len(names) + 1) for place, m in enumerate(names)}


def head_inputs(dims: Mapping[str, int], batch: int) -> Inputs:
    return {
        "features": {name: torch.randn(batch, d) / 2 for name, d in dims.items()},
        "available": masks(dims, batch),
    }


def indexed_inputs(dims: Mapping[str, int], batch: int) -> Inputs:
    return {**head_inputs(dims, batch), "indices": torch.arange(batch)}


def classifier_inputs(batch: int) -> Inputs:
    given = head_inputs({"image": 6, "text": 7}, batch)
    return {"inputs": given["features"], "available": given["available"]}


def recovery_inputs(batch: int) -> Inputs:
    return {
        "recovered": torch.randn(batch, 4),
        "target": torch.randn(batch, 4),
        "generated": Gaussian(torch.randn(4), torch.tensor(1.5)),
        "reference": Gaussian(torch.randn(4), torch.tensor(0.5)),
        "paired": torch.arange(batch) % 3 > 0,
    }


def constraint_inputs(batch: int) -> Inputs:
    return {
        "features": torch.randn(batch, 4),
        "own_mean": torch.randn(4),
        "other_means": [torch.randn(4), torch.randn(6)],
        "available": torch.arange(batch) % 3 > 0,
    }


def fusion_inputs(batch: int) -> Inputs:
    return {
        "candidates": torch.randn(batch, 3, 5),
        "log_quality": torch.randn(batch, 3),
        "available": (torch.arange(batch * 3) % 4 > 0).reshape(batch, 3),
    }


def tokens(batch: int) -> Inputs:
    return {
        "features": torch.randn(batch, 6, 4),
        "available": (torch.arange(batch * 6) % 4 > 0).reshape(batch, 6),
    }


def vectors(width: int, batch: int) -> Inputs:
    return {"features": torch.randn(batch, width)}


def masked_vectors(width: int, batch: int) -> Inputs:
    return {**vectors(width, batch), "available": torch.arange(batch) % 3 > 0}


# -------------------------------------------------------------------------------------- cases


def part(build: Callable[[], nn.Module], inputs: Callable[[int], Inputs], **promises: Any) -> Case:
    """A part of the library, which is no head."""
    return Case(build, inputs, **{"smooth": True, "compiled": EVAL, **promises})


def drf(
    cls: type[nn.Module], dims: Mapping[str, int], *, parts: Any = None, **promises: Any
) -> Case:
    """A DRF head with parts of its own: ``parts`` are the constructor's arguments."""
    promised = {"head": True, "drf": True, "writes": "forward", **promises}
    build = partial(cls, dims, CLASSES, **(parts or {}))
    return Case(build, partial(head_inputs, dims), **promised)


def heads(
    name: str, cls: Callable[..., nn.Module], *, options: Any = None, **promises: Any
) -> dict[str, Case]:
    """A head that is no DRF, for two and for three modalities; traced for two."""
    promised = {"head": True, **promises}
    inputs = promised.pop("inputs", head_inputs)
    return {
        f"{name}-{size}": Case(
            partial(cls, DIMS[size], CLASSES, **(options or {})),
            partial(inputs, DIMS[size]),
            **promised if size == 2 else {**promised, "compiled": (), "exported": False},
        )
        for size in (2, 3)
    }


def fitted(covariance_type: Any) -> nn.Module:
    estimator = rf.GaussianQualityEstimator(4, covariance_type=covariance_type, shrinkage=0.1)
    return estimator.fit(torch.randn(32, 4))


def classifier(head: Callable[[dict[str, int], int], nn.Module]) -> nn.Module:
    encoders = {"image": nn.Linear(6, 3), "text": nn.Linear(7, 4)}
    return rf.DRFClassifier(encoders, head(DIMS[2], CLASSES))


def voting(dims: dict[str, int], classes: int) -> nn.Module:
    head = rf.NeighborVoteHead(rf.DRFHead(dims, classes), capacity=40, neighbors=3)
    features = {name: torch.randn(20, dim) for name, dim in dims.items()}
    return head.fit(features, torch.arange(20) % classes, masks(dims, 20))


TRAIN, EVAL, BOTH = (True,), (False,), (True, False)

PARTS = {
    "FeatureQueue": part(
        lambda: rf.FeatureQueue(4, capacity=5),
        partial(masked_vectors, 4),
        passes_through=True,
        writes="forward",
        compiled=BOTH,
    ),
    **{
        f"GaussianQualityEstimator-{kind}": part(
            partial(fitted, kind), partial(vectors, 4), masked=False
        )
        for kind in ("spherical", "diag", "full")
    },
    "NeighborQualityEstimator": part(
        lambda: rf.NeighborQualityEstimator(4, capacity=40, neighbors=3).fit(torch.randn(64, 4)),
        partial(vectors, 4),
        smooth=False,
        masked=False,
    ),
    **{
        f"Standardize-{kind}": part(
            partial(rf.Standardize, 4, covariance_type=kind),
            partial(masked_vectors, 4),
            writes="forward",
        )
        for kind in ("diag", "spherical")
    },
    "MaskedMean": part(rf.MaskedMean, tokens),
    "AttentionPooling": part(partial(rf.AttentionPooling, 4), tokens),
    "ModalityConverter": part(
        lambda: rf.ModalityConverter(4, 3), partial(vectors, 4), masked=False
    ),
    "DistributionRecoveryLoss": part(rf.DistributionRecoveryLoss, recovery_inputs),
    "DistributionConstraintLoss": part(rf.DistributionConstraintLoss, constraint_inputs),
    "QualityWeightedFusion": part(rf.QualityWeightedFusion, fusion_inputs),
    "QualityWeightedFusion-paper": part(
        partial(rf.QualityWeightedFusion, normalize=False, temperature=2.0), fusion_inputs
    ),
    "LearnedTrust": part(
        lambda: rf.LearnedTrust(DIMS[3]),
        lambda batch: {
            "features": head_inputs(DIMS[3], batch)["features"],
            "log_quality": -torch.rand(batch, 3),
        },
        masked=False,
    ),
}

QUALITIES: dict[str, Callable[[int], rf.QualityEstimator]] = {
    "neighbors": partial(rf.NeighborQualityEstimator, capacity=40, neighbors=3),
    **{
        kind: partial(
            rf.GaussianQualityEstimator,
            covariance_type=kind,
            shrinkage=0.1,
        )
        for kind in ("spherical", "diag", "full")
    },
}
STAND_INS = {"tokens": rf.LearnedTokens, "recovered": rf.RecoveredFeatures}

COMBINATIONS = {
    f"DRFHead-{quality}-{stand_in}-{size}": drf(
        rf.DRFHead,
        dims,
        parts={
            "quality": QUALITIES[quality],
            "stand_in": STAND_INS[stand_in],
            "hidden_features": 16,
        },
        compiled=TRAIN if (quality, stand_in, size) == ("full", "tokens", 2) else (),
        own_evaluation=True,  # training scores nothing
    )
    for quality in QUALITIES
    for stand_in in STAND_INS
    for size, dims in DIMS.items()
}

DRF = {
    **{
        f"DRFHead-{size}": drf(
            rf.DRFHead,
            dims,
            compiled=BOTH if size == 3 else (),
            own_evaluation=True,  # training scores nothing, and hides modalities
        )
        for size, dims in DIMS.items()
    },
    **COMBINATIONS,
    **{
        f"NeighborVoteHead-{size}": Case(
            partial(voting, DIMS[size], CLASSES),
            partial(head_inputs, DIMS[size]),
            head=True,
            drf=True,
            writes="forward",
            own_evaluation=True,
            compiled=EVAL if size == 2 else (),
        )
        for size in (2, 3)
    },
    **{
        f"PaperDRFHead-{size}": drf(
            rf.PaperDRFHead,
            dims,
            smooth=True,
            learns=False,
            compiled=TRAIN if size == 2 else (),
        )
        for size, dims in DIMS.items()
    },
    "DRFClassifier": Case(
        partial(classifier, rf.DRFHead),
        classifier_inputs,
        head=True,
        drf=True,
        writes="forward",
        own_evaluation=True,
        compiled=TRAIN,
    ),
    "DRFClassifier-paper": Case(
        partial(classifier, rf.PaperDRFHead),
        classifier_inputs,
        head=True,
        drf=True,
        writes="forward",
        smooth=True,
    ),
}

SMALL = {"hidden_features": 16}
BASELINES = {
    **heads("majority", baselines.MajorityHead, learns=False),
    **heads("unimodal", baselines.UnimodalHead, options={**SMALL, "modality": "image"}),
    **heads("concatenation", baselines.ConcatenationHead, options=SMALL, compiled=TRAIN),
    **heads(
        "concatenation+dropout",
        baselines.ConcatenationHead,
        options={**SMALL, "modality_dropout": 0.5},
        own_evaluation=True,
    ),
    **heads("late mean", baselines.LateMeanHead, options=SMALL),
    **heads(
        "qmf",
        baselines.QMFHead,
        options={**SMALL, "num_samples": 40},
        inputs=indexed_inputs,
        writes="loss",
    ),
    **heads("pdf", baselines.PDFHead, options=SMALL, own_evaluation=True, compiled=EVAL),
    **heads("tmc", baselines.TMCHead, options=SMALL, writes="loss", clock=("steps",)),
    **heads(
        "etmc",
        baselines.TMCHead,
        options={**SMALL, "pseudo_view": True},
        writes="loss",
        clock=("steps",),
        compiled=TRAIN,
    ),
    **heads("ecml", baselines.ECMLHead, options=SMALL, writes="loss", clock=("steps",)),
    **heads(
        "embracenet", baselines.EmbraceNetHead, options=SMALL, own_evaluation=True, compiled=TRAIN
    ),
    **heads("zero", baselines.ImputationHead, options={**SMALL, "strategy": "zero"}),
    **heads(
        "mean",
        baselines.ImputationHead,
        options={**SMALL, "strategy": "mean"},
        writes="forward",
        compiled=TRAIN,
    ),
}

_token_heads = partial(heads, tokens=True, exported=True)
REPRODUCTIONS = {
    **heads("mmin", MMINHead, options=SMALL, own_evaluation=True, compiled=TRAIN),
    **heads(
        "nearest imputation",
        NearestImputationHead,
        options={**SMALL, "capacity": 16},
        writes="forward",
        compiled=TRAIN,
        exported=True,
    ),
    **heads("stacking", StackingHead, options=SMALL, own_evaluation=True),
    **heads(
        "nearest vote",
        NearestVoteHead,
        options={**SMALL, "neighbors": 3},
        writes="loss",
        own_evaluation=True,
        compiled=EVAL,
        exported=True,
    ),
    **heads(
        "late transformer",
        LateTransformerHead,
        options=SMALL,
        own_evaluation=True,
        compiled=TRAIN,
        exported=True,
    ),
    **heads(
        "dymo",
        DyMoHead,
        options=SMALL,
        writes="loss",
        own_evaluation=True,
        compiled=BOTH,
        exported=True,
    ),
    **_token_heads("missing prompts", MissingPromptsHead, options=SMALL, own_evaluation=True),
    **_token_heads("hsan", HSANHead, options=SMALL),
    **_token_heads("mvan", MVANHead, options=SMALL),
    **_token_heads(
        "mgnns", MGNNSHead, options={**SMALL, "num_anchors": 6}, writes="forward", compiled=TRAIN
    ),
    **_token_heads("clmlf", CLMLFHead, options=SMALL, own_evaluation=True),
    **_token_heads("mvcn", MVCNHead, options=SMALL, own_evaluation=True, compiled=TRAIN),
}

CASES: dict[str, Case] = {**PARTS, **DRF, **BASELINES, **REPRODUCTIONS}


def names(promise: Callable[[Case], Any] = lambda case: True) -> list[str]:
    """The rows that promise something, for ``pytest.mark.parametrize``."""
    return [name for name, case in CASES.items() if promise(case)]


# ------------------------------------------------------------------------------------ nesting


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor of nested dicts, lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)


def convert(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: convert(item, change) for key, item in value.items()}
    if isinstance(value, Gaussian):
        return Gaussian(*(convert(item, change) for item in value))
    return [convert(item, change) for item in value]


def with_grad(inputs: Inputs) -> Inputs:
    """Leaf copies of every floating tensor that ask for a gradient."""
    fresh: Inputs = convert(
        inputs, lambda x: x.clone().requires_grad_() if x.is_floating_point() else x.clone()
    )
    return fresh


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    changed: Inputs = convert(inputs, lambda x: x.to(dtype) if x.is_floating_point() else x)
    return changed


def everyone(inputs: Inputs) -> Inputs:
    """The same inputs, declared to be all there."""
    return {**inputs, "available": convert(inputs["available"], torch.ones_like)}


def hide(inputs: Inputs, value: float) -> Inputs:
    """Write ``value`` wherever the masks say that nothing is there."""
    mask = inputs["paired"] if "paired" in inputs else inputs["available"]

    def fill(x: Tensor, here: Tensor) -> Tensor:
        return x.where(here.reshape(*here.shape, *[1] * (x.ndim - here.ndim)), value)

    hidden = dict(inputs)
    for key in ("features", "inputs", "recovered", "target", "candidates", "log_quality"):
        if key in inputs and isinstance(mask, Mapping):
            hidden[key] = {m: fill(x, mask[m]) for m, x in inputs[key].items()}
        elif key in inputs:
            hidden[key] = fill(inputs[key], mask)
    return hidden


# ---------------------------------------------------------------------------------------- runs


def no_dropout(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


def objective(name: str, module: nn.Module, output: Any) -> Tensor:
    """A scalar to differentiate: the head's own loss, or the sum of squares of the outputs."""
    if CASES[name].head:
        labels = torch.arange(output.logits.shape[0]) % CLASSES
        loss: Tensor = module.loss(output, labels)  # type: ignore[operator]
        return loss
    return torch.stack([x.square().sum() for x in leaves(output)]).sum()


@cache
def _built(name: str, warm: bool) -> nn.Module:
    torch.manual_seed(1)
    module = CASES[name].build()
    if warm:
        for _ in range(2):
            objective(name, module, module(**CASES[name].inputs(9)))
    return module


def built(name: str, *, warm: bool = True) -> nn.Module:
    """The module, after two training steps that fill what it keeps."""
    module = copy.deepcopy(_built(name, warm))
    torch.manual_seed(3)  # whether it was built now or before
    return module


class Run(NamedTuple):
    """All that one forward and backward leaves behind."""

    outputs: list[Tensor]
    loss: Tensor
    input_gradients: list[Tensor | None]
    parameter_gradients: list[Tensor | None]
    state: list[Tensor]


def run(name: str, inputs: Inputs, *, training: bool, module: nn.Module | None = None) -> Run:
    module = built(name) if module is None else module
    module.train(training)
    inputs = with_grad(inputs)
    torch.manual_seed(2)  # dropout, and whatever else a head draws
    output = module(**inputs)
    loss = objective(name, module, output)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    return Run(
        [x.detach() for x in leaves(output)],
        loss.detach(),
        [x.grad for x in leaves(inputs)],
        [p.grad for p in module.parameters()],
        list(module.state_dict().values()),
    )


def assert_same(a: Any, b: Any, what: str) -> None:
    for place, (x, y) in enumerate(zip(a, b, strict=True)):
        assert (x is None) == (y is None), (what, place)
        assert x is None or torch.equal(x, y), (what, place)


def assert_same_run(a: Run, b: Run) -> None:
    for what, x, y in zip(Run._fields, a, b, strict=True):
        assert_same([x] if what == "loss" else x, [y] if what == "loss" else y, what)
