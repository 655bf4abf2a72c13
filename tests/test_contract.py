"""Every promise, over every part, head and classifier of the table in `conformance.py`."""

import copy
import inspect
import pickle
from typing import Any

import conformance
import pytest
import reproductions
import torch
from conformance import (
    CASES,
    CLASSES,
    COMBINATIONS,
    PARTS,
    assert_same,
    assert_same_run,
    built,
    cast,
    convert,
    everyone,
    hide,
    leaves,
    names,
    no_dropout,
    objective,
    run,
    with_grad,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import robustfusion as rf
from robustfusion import baselines
from robustfusion.testing import assert_ignores_missing

HEADS = names(lambda case: case.head)
BARE_HEADS = [name for name in HEADS if "Classifier" not in name]
# Slow tests that more modalities or other parts of a DRF head add nothing to.
FEW = [name for name in HEADS if name not in COMBINATIONS and not name.endswith(("-3", "-6"))]
each = pytest.mark.parametrize("name", CASES)
each_head = pytest.mark.parametrize("name", HEADS)
each_bare_head = pytest.mark.parametrize("name", BARE_HEADS)
each_drf = pytest.mark.parametrize("name", names(lambda case: case.drf))
each_masked = pytest.mark.parametrize("name", names(lambda case: case.masked))
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def test_every_public_module_is_here() -> None:
    public = {getattr(rf, name) for name in rf.__all__}
    for package in (baselines, reproductions):
        public |= {getattr(package, name) for name in package.__all__}
    public = {x for x in public if isinstance(x, type) and issubclass(x, nn.Module)}
    public = {x for x in public if not inspect.isabstract(x)}
    built_here = [case.build() for case in CASES.values()]
    rows = {type(module) for module in built_here}
    # A stand-in is run by the heads that it is passed to.
    inside = {type(inner) for module in built_here for inner in module.modules()}
    assert public & inside == public
    assert {x for x in public if hasattr(x, "loss")} <= rows <= public


# --------------------------------------------------------------------------- what they are made of


@pytest.mark.parametrize("name", PARTS)
def test_repr_evaluates_back(name: str) -> None:
    module = CASES[name].build()
    call = f"{type(module).__name__}({module.extra_repr()})"
    again = eval(call, vars(rf))
    assert type(again) is type(module)
    assert repr(again) == repr(module)
    if not list(module.children()):
        assert repr(module) == call


@each_drf
def test_repr_names_the_modalities(name: str) -> None:
    module = CASES[name].build()
    text = repr(module)
    assert text.startswith(type(module).__name__)
    assert all(f"({m})" in text for m in CASES[name].inputs(1)["available"])


@each_bare_head
def test_constructor_errors(name: str) -> None:
    made: Any = CASES[name].build
    with pytest.raises(ValueError, match="dims"):
        made.func({}, CLASSES, **made.keywords)
    with pytest.raises(ValueError, match="num_classes"):
        made.func(made.args[0], 0, **made.keywords)


@pytest.mark.parametrize("name", [*conformance.BASELINES, *conformance.REPRODUCTIONS])
def test_the_docstring_is_a_card(name: str) -> None:
    card = type(CASES[name].build()).__doc__ or ""
    wanted = ["- Kept: ", "- Replaced: ", "- Missing rule: ", "- Unverified: "]
    assert [line for line in wanted if line not in card] == []


# -------------------------------------------------------------------------------- state and copies


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
def test_eval_writes_nothing(name: str) -> None:
    module = built(name).eval()  # the switch itself scores what training stored
    before = copy.deepcopy(list(module.state_dict().values()))
    after = run(name, CASES[name].inputs(5), training=False, module=module).state
    assert_same(after, before, "state")


@each
def test_training_writes_where_it_says_so(name: str) -> None:
    module = built(name)
    before = copy.deepcopy(list(module.state_dict().values()))
    # Many rows, of which the paper's admission (13) takes some.
    after = run(name, CASES[name].inputs(32), training=True, module=module).state
    changed = any(not torch.equal(x, y) for x, y in zip(after, before, strict=True))
    assert changed == (CASES[name].writes is not None)


@each
def test_empty_batch_writes_nothing(name: str) -> None:
    module = built(name)
    before = copy.deepcopy(module.state_dict())
    run(name, CASES[name].inputs(0), training=True, module=module)
    for key, x in module.state_dict().items():
        assert key in CASES[name].clock or torch.equal(x, before[key]), key


@each_head
def test_activation_checkpointing_is_exact_or_refused(name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(7)
    key = "inputs" if "inputs" in inputs else "features"
    others = {k: v for k, v in inputs.items() if k != key}
    module = built(name).train()
    torch.manual_seed(2)
    leaf = with_grad(inputs[key])
    # Only tensors among its arguments tell the reentrant kind that there is something to do.
    call: Any = lambda *values: objective(  # noqa: E731
        name, module, module(**{key: dict(zip(leaf, values, strict=True))}, **others)
    )
    if case.writes == "loss":  # the loss is outside, as it is in training
        call = lambda *values: module(  # noqa: E731
            **{key: dict(zip(leaf, values, strict=True))}, **others
        )
    result = checkpoint(call, *leaf.values(), use_reentrant=False)
    loss = objective(name, module, result) if case.writes == "loss" else result
    if case.writes == "forward":
        with pytest.raises(RuntimeError, match=r"ran again .* checkpoint the encoders"):
            loss.backward()
        return
    loss.backward()
    expected = run(name, inputs, training=True)
    assert_same([p.grad for p in module.parameters()], expected.parameter_gradients, "gradients")


# --------------------------------------------------------------------------------------- precision


@each
@each_mode
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
        gradients = [x.grad for x in (*leaves(inputs), *module.parameters())]
        assert all(x is None or x.isfinite().all() for x in gradients)
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


# ------------------------------------------------------------------------------ tracing and export


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tracing is slow: some cases and modes in a short run, each with --long."""
    if metafunc.function is test_compiles_as_one_graph_and_equals_eager:
        every = metafunc.config.getoption("--long")
        traced = [
            (name, mode)
            for name, case in CASES.items()
            for mode in ((True, False) if every else case.compiled)
        ]
        metafunc.parametrize(("name", "training"), traced)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiles_as_one_graph_and_equals_eager(name: str, training: bool) -> None:
    # In float64, where a difference is a mistake and not another order of summation.
    inputs = cast(CASES[name].inputs(16), torch.float64)
    torch._dynamo.reset()
    eager, module = (no_dropout(built(name)).double().train(training) for _ in range(2))
    before = copy.deepcopy(list(eager.state_dict().values()))
    expected = run(name, inputs, training=training, module=eager)
    # A step that writes nothing would not show a gradient taken after the write.
    pairs = zip(before, expected.state, strict=True)
    writes = training and CASES[name].writes is not None
    assert any(not torch.equal(x, y) for x, y in pairs) == writes
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.manual_seed(2)
    output = compiled(**with_grad(inputs))
    for x, y in zip(leaves(output), expected.outputs, strict=True):
        torch.testing.assert_close(x, y)
    loss = objective(name, module, output)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    for p, gradient in zip(module.parameters(), expected.parameter_gradients, strict=True):
        # Of what evaluation leaves out, traced code says zero where eager code says nothing.
        got, wanted = (torch.zeros_like(p) if g is None else g for g in (p.grad, gradient))
        torch.testing.assert_close(got, wanted)
    for x, y in zip(module.state_dict().values(), expected.state, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("name", names(lambda case: case.exported))
def test_exports_with_any_batch_size(name: str) -> None:
    head = built(name).eval()
    given = CASES[name].inputs(7)
    sizes = {key: {0: torch.export.Dim("batch")} for key in given["features"]}
    arguments = (given["features"], given["available"])
    program = torch.export.export(head, arguments, dynamic_shapes=(sizes, sizes))
    other = CASES[name].inputs(5)
    got = program.module()(other["features"], other["available"])
    torch.testing.assert_close(got.logits, head(**other).logits)


# ----------------------------------------------------------------------------------------- batches


@each
@pytest.mark.parametrize("batch", [0, 1])
@each_mode
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
def test_batch_permutation(name: str) -> None:
    inputs = CASES[name].inputs(7)
    order = torch.randperm(7)
    permuted = convert(inputs, lambda x: x[order] if x.ndim and x.shape[0] == 7 else x)
    straight = run(name, inputs, training=False).outputs
    for x, y in zip(run(name, permuted, training=False).outputs, straight, strict=True):
        torch.testing.assert_close(x, y[order] if y.ndim and y.shape[0] == 7 else y)


@pytest.mark.parametrize("name", names(lambda case: case.head and not case.own_evaluation))
def test_training_predicts_as_evaluation_does(name: str) -> None:
    inputs = CASES[name].inputs(7)
    made = [no_dropout(built(name)).train(mode)(**inputs) for mode in (True, False)]
    torch.testing.assert_close(made[0].logits, made[1].logits)
    torch.testing.assert_close(made[0].fused, made[1].fused)


@pytest.mark.parametrize("name", names(lambda case: case.smooth))
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


# --------------------------------------------------------------------------------- what is missing


@each_masked
@each_mode
def test_what_a_mask_hides_changes_nothing(name: str, training: bool) -> None:
    inputs = CASES[name].inputs(7)
    expected = run(name, hide(inputs, 0.0), training=training)
    for value in (float("nan"), float("inf"), -float("inf"), 1e6):
        actual = run(name, hide(inputs, value), training=training)
        if CASES[name].passes_through:
            assert_same(actual.state, expected.state, "state")
        else:
            assert_same_run(actual, expected)
    if CASES[name].head:
        rows = next(iter(inputs.values()))
        for gradient, here in zip(
            expected.input_gradients[: len(rows)], inputs["available"].values(), strict=True
        ):
            assert gradient is None or not gradient[~here].any()


@each_masked
@each_mode
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


@each_bare_head
@each_mode
def test_available_rows_beyond_use_count_as_missing(name: str, training: bool) -> None:
    inputs = CASES[name].inputs(7)
    said = run(name, hide(inputs, 0.0), training=training)
    for value in (float("nan"), float("inf"), 1e30):
        found = run(name, everyone(hide(inputs, value)), training=training)
        assert_same_run(found, said)


@pytest.mark.parametrize("name", FEW)
def test_assert_ignores_missing(name: str) -> None:
    given = CASES[name].inputs(7)
    batch = {
        "inputs": given.get("inputs", given.get("features")),
        "available": given["available"],
        "label": torch.arange(7) % CLASSES,
    }
    assert_ignores_missing(built(name), batch)


@each_head
def test_omitted_availability_means_all(name: str) -> None:
    inputs = CASES[name].inputs(5)
    explicit = run(name, everyone(inputs), training=True)
    module = built(name).train()
    torch.manual_seed(2)
    output = module(**{key: value for key, value in inputs.items() if key != "available"})
    assert_same([x.detach() for x in leaves(output)], explicit.outputs, "outputs")


# ---------------------------------------------------------------------------------- heads as heads


@each_head
def test_output_contract(name: str) -> None:
    output = built(name).eval()(**CASES[name].inputs(6))
    assert output.logits.shape == (6, CLASSES)
    assert output.fused.shape[0] == 6
    assert output.fused.ndim == 2
    assert output.aux_loss.shape == ()


@each_drf
def test_drf_output_contract(name: str) -> None:
    module, inputs = built(name).eval(), CASES[name].inputs(6)
    head: Any = module.head if isinstance(module, rf.DRFClassifier) else module
    dims, candidates = head.dims, head.candidates
    output = module(**inputs)
    modalities, present = list(dims), inputs["available"]
    assert isinstance(output, rf.DRFOutput)
    assert output.candidate_logits.shape == (6, len(candidates), CLASSES)
    assert output.weights.shape == (6, len(candidates))
    assert list(output.log_quality) == modalities
    for m in modalities:
        assert output.log_quality[m].shape == (6,)
        assert torch.equal(output.log_quality[m].isfinite(), present[m])
    # A head that recovers features says all of them: [target][source].
    assert isinstance(head, rf.DRFHead) or list(output.recovered) == modalities
    for target, sources in output.recovered.items():
        assert list(sources) == [source for source in modalities if source != target]
        assert all(recovered.shape == (6, dims[target]) for recovered in sources.values())
    assert candidates[0] == tuple(modalities)
    assert [len(c) for c in candidates] == sorted((len(c) for c in candidates), reverse=True)
    assert (output.weights >= 0).all()
    anything = torch.stack([present[m] for m in modalities]).any(0)
    trust = torch.stack(list(output.trust.values()), dim=1)
    assert (trust[~torch.stack([present[m] for m in modalities], dim=1)] == 0).all()
    torch.testing.assert_close(trust.sum(1), output.weights.sum(1))
    if isinstance(head, rf.DRFHead):
        torch.testing.assert_close(output.weights.sum(1), anything.float())
        assert (output.weights[~output.extras["usable"]] == 0).all()
        assert torch.equal(output.extras["usable"].any(1), anything)
    else:
        for k, trusted in enumerate(candidates):
            everything = torch.stack([present[m] for m in trusted]).all(0)
            assert torch.equal(output.weights[:, k] > 0, everything)


@each_head
def test_cross_entropy_plus_aux_loss_trains(name: str) -> None:
    module, inputs = built(name), CASES[name].inputs(9)
    labels = torch.arange(9) % CLASSES
    output = module(**inputs)
    loss = nn.functional.cross_entropy(output.logits, labels) + output.aux_loss
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@each_head
@pytest.mark.parametrize("complete", [True, False])
def test_every_parameter_has_a_gradient(name: str, complete: bool) -> None:
    # Then DistributedDataParallel needs no search for unused ones; also in the very first step.
    inputs = CASES[name].inputs(9)
    for module in (built(name), built(name, warm=False)):
        output = module(**everyone(inputs) if complete else inputs)
        objective(name, module, output).backward()  # type: ignore[no-untyped-call]
        assert [n for n, p in module.named_parameters() if p.grad is None] == []


@each_head
def test_order_of_the_keys_does_not_matter(name: str) -> None:
    head, inputs = built(name).eval(), CASES[name].inputs(7)
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in inputs.items()
    }
    assert torch.equal(head(**turned).logits, head(**inputs).logits)


@each_bare_head
def test_errors_name_the_modality(name: str) -> None:
    head: Any = built(name)
    inputs = CASES[name].inputs(7)
    features, available = inputs["features"], inputs["available"]
    m, other = list(features)[:2]
    rest = {key: x for key, x in features.items() if key != m}
    for broken, message in (
        (rest, m),
        ({**features, m: torch.zeros(7, 9)}, rf'features\["{m}"\] must have shape'),
        ({**features, other: torch.zeros(6, features[other].shape[1])}, rf'features\["{other}"\]'),
    ):
        with pytest.raises(ValueError, match=message):
            head(broken, available)
    with pytest.raises(TypeError, match=rf'features\["{m}"\] must have a floating dtype'):
        head({**features, m: torch.zeros(features[m].shape, dtype=torch.long)})
    with pytest.raises(TypeError, match=rf'available\["{other}"\]'):
        head(features, {**available, other: torch.ones(7)})
    with pytest.raises(ValueError, match=rf'available\["{other}"\]'):
        head(features, {**available, other: torch.ones(6).bool()})
    output = head(**inputs)
    with pytest.raises(ValueError, match=r"(target|labels) must have shape"):
        head.loss(output, torch.zeros(3, dtype=torch.long))
    with pytest.raises((TypeError, ValueError), match=r"labels must|use 'regression'"):
        head.loss(output, torch.zeros(7))


@pytest.mark.parametrize("name", [n for n in FEW if n in BARE_HEADS and CASES[n].learns])
def test_learns_separable_classes(name: str) -> None:
    torch.manual_seed(0)
    labels = torch.arange(90) % CLASSES
    dims = {key: x.shape[1] for key, x in CASES[name].inputs(1)["features"].items()}
    centers = {key: 2 * torch.randn(CLASSES, dim) for key, dim in dims.items()}
    features = {key: x[labels] + 0.3 * torch.randn(90, x.shape[1]) for key, x in centers.items()}
    head: Any = CASES[name].build()
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(head(features), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    accuracy = (head.eval()(features).logits.argmax(1) == labels).float().mean()
    assert losses[-1] < losses[0]
    assert accuracy > 0.95
