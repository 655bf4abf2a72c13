"""A check for any model with the head contract: what is missing must not be looked at."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = dict[str, Any]
Poison: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_GARBAGE_TEXT = "poison: this text was declared missing"
_NEXT_LOSS = "loss of the next step (stored state)"
_SEED = 20_251_118


class _Pass(NamedTuple):
    results: dict[str, Tensor]  # what must be bit-identical, by the name to report
    missing_gradients: dict[str, dict[str, Tensor]]  # by modality and place: must be zero


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
        >>> from typing import NamedTuple
        >>> from robustfusion.testing import assert_ignores_missing
        >>> class Out(NamedTuple):
        ...     logits: torch.Tensor
        >>> class Average(torch.nn.Module):
        ...     def __init__(self, masked):
        ...         super().__init__()
        ...         self.masked, self.layer = masked, torch.nn.Linear(4, 3)
        ...
        ...     def forward(self, inputs, available):
        ...         total = 0
        ...         for name, x in inputs.items():
        ...             if self.masked:
        ...                 x = torch.where(available[name][:, None], x, 0)
        ...             total = total + x
        ...         return Out(self.layer(total))
        ...
        ...     def loss(self, out, labels):
        ...         return torch.nn.functional.cross_entropy(out.logits, labels)
        >>> batch = {
        ...     "inputs": {"image": torch.ones(2, 4), "text": torch.ones(2, 4)},
        ...     "available": {
        ...         "image": torch.tensor([True, True]),
        ...         "text": torch.tensor([True, False]),
        ...     },
        ...     "label": torch.tensor([0, 2]),
        ... }
        >>> assert_ignores_missing(Average(masked=True), batch)
        >>> assert_ignores_missing(Average(masked=False), batch)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        AssertionError: the model looks at what is declared missing:
        - inputs["text"], missing rows set to NaN, train mode: changed logits (1 of 2 rows), ...
    """
    inputs, available, labels = _read(batch)
    leaks: list[str] = []
    for mode in ("train", "eval"):
        reference = _run(model, inputs, available, labels, mode)
        _check_reference(reference, _run(model, inputs, available, labels, mode), mode)
        for name, mask in available.items():
            if bool(mask.all()):
                continue
            seen = {}
            poisons = dict(_poisons(inputs[name], ~mask))
            if not poisons:
                raise ValueError(
                    f'inputs["{name}"] has nothing to put into its missing rows: all its rows are '
                    "alike, so give the missing ones some content"
                )
            for poison, poisoned in poisons.items():
                result = _run(model, {**inputs, name: poisoned}, available, labels, mode)
                found = _differences(reference, result, name)
                if found:
                    seen[poison] = found
            leaks += [
                f'- inputs["{name}"], missing rows {poison}, {mode} mode: {found}'
                for poison, found in seen.items()
            ]
    if leaks:
        raise AssertionError("\n".join(["the model looks at what is declared missing:", *leaks]))


def _read(batch: Mapping[str, Any]) -> tuple[Inputs, dict[str, Tensor], Tensor]:
    for key in ("inputs", "available", "label"):
        if key not in batch:
            raise ValueError(f"batch must have the keys inputs, available, label; {key} is absent")
    inputs, available, labels = dict(batch["inputs"]), dict(batch["available"]), batch["label"]
    if set(inputs) != set(available):
        raise ValueError(
            f"available must have the keys of inputs, {tuple(inputs)}, got {tuple(available)}"
        )
    for name, mask in available.items():
        if (
            not isinstance(mask, Tensor)
            or mask.dtype != torch.bool
            or mask.shape != (len(labels),)
        ):
            raise ValueError(f'available["{name}"] must be a bool tensor ({len(labels)},)')
    if all(bool(mask.all()) for mask in available.values()):
        raise ValueError("available declares nothing missing: there is nothing to check")
    return inputs, available, labels


def _run(
    model: nn.Module, inputs: Inputs, available: dict[str, Tensor], labels: Tensor, mode: str
) -> _Pass:
    model = copy.deepcopy(model).train(mode == "train")
    model.zero_grad(set_to_none=True)
    leaves: dict[str, dict[str, Tensor]] = {name: {} for name in inputs}
    fresh = {
        name: _leaf(value, f'inputs["{name}"]', leaves[name]) for name, value in inputs.items()
    }
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(_SEED)
        output = model(fresh, dict(available))
        loss = model.loss(output, labels)  # type: ignore[operator]
        results = {"logits": output.logits.detach().clone(), "loss": loss.detach().clone()}
        if isinstance(getattr(output, "aux_loss", None), Tensor):
            results["aux_loss"] = output.aux_loss.detach().clone()
        if loss.requires_grad:
            loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                results[f"gradient of {name}"] = parameter.grad.clone()
        missing: dict[str, dict[str, Tensor]] = {name: {} for name in inputs}
        for name, mask in available.items():
            for place, leaf in leaves[name].items():
                if leaf.grad is not None:
                    missing[name][place] = leaf.grad[~mask]
                    results[f"gradient of {place}"] = leaf.grad[mask]
        if mode == "train":
            # Shows what the step stored (queue, running statistics), whatever it is called, and
            # whether training or evaluation reads it.
            with torch.no_grad():
                again = model({n: _detached(v) for n, v in inputs.items()}, dict(available))
                loss = model.loss(again, labels)  # type: ignore[operator]
                results[_NEXT_LOSS] = loss.clone()
                model.eval()
                after = model({n: _detached(v) for n, v in inputs.items()}, dict(available))
                results["logits of the next forward (stored state)"] = after.logits.clone()
    return _Pass(results, missing)


def _leaf(value: Any, place: str, leaves: dict[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        return _rebuild(value, lambda key, entry: _leaf(entry, f'{place}["{key}"]', leaves))
    if not isinstance(value, Tensor):
        return list(value)
    copied = value.detach().clone()
    if copied.is_floating_point():
        leaves[place] = copied.requires_grad_()
    return copied


def _detached(value: Any) -> Any:
    return _leaf(value, "", {}) if not isinstance(value, Tensor) else value.detach().clone()


def _rebuild(value: Mapping[str, Any], change: Callable[[str, Any], Any]) -> Any:
    result: Any = copy.copy(value)
    for key, entry in value.items():
        result[key] = change(key, entry)
    return result


def _poisons(value: Any, missing: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield (how it reads in the report, poisoned value), those that change something."""
    for label, poison in _TENSOR_POISONS.items():
        changed, touched = _poison(value, missing, label, poison)
        if touched:
            yield label, changed


def _poison(value: Any, missing: Tensor, label: str, poison: Poison) -> tuple[Any, bool]:
    if isinstance(value, Mapping):
        parts = {key: _poison(entry, missing, label, poison) for key, entry in value.items()}
        changed = _rebuild(value, lambda key, _: parts[key][0])
        return changed, any(touched for _, touched in parts.values())
    if isinstance(value, Tensor):
        mask = missing.to(value.device)
        rows = mask.view(-1, *[1] * (value.ndim - 1))
        result = torch.where(rows, poison(value.detach(), mask), value.detach())
        return result, not _same(result, value)
    entries = list(value)
    if label == _OTHER_ROWS:
        others = entries[-1:] + entries[:-1]
    elif label == _OTHER_VALUES and all(isinstance(entry, str) for entry in entries):
        others = [_GARBAGE_TEXT] * len(entries)
    else:
        others = entries
    pairs = zip(missing.tolist(), others, entries, strict=True)
    replaced = [other if gone else entry for gone, other, entry in pairs]
    return replaced, any(new is not old for new, old in zip(replaced, entries, strict=True))


def _constant(number: float) -> Poison:
    def poison(value: Tensor, missing: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        largest = torch.finfo(value.dtype).max
        return torch.full_like(value, min(number, largest) if math.isfinite(number) else number)

    return poison


def _other_rows(value: Tensor, missing: Tensor) -> Tensor:
    return value.roll(1, dims=0)


def _other_values(value: Tensor, missing: Tensor) -> Tensor:
    """Return values that an embedding table that knows the batch's ids knows too."""
    if value.dtype == torch.bool or value.is_floating_point() or not value.numel():
        return value
    low, high = int(value.min()), int(value.max())
    if low >= 0 and high <= 1:  # an attention mask: all zeros may be NaN in an honest encoder
        return value
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randint(low, high + 1, value.shape, generator=generator)
    return drawn.to(value)


_OTHER_ROWS = "set to other samples' rows"
_OTHER_VALUES = "set to other values"
_TENSOR_POISONS: dict[str, Poison] = {
    "set to NaN": _constant(math.nan),
    "set to inf": _constant(math.inf),
    "set to 1e6": _constant(1e6),
    _OTHER_ROWS: _other_rows,
    _OTHER_VALUES: _other_values,
}


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(_equal(left, right).all())


def _equal(left: Tensor, right: Tensor) -> Tensor:
    return (left == right) | (left.isnan() & right.isnan())


def _check_reference(first: _Pass, second: _Pass, mode: str) -> None:
    for name in ("logits", "loss"):
        if not bool(first.results[name].isfinite().all()):
            raise AssertionError(
                f"{name} are not finite in {mode} mode with the batch as it is, so nothing can be "
                "compared: are the placeholders of missing rows not finite, and looked at?"
            )
    for name, value in first.results.items():
        if name not in second.results or not _same(value, second.results[name]):
            raise AssertionError(
                f"{name} differs between two runs on the same batch under the same seed in {mode} "
                "mode: the model is not deterministic, so nothing can be compared"
            )


def _differences(reference: _Pass, result: _Pass, modality: str) -> str:
    found, gradients = [], []
    for name in {**reference.results, **result.results}:
        old, new = reference.results.get(name), result.results.get(name)
        if old is not None and new is not None and _same(old, new):
            continue
        if name.startswith("gradient of "):
            gradients.append(name.removeprefix("gradient of "))
        elif old is not None and new is not None and old.ndim and old.shape == new.shape:
            rows = (~_equal(old, new)).reshape(len(old), -1).any(dim=1)
            found.append(f"{name} ({int(rows.sum())} of {len(rows)} rows)")
        elif name != _NEXT_LOSS or "loss" not in found:  # else it says nothing more
            found.append(name)
    if gradients:
        more = f" and {len(gradients) - 3} more" if len(gradients) > 3 else ""
        found.append(f"gradients of {', '.join(gradients[:3])}{more}")
    report = f"changed {', '.join(found)}" if found else ""
    reached = [
        place
        for place, gradient in result.missing_gradients[modality].items()
        if bool((gradient != 0).any())
    ]
    if reached:
        report += f"{'; ' if report else ''}a gradient reached missing rows of {reached[0]}"
    return report
