"""What every public module promises, checked in the same way for all of them."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import robustfusion as rf
from robustfusion.functional import Gaussian

Inputs = dict[str, Any]  # keyword arguments of forward
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
    smooth: bool = True  # its features' gradient is that of its outputs: nothing is detached
    masked: bool = True  # takes a mask whose rows may hold anything
    passes_through: bool = False  # returns its input as it is


def masks(names: Mapping[str, int], batch: int) -> dict[str, Tensor]:
    """Every other row lacks the first modality, and so on: each row keeps at least one."""
    return {name: torch.arange(batch) % len(names) != place for place, name in enumerate(names)}


def head_inputs(dims: Mapping[str, int], batch: int) -> Inputs:
    return {
        "features": {name: torch.randn(batch, d) / 2 for name, d in dims.items()},
        "available": masks(dims, batch),
    }


def classifier_inputs(batch: int) -> Inputs:
    given = head_inputs({"image": 6, "text": 7}, batch)
    return {"inputs": given["features"], "available": given["available"]}


def build_classifier(head: Callable[[dict[str, int], int], nn.Module]) -> nn.Module:
    encoders = {"image": nn.Linear(6, 3), "text": nn.Linear(7, 4)}
    return rf.DRFClassifier(encoders, head(DIMS[2], 3))


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


def fitted(covariance_type: str) -> nn.Module:
    estimator = rf.GaussianQualityEstimator(
        4,
        covariance_type=covariance_type,  # type: ignore[arg-type]
        shrinkage=0.1,
    )
    return estimator.fit(torch.randn(32, 4))


def vectors(width: int, batch: int) -> Inputs:
    return {"features": torch.randn(batch, width)}


CASES: dict[str, Case] = {
    "FeatureQueue": Case(
        lambda: rf.FeatureQueue(4, capacity=5),
        lambda batch: {**vectors(4, batch), "available": torch.arange(batch) % 3 > 0},
        passes_through=True,
    ),
    **{
        f"GaussianQualityEstimator-{kind}": Case(
            partial(fitted, kind), partial(vectors, 4), masked=False
        )
        for kind in ("spherical", "diag", "full")
    },
    "NeighborQualityEstimator": Case(
        lambda: rf.NeighborQualityEstimator(4, capacity=40, neighbors=3).fit(torch.randn(64, 4)),
        partial(vectors, 4),
        smooth=False,
        masked=False,
    ),
    "ModalityConverter": Case(
        lambda: rf.ModalityConverter(4, 3), partial(vectors, 4), masked=False
    ),
    "DistributionRecoveryLoss": Case(rf.DistributionRecoveryLoss, recovery_inputs),
    "DistributionConstraintLoss": Case(rf.DistributionConstraintLoss, constraint_inputs),
    "QualityWeightedFusion": Case(rf.QualityWeightedFusion, fusion_inputs),
    "QualityWeightedFusion-paper": Case(
        partial(rf.QualityWeightedFusion, normalize=False, temperature=2.0), fusion_inputs
    ),
    "CrossModalRecovery": Case(
        lambda: rf.CrossModalRecovery(DIMS[3], detach=False),
        lambda batch: {"features": head_inputs(DIMS[3], batch)["features"]},
        masked=False,
    ),
    **{
        f"{cls.__name__}-{size}": Case(
            partial(cls, dims, 3),
            partial(head_inputs, dims),
            head=True,
            smooth=cls is rf.PaperDRFHead,
        )
        for cls in (rf.PaperDRFHead, rf.DRFHead)
        for size, dims in DIMS.items()
    },
    "DRFClassifier": Case(
        partial(build_classifier, rf.DRFHead), classifier_inputs, head=True, smooth=False
    ),
    "DRFClassifier-paper": Case(
        partial(build_classifier, rf.PaperDRFHead), classifier_inputs, head=True
    ),
}
ATOMS = [name for name, case in CASES.items() if not case.head]
HEADS = [name for name, case in CASES.items() if case.head]
each = pytest.mark.parametrize("name", CASES)
each_head = pytest.mark.parametrize("name", HEADS)


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


def batch_of(inputs: Inputs) -> int:
    mapped = inputs.get("inputs", inputs.get("features"))
    return int(next(leaves(mapped if mapped is not None else inputs)).shape[0])


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


def no_dropout(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def built(name: str, *, warm: bool = True) -> nn.Module:
    """The module, after two training steps that fill what it keeps."""
    torch.manual_seed(1)
    module = CASES[name].build()
    if warm:
        for _ in range(2):
            module(**CASES[name].inputs(9))
    return module


def objective(name: str, module: nn.Module, output: Any) -> Tensor:
    """A scalar to differentiate: the head's own loss, or the sum of squares of the outputs."""
    if CASES[name].head:
        labels = torch.arange(output.logits.shape[0]) % 3
        loss: Tensor = module.loss(output, labels)  # type: ignore[operator]
        return loss
    return torch.stack([x.square().sum() for x in leaves(output)]).sum()


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


def test_every_public_module_is_here() -> None:
    public = {getattr(rf, name) for name in rf.__all__}
    modules = {x for x in public if isinstance(x, type) and issubclass(x, nn.Module)}
    assert modules == {type(case.build()) for case in CASES.values()}


@pytest.mark.parametrize("name", ATOMS)
def test_repr_evaluates_back(name: str) -> None:
    module = CASES[name].build()
    call = f"{type(module).__name__}({module.extra_repr()})"
    again = eval(call, vars(rf))
    assert type(again) is type(module)
    assert repr(again) == repr(module)
    if not list(module.children()):
        assert repr(module) == call


@each_head
def test_repr_names_the_modalities(name: str) -> None:
    module = CASES[name].build()
    text = repr(module)
    assert text.startswith(type(module).__name__)
    assert all(f"({m})" in text for m in CASES[name].inputs(1)["available"])


@each
def test_state_dict_round_trip(name: str) -> None:
    module, fresh = built(name).eval(), built(name, warm=False).eval()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    fresh.load_state_dict(module.state_dict())
    inputs = CASES[name].inputs(5)
    assert_same_run(
        run(name, inputs, training=False, module=fresh),
        run(name, inputs, training=False, module=module),
    )
    # A resumed run is the same run: the next training step too.
    for each_module in (fresh, module):
        each_module.zero_grad()
    assert_same_run(
        run(name, inputs, training=True, module=fresh),
        run(name, inputs, training=True, module=module),
    )


@each
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(name: str, how: str) -> None:
    module = built(name)
    clone = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    inputs = CASES[name].inputs(5)
    expected = run(name, inputs, training=True, module=module)
    assert_same_run(run(name, inputs, training=True, module=clone), expected)


@each
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_float64_stays_float64(name: str, training: bool) -> None:
    module = built(name).double().train(training)
    inputs = with_grad(cast(CASES[name].inputs(5), torch.float64))
    output = module(**inputs)
    dtypes = {x.dtype for x in leaves(output) if x.is_floating_point()}
    assert dtypes == {torch.float64}
    assert objective(name, module, output).dtype == torch.float64
    state = module.state_dict().items()
    assert {x.dtype for _, x in state if x.is_floating_point()} <= {torch.float64}


@each
def test_bfloat16_autocast_has_finite_float32_losses(name: str) -> None:
    module = built(name)
    for training in (True, False):
        module.train(training).zero_grad()
        inputs = with_grad(CASES[name].inputs(5))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(**inputs)
            if CASES[name].head:
                loss = objective(name, module, output)
                assert output.aux_loss.dtype == torch.float32
        if not CASES[name].head:
            loss = objective(name, module, cast(list(leaves(output)), torch.float32))  # type: ignore[arg-type]
        if "Loss" in name:
            assert output.dtype == torch.float32
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        assert all(x.grad is None or x.grad.isfinite().all() for x in leaves(inputs))
        assert all(x.isfinite().all() for x in module.state_dict().values())


@each
def test_bfloat16_features(name: str) -> None:
    """Encoders under autocast hand over bfloat16 features."""
    module = built(name)
    if list(module.parameters()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(**cast(CASES[name].inputs(5), torch.bfloat16))
    else:
        output = module(**cast(CASES[name].inputs(5), torch.bfloat16))
    assert all(not x.isnan().any() for x in leaves(output))


# Tracing is slow: every kind of module once; the classifier holds the default head for two.
SKIPPED = ("PaperDRFHead-3", "PaperDRFHead-6", "DRFHead-2", "DRFHead-6", "DRFClassifier-paper")
COMPILED = [name for name in CASES if name not in SKIPPED]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiles_as_one_graph_and_equals_eager(name: str) -> None:
    # In float64, where a difference is a mistake and not another order of summation.
    inputs = cast(CASES[name].inputs(16), torch.float64)
    stateful = CASES[name].head or name == "FeatureQueue"
    for training in (True, False) if stateful else (False,):
        torch._dynamo.reset()
        eager, module = (no_dropout(built(name)).double() for _ in range(2))
        before = copy.deepcopy(list(eager.state_dict().values()))
        expected = run(name, inputs, training=training, module=eager)
        # A step that writes nothing would not show a gradient taken after the write.
        pairs = zip(before, expected.state, strict=True)
        assert any(not torch.equal(x, y) for x, y in pairs) == training
        module.train(training)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.manual_seed(2)
        output = compiled(**with_grad(inputs))
        for x, y in zip(leaves(output), expected.outputs, strict=True):
            torch.testing.assert_close(x, y)
        loss = objective(name, module, output)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        for p, gradient in zip(module.parameters(), expected.parameter_gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient)
        for x, y in zip(module.state_dict().values(), expected.state, strict=True):
            torch.testing.assert_close(x, y)


@each
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_small_batches(name: str, batch: int, training: bool) -> None:
    result = run(name, CASES[name].inputs(batch), training=training)
    expected = run(name, CASES[name].inputs(5), training=training)
    for x, y in zip(result.outputs, expected.outputs, strict=True):
        assert x.shape == ((batch, *y.shape[1:]) if y.ndim and y.shape[0] == 5 else y.shape)
        assert not x.isnan().any()
    assert result.loss.isfinite()
    gradients = [*result.input_gradients, *result.parameter_gradients]
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert all(x.isfinite().all() for x in result.state)


@each
def test_empty_batch_writes_nothing(name: str) -> None:
    module = built(name)
    before = copy.deepcopy(list(module.state_dict().values()))
    assert_same(run(name, CASES[name].inputs(0), training=True, module=module).state, before, "")


@each
def test_batch_permutation(name: str) -> None:
    inputs = CASES[name].inputs(7)
    order = torch.randperm(7)
    permuted = convert(inputs, lambda x: x[order] if x.ndim and x.shape[0] == 7 else x)
    straight = run(name, inputs, training=False).outputs
    for x, y in zip(run(name, permuted, training=False).outputs, straight, strict=True):
        torch.testing.assert_close(x, y[order] if y.ndim else y)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.smooth])
def test_gradcheck(name: str) -> None:
    module = built(name).double().eval()
    inputs = cast(CASES[name].inputs(3), torch.float64)
    # Only rows: the moments and means of the losses are checked as functions elsewhere.
    keys = ("features", "inputs", "recovered", "target", "candidates", "log_quality")
    rows = list(leaves([inputs[key] for key in keys if key in inputs]))

    def scalar(*new: Tensor) -> Tensor:
        replaced = {id(old): row for old, row in zip(rows, new, strict=True)}
        output = module(**convert(inputs, lambda x: replaced.get(id(x), x)))
        return objective(name, module, output)

    leaf_rows = [row.clone().requires_grad_() for row in rows]
    # The fast mode checks one random direction: heads of many modalities are wide.
    assert torch.autograd.gradcheck(scalar, leaf_rows, fast_mode=CASES[name].head)


@each
def test_eval_writes_nothing(name: str) -> None:
    module = built(name)
    before = copy.deepcopy(list(module.state_dict().values()))
    after = run(name, CASES[name].inputs(5), training=False, module=module).state
    assert_same(after, before, "state")


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.head or n == "FeatureQueue"])
def test_training_writes(name: str) -> None:
    module = built(name)
    before = copy.deepcopy(list(module.state_dict().values()))
    # Many rows, of which the paper's admission (13) takes some.
    after = run(name, CASES[name].inputs(32), training=True, module=module).state
    assert any(not torch.equal(x, y) for x, y in zip(after, before, strict=True))


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.masked])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_a_mask_hides_changes_nothing(name: str, training: bool) -> None:
    inputs = CASES[name].inputs(7)
    expected = run(name, hide(inputs, 0.0), training=training)
    for value in (float("nan"), float("inf"), -float("inf"), 1e6):
        actual = run(name, hide(inputs, value), training=training)
        if CASES[name].passes_through:
            assert_same(actual.state, expected.state, "state")
        else:
            assert_same_run(actual, expected)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.masked])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nothing_available_is_defined(name: str, training: bool) -> None:
    inputs = convert(
        CASES[name].inputs(5), lambda x: torch.zeros_like(x) if x.dtype == torch.bool else x
    )
    if not CASES[name].passes_through:
        inputs = hide(inputs, float("nan"))
    # Both before anything was ever seen and after.
    for warm in (True, False):
        result = run(name, inputs, training=training, module=built(name, warm=warm))
        assert all(not x.isnan().any() for x in result.outputs)
        assert result.loss.isfinite()
        gradients = [*result.input_gradients, *result.parameter_gradients]
        assert all(g is None or g.isfinite().all() for g in gradients)
        assert all(x.isfinite().all() for x in result.state)


@pytest.mark.parametrize("name", [n for n in HEADS if "Classifier" not in n])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_available_nan_rows_count_as_missing(name: str, training: bool) -> None:
    inputs = CASES[name].inputs(7)
    said = run(name, hide(inputs, 0.0), training=training)
    everyone = convert(inputs["available"], torch.ones_like)
    for value in (float("nan"), float("inf")):
        broken = {"features": hide(inputs, value)["features"], "available": everyone}
        found = run(name, broken, training=training)
        assert_same_run(found, said)


@each_head
def test_output_contract(name: str) -> None:
    module, inputs = built(name).eval(), CASES[name].inputs(6)
    head: Any = module.head if isinstance(module, rf.DRFClassifier) else module
    dims, candidates = head.dims, head.candidates
    output = module(**inputs)
    names, present = list(dims), inputs["available"]
    assert isinstance(output, rf.DRFOutput)
    assert output.logits.shape == (6, 3)
    assert output.fused.shape[0] == 6
    assert output.fused.ndim == 2
    assert output.candidate_logits.shape == (6, len(candidates), 3)
    assert output.weights.shape == (6, len(candidates))
    assert output.aux_loss.shape == ()
    assert list(output.log_quality) == names
    for m in names:
        assert output.log_quality[m].shape == (6,)
        assert torch.equal(output.log_quality[m].isfinite(), present[m])
    # A head that recovers features says all of them: [target][source].
    assert isinstance(head, rf.DRFHead) or list(output.recovered) == names
    for target, sources in output.recovered.items():
        assert list(sources) == [source for source in names if source != target]
        assert all(recovered.shape == (6, dims[target]) for recovered in sources.values())
    assert candidates[0] == tuple(names)
    assert [len(c) for c in candidates] == sorted((len(c) for c in candidates), reverse=True)
    assert output.usable.shape == output.weights.shape
    assert (output.weights[~output.usable] == 0).all()
    assert (output.weights >= 0).all()
    anything = torch.stack([present[m] for m in names]).any(0)
    assert torch.equal(output.usable.any(1), anything)
    if isinstance(head, rf.DRFHead):
        torch.testing.assert_close(output.weights.sum(1), anything.float())
    else:
        for k, trusted in enumerate(candidates):
            everything = torch.stack([present[m] for m in trusted]).all(0)
            assert torch.equal(output.usable[:, k], everything)


@each_head
def test_omitted_availability_means_all(name: str) -> None:
    inputs = CASES[name].inputs(5)
    everyone = {**inputs, "available": convert(inputs["available"], torch.ones_like)}
    explicit = run(name, everyone, training=True)
    module = built(name).train()
    torch.manual_seed(2)
    output = module(*[value for key, value in inputs.items() if key != "available"])
    assert_same([x.detach() for x in leaves(output)], explicit.outputs, "outputs")


@each_head
def test_cross_entropy_plus_aux_loss_trains(name: str) -> None:
    module, inputs = built(name), CASES[name].inputs(9)
    labels = torch.arange(9) % 3
    output = module(**inputs)
    loss = nn.functional.cross_entropy(output.logits, labels) + output.aux_loss
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    module.zero_grad()
    objective(name, module, module(**inputs)).backward()  # type: ignore[no-untyped-call]
    # No parameter is unused, so DistributedDataParallel needs no search for unused ones.
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
