"""Check that a model ignores what is missing, and that an encoder ignores the rest of a batch."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_GARBAGE_TEXT = "poison: this text was declared missing"
_NEXT_LOSS = "loss of the next step (stored state)"
_SEED = 20_251_118  # an arbitrary number, the date of the paper


class _Pass(NamedTuple):
    results: dict[str, Tensor]  # everything that must be bit-identical, by its name in messages
    reached: dict[str, list[str]]  # by modality: the inputs whose missing rows got a gradient


def assert_ignores_missing(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Assert that a model neither uses nor learns from what is declared missing.

    For one modality after the other, the rows of its input that `available` declares missing are
    poisoned: with NaN, infinity, 1e6, and with other samples' rows (integers: other rows and
    other values; strings: other rows and another text). Logits, loss, auxiliary loss and the
    gradients of all parameters must stay bit-identical, in training and in evaluation mode, and
    so must the logits of a forward pass after the training step (a queue or a running mean may
    have stored the poison). A missing row must not get a gradient either.

    Every pass runs on a deep copy under the same seed, so the model, its gradients, its mode and
    the global random state are left as they are, and dropout sees the same numbers.

    Args:
        model: Follows the head contract: `model(inputs, available)` returns an output with
            `.logits` (and, optionally, `.aux_loss`), and `model.loss(output, labels)` a scalar.
        batch: A mapping with `inputs` (a mapping from modality to a tensor (B, ...), a mapping of
            such tensors, or a list of B objects), `available` (from modality to bool (B,)) and
            `label` (B,). A modality of which no row is missing is not checked.

    Raises:
        AssertionError: If something leaked; the message names the inputs, the poison and where
            it was seen.
        ValueError: If the batch lacks a part, has a wrong shape, or nothing in it is missing.

    Example:
        >>> import torch
        >>> from robustfusion.baselines import ConcatenationHead
        >>> from robustfusion.testing import assert_ignores_missing
        >>> class Careless(ConcatenationHead):
        ...     def forward(self, features, available):
        ...         return super().forward(features)  # forgets what is missing
        >>> dims = {"image": 4, "text": 4}
        >>> batch = {
        ...     "inputs": {"image": torch.ones(2, 4), "text": torch.ones(2, 4)},
        ...     "available": {"image": torch.ones(2).bool(), "text": torch.tensor([True, False])},
        ...     "label": torch.tensor([0, 2]),
        ... }
        >>> assert_ignores_missing(ConcatenationHead(dims, num_classes=3), batch)
        >>> assert_ignores_missing(Careless(dims, num_classes=3), batch)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: the model looks at what is declared missing:
        - inputs["text"], missing rows set to NaN, train mode: changed logits (1 of 2 rows), ...
    """
    inputs, available, labels = _read(batch)
    leaks: list[str] = []
    for mode in ("train", "eval"):
        run = partial(_run, model, mode, available, labels)
        reference = run(inputs)
        for name in ("logits", "loss"):
            if not bool(reference.results[name].isfinite().all()):
                raise AssertionError(
                    f"{name} are not finite in {mode} mode with the batch as it is, so nothing "
                    "can be compared: are placeholders of missing rows not finite, and looked at?"
                )
        for change in _changes(reference.results, run(inputs).results):
            raise AssertionError(
                "the model is not deterministic, so nothing can be compared: a second run on the "
                f"same batch under the same seed {change} in {mode} mode"
            )
        for name, mask in available.items():
            if bool(mask.all()):
                continue
            argument = f'inputs["{name}"]'
            tried = {
                label: _put(poison, inputs[name], ~mask) for label, poison in _POISONS.items()
            }
            poisoned = {label: value for label, value in tried.items() if value is not None}
            if not poisoned:
                raise ValueError(
                    f"{argument} has nothing to put into its missing rows: all its rows are "
                    "alike, so give the missing ones some content"
                )
            for label, value in poisoned.items():
                result = run({**inputs, name: value})
                seen = _changes(reference.results, result.results)
                seen += [f"a gradient reached missing rows of {p}" for p in result.reached[name]]
                if seen:
                    where = f"{argument}, missing rows {label}, {mode} mode"
                    leaks.append(f"- {where}: {'; '.join(seen)}")
    if leaks:
        raise AssertionError("\n".join(["the model looks at what is declared missing:", *leaks]))


@torch.no_grad()
def assert_batch_invariant(
    encode: Callable[[list[Any]], Tensor], inputs: Sequence[Any], *, tolerance: float = 1e-3
) -> None:
    """Assert that the vector of an input does not depend on the batch that it comes in.

    It does where padding is not the one that a text encoder was trained with: the vector of a text
    then changes with the longest text of its batch. Each input is encoded by itself, with all
    others, and with all others in reverse order.

    Args:
        encode: Function from a list of raw inputs to their vectors (B, D), such as tokenizer and
            encoder together, in evaluation mode.
        inputs: Two different inputs or more, for texts of very different length.
        tolerance: Largest distance of two vectors of one input, divided by their length.

    Raises:
        AssertionError: If a vector depends on its batch, changes from call to call, or all inputs
            have the same vector.
        ValueError: If there are fewer than two inputs, or the vectors are not (B, D).

    Example:
        >>> import torch
        >>> from robustfusion.testing import assert_batch_invariant
        >>> def encode(texts):  # counts letters, and takes the mean over the padded length
        ...     longest = max(map(len, texts))
        ...     counts = [[text.count(c) for c in "aeiou"] for text in texts]
        ...     return torch.tensor(counts) / longest
        >>> assert_batch_invariant(encode, ["a tree", "a"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: the vector of inputs[1] depends on its batch: ...
    """
    if len(inputs) < 2:
        raise ValueError(f"inputs must hold two inputs or more, got {len(inputs)}")
    single = torch.cat([_vectors(encode, [x]) for x in inputs])
    again = torch.cat([_vectors(encode, [x]) for x in inputs])
    if _distance(single, again).amax() > tolerance:
        raise AssertionError(
            "the vectors of the same inputs change from call to call: call eval() on the encoder"
        )
    if _distance(single, single[:1].expand_as(single)).amax() <= tolerance:
        raise AssertionError(
            "all inputs have the same vector: does pooling take a token that has seen no other?"
        )
    for batch in (
        _vectors(encode, list(inputs)),
        _vectors(encode, list(reversed(inputs))).flip(0),
    ):
        distance = _distance(single, batch)
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            similarity = float(torch.cosine_similarity(single[worst], batch[worst], dim=0))
            raise AssertionError(
                f"the vector of inputs[{worst}] depends on its batch: by itself and in a batch it "
                f"differs by {float(distance[worst]):.0%} of its length (cosine "
                f"similarity {similarity:.2f}). Is the padding the one that the encoder was "
                'trained with, such as padding="max_length", and is the attention mask passed on?'
            )


def _vectors(encode: Callable[[list[Any]], Tensor], inputs: list[Any]) -> Tensor:
    vectors = encode(inputs)
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(inputs):
        got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(f"encode must return shape ({len(inputs)}, D), got {got}")
    return vectors.float()


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """Return the distance of each two rows, divided by the length of the first; NaN is far."""
    length = left.norm(dim=1).clamp_min(1e-12)
    distance: Tensor = ((left - right).norm(dim=1) / length).nan_to_num(torch.inf)
    return distance


def _read(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    for key in ("inputs", "available", "label"):
        if key not in batch:
            raise ValueError(f"batch must have the keys inputs, available, label; {key} is absent")
    inputs, available, labels = dict(batch["inputs"]), dict(batch["available"]), batch["label"]
    if set(inputs) != set(available):
        raise ValueError(
            f"available must have the keys of inputs, {tuple(inputs)}, got {tuple(available)}"
        )
    for name, mask in available.items():
        whole = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if not whole or mask.shape != (len(labels),):
            raise ValueError(f'available["{name}"] must be a bool tensor ({len(labels)},)')
    if all(bool(mask.all()) for mask in available.values()):
        raise ValueError("available declares nothing missing: there is nothing to check")
    return inputs, available, labels


def _map(change: Callable[[Any, str], Any], value: Any, path: str) -> Any:
    """Change each leaf of nested mappings, which stay of their kinds; ``change`` gets its path."""
    if not isinstance(value, Mapping):
        return change(value, path)
    result: Any = copy.copy(value)
    for key, entry in value.items():
        result[key] = _map(change, entry, f'{path}["{key}"]')
    return result


def _run(
    model: nn.Module,
    mode: str,
    available: dict[str, Tensor],
    labels: Tensor,
    inputs: dict[str, Any],
) -> _Pass:
    model = copy.deepcopy(model).train(mode == "train")
    model.zero_grad(set_to_none=True)
    leaves: dict[tuple[str, str], Tensor] = {}

    def fresh(name: str, value: Any, path: str) -> Any:
        if not isinstance(value, Tensor):
            return list(value)
        copied = value.detach().clone()
        if copied.is_floating_point():
            leaves[name, path] = copied.requires_grad_(torch.is_grad_enabled())
        return copied

    def step() -> tuple[Any, Tensor]:
        batch = {m: _map(partial(fresh, m), x, f'inputs["{m}"]') for m, x in inputs.items()}
        output = model(batch, dict(available))
        return output, model.loss(output, labels)  # type: ignore[operator]

    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(_SEED)
        output, loss = step()
        results = {"logits": output.logits.detach().clone(), "loss": loss.detach().clone()}
        if isinstance(getattr(output, "aux_loss", None), Tensor):
            results["aux_loss"] = output.aux_loss.detach().clone()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        reached: dict[str, list[str]] = {name: [] for name in available}
        for (name, path), leaf in leaves.items():
            if leaf.grad is not None:
                gradients[path] = leaf.grad[available[name]]
                if bool((leaf.grad[~available[name]] != 0).any()):
                    reached[name].append(path)
        results |= {f"gradient of {name}": x.clone() for name, x in gradients.items()}
        if mode == "train":
            # These passes reveal anything that the step stored (a queue, running statistics),
            # whatever its name, and whether training or evaluation reads it.
            with torch.no_grad():
                results[_NEXT_LOSS] = step()[1].clone()
                model.eval()
                after = step()[0].logits.clone()
                results["logits of the next forward (stored state)"] = after
    return _Pass(results, reached)


def _put(poison: Callable[[Any], Any], value: Any, missing: Tensor) -> Any:
    """Return the value with the poison in its missing rows, or None if that changes nothing."""
    touched = []

    def change(leaf: Any, _: str) -> Any:
        if isinstance(leaf, Tensor):
            leaf = leaf.detach()
            rows = missing.to(leaf.device).view(-1, *[1] * (leaf.ndim - 1))
            result = torch.where(rows, poison(leaf), leaf)
            touched.append(not _same(result, leaf))
            return result
        entries = list(leaf)
        pairs = zip(missing.tolist(), poison(entries), entries, strict=True)
        replaced = [other if gone else entry for gone, other, entry in pairs]
        touched.extend(new is not old for new, old in zip(replaced, entries, strict=True))
        return replaced

    changed = _map(change, value, "")
    return changed if any(touched) else None


def _constant(number: float) -> Callable[[Any], Any]:
    def poison(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        largest = torch.finfo(value.dtype).max
        return torch.full_like(value, min(number, largest) if math.isfinite(number) else number)

    return poison


def _other_rows(value: Any) -> Any:
    return value.roll(1, dims=0) if isinstance(value, Tensor) else value[-1:] + value[:-1]


def _other_values(value: Any) -> Any:
    """Return another text, or other ids within the range of the batch's ids."""
    if not isinstance(value, Tensor):
        text = all(isinstance(entry, str) for entry in value)
        return [_GARBAGE_TEXT] * len(value) if text else value
    if value.dtype == torch.bool or value.is_floating_point() or not value.numel():
        return value
    low, high = int(value.min()), int(value.max())
    if low >= 0 and high <= 1:  # an attention mask, of which all zeros may rightly give NaN
        return value
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(low, high + 1, value.shape, generator=generator).to(value)


_POISONS: dict[str, Callable[[Any], Any]] = {
    "set to NaN": _constant(math.nan),
    "set to inf": _constant(math.inf),
    "set to 1e6": _constant(1e6),  # finite, so that no check for NaN hides it
    "set to other samples' rows": _other_rows,
    "set to other values": _other_values,
}


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(_equal(left, right).all())


def _equal(left: Tensor, right: Tensor) -> Tensor:
    return (left == right) | (left.isnan() & right.isnan())


def _changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Describe the differences; the list is empty if everything is the same to the bit."""
    changed, gradients = [], []
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and _same(old, new):
            continue
        if name.startswith("gradient of "):
            gradients.append(name.removeprefix("gradient of "))
        elif old is not None and new is not None and old.ndim and old.shape == new.shape:
            rows = (~_equal(old, new)).reshape(len(old), -1).any(dim=1)
            changed.append(f"{name} ({int(rows.sum())} of {len(rows)} rows)")
        elif name != _NEXT_LOSS or "loss" not in changed:  # after "loss" it adds nothing
            changed.append(name)
    if gradients:
        more = f" and {len(gradients) - 3} more" if len(gradients) > 3 else ""
        changed.append(f"gradients of {', '.join(gradients[:3])}{more}")
    return [f"changed {', '.join(changed)}"] if changed else []
