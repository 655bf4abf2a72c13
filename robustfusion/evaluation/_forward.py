"""Give rows to a model and keep what it says, compactly."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion.candidates import candidate_names
from robustfusion.disruption import Disruption
from robustfusion.evaluation.data import EvaluationData, Rows
from robustfusion.evaluation.results import Recovered

_AXES = 30


class RowResults:
    """What a model said about N rows; a row that was not evaluated is not `known`."""

    def __init__(self, rows: int, modalities: int, candidates: int) -> None:
        self.known = np.zeros(rows, dtype=np.bool_)
        self.predictions = np.full(rows, -1, dtype=np.int16)
        self.confidence = np.zeros(rows, dtype=np.float16)
        self.quality = np.full((rows, modalities), np.nan, dtype=np.float32)
        self.weights = np.zeros((rows, candidates), dtype=np.float32)

    @classmethod
    def empty_like(cls, other: "RowResults") -> "RowResults":
        """Room for as many rows, none known."""
        return cls(len(other.known), other.quality.shape[1], other.weights.shape[1])

    def copy_rows(self, source: "RowResults", rows: NDArray[np.int64]) -> None:
        """Take over some rows of another."""
        for name in ("known", "predictions", "confidence", "quality", "weights"):
            getattr(self, name)[rows] = getattr(source, name)[rows]

    def mean_weights(self) -> NDArray[np.float64] | None:
        """Mean share of each candidate, over the rows with any weight; None without weights."""
        total = self.weights.sum(1, dtype=np.float64)
        kept = total > 0
        if not self.weights.shape[1] or not kept.any():
            return None
        return np.asarray((self.weights[kept] / total[kept, None]).mean(0, dtype=np.float64))


class CleanPass(NamedTuple):
    """What the first pass, over the undisrupted rows, tells about the data."""

    results: RowResults
    labels: NDArray[np.int16]
    observed: dict[str, Tensor]
    recovered: dict[tuple[str, str], Recovered]


class Forward:
    """A model in evaluation mode with its data; a context that restores the mode."""

    def __init__(
        self,
        model: nn.Module,
        data: EvaluationData,
        batch_size: int,
        device: torch.device | str | None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.data, self.batch_size = model, data, batch_size
        if device is None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.device = torch.device(device)
        self.num_classes = 0
        self.candidates: tuple[str, ...] = ()
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in data.modalities}
        self._modes: dict[nn.Module, bool] = {}

    def __enter__(self) -> Self:
        self._modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        # One by one: a frozen encoder inside a training model stays in evaluation mode.
        for module, mode in self._modes.items():
            module.training = mode

    def input_digest(self) -> str:
        """Digest of the clean inputs and of the first seed's corrupted ones."""
        return hashlib.blake2b(
            b"".join(h.digest() for h in self._hashes.values()), digest_size=16
        ).hexdigest()

    def clean(self, recovered_rows: int, *, check_rows: bool) -> CleanPass:
        """Evaluate all rows undisrupted."""
        names, total = self.data.modalities, len(self.data.ids)
        nothing = Disruption(names, disruption_rate=0.0)
        wanted = np.unique(np.linspace(0, total - 1, min(recovered_rows, total)).astype(np.int64))
        pairs = _FeaturePairs(self.model)
        labels, observed = [], []
        results: RowResults | None = None
        start = 0
        rows = np.arange(total)
        for batch in self.data.batches(nothing, rows, self.batch_size):
            inputs, available = self._moved(batch)
            with pairs.watching():
                out = self._call(inputs, available)
            if results is None:
                self.num_classes = out.logits.shape[1]
                weights = getattr(out, "weights", None)
                width = 0 if weights is None else weights.shape[1]
                self.candidates = candidate_names(self.model, width)
                results = RowResults(total, len(names), width)
                if check_rows:
                    self._check_rows(inputs, available, out.logits)
            at = np.arange(start, start + len(out.logits))
            self._keep(results, at, out, available)
            self._hash(inputs)
            labels.append(torch.as_tensor(batch["label"]).cpu())
            observed.append(torch.stack([available[name].cpu() for name in names]))
            pairs.keep(inputs, available, out, wanted[np.isin(wanted, at)] - start)
            start += len(at)
        if results is None or start != total:
            raise ValueError(f"data must give {total} rows, as many as it has ids, got {start}")
        found = torch.cat(labels).long()
        if found.min() < 0 or found.max() >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0 .. {self.num_classes - 1}, the model's classes, got "
                f"{int(found.min())} .. {int(found.max())}"
            )
        masks = torch.cat(observed, dim=1)
        compact = found.numpy().astype(np.int16)
        return CleanPass(
            results,
            compact,
            dict(zip(names, masks, strict=True)),
            pairs.projected(compact[wanted]),
        )

    def rows(
        self, disruption: Disruption, rows: Rows, results: RowResults, *, hashed: bool
    ) -> None:
        """Evaluate some rows under a disruption, into their places in `results`."""
        start = 0
        for batch in self.data.batches(disruption, rows, self.batch_size):
            inputs, available = self._moved(batch)
            out = self._call(inputs, available)
            at = rows[start : start + len(out.logits)]
            self._keep(results, at, out, available)
            if hashed:
                self._hash(inputs)
            start += len(at)

    def _moved(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        inputs = {name: _to(value, self.device) for name, value in batch["inputs"].items()}
        available = {name: mask.to(self.device) for name, mask in batch["available"].items()}
        return inputs, available

    @torch.no_grad()
    def _call(self, inputs: Mapping[str, Any], available: Mapping[str, Tensor]) -> Any:
        out = self.model(inputs, available)
        logits = getattr(out, "logits", None)
        rows = len(next(iter(available.values())))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(out).__name__
            raise ValueError(f"model's output must have logits of shape ({rows}, C), got {found}")
        return out

    @torch.no_grad()  # logits may be a view of a parameter, which asks for a gradient anyway
    def _keep(
        self, results: RowResults, rows: Rows, out: Any, available: Mapping[str, Tensor]
    ) -> None:
        logits = out.logits.float()
        confidence, predictions = logits.softmax(-1).max(-1)
        finite = logits.isfinite().all(-1)
        results.known[rows] = True
        results.predictions[rows] = torch.where(finite, predictions, -1).cpu().numpy()
        results.confidence[rows] = torch.where(finite, confidence, 0.0).cpu().numpy()
        scored = getattr(out, "log_quality", None) or {}
        for column, name in enumerate(self.data.modalities):
            if name in scored:
                kept = torch.where(available[name], scored[name].float(), torch.nan)
                results.quality[rows, column] = kept.cpu().numpy()
        if results.weights.shape[1]:
            results.weights[rows] = out.weights.float().cpu().numpy()

    @torch.no_grad()
    def _check_rows(
        self, inputs: Mapping[str, Any], available: Mapping[str, Tensor], logits: Tensor
    ) -> None:
        half = len(logits) // 2
        if half < 1:
            return
        part = {name: _first(value, half) for name, value in inputs.items()}
        alone = self._call(part, {name: mask[:half] for name, mask in available.items()}).logits
        scale = float(logits[:half].abs().max().nan_to_num())
        close = torch.isclose(alone, logits[:half], 1e-3, 1e-3 * scale, equal_nan=True)
        if not bool(close.all()):
            raise ValueError(
                "the model's logits for a row depend on the other rows of its batch, or on "
                "chance: pass reuse=False to evaluate every condition in full"
            )

    def _hash(self, inputs: Mapping[str, Any]) -> None:
        for name, digest in self._hashes.items():
            _hash_value(digest, inputs[name])


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(entry, device) for key, entry in value.items()}
    return value


def _first(value: Any, rows: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _first(entry, rows) for key, entry in value.items()}
    return value[:rows]


def _hash_value(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(plain.view(torch.uint8).numpy() if plain.ndim else repr(plain).encode())
    elif isinstance(value, Mapping):
        for entry in value.values():
            _hash_value(digest, entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            _hash_value(digest, entry)
    elif isinstance(value, str):
        digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
    elif hasattr(value, "tobytes"):
        digest.update(value.tobytes())


class _FeaturePairs:
    """Collects real features beside the recovered ones that a model's output holds."""

    def __init__(self, model: nn.Module) -> None:
        head = getattr(model, "head", None)
        self.head = head if isinstance(head, nn.Module) else None
        self.seen: Mapping[str, Any] = {}
        self.parts: dict[tuple[str, str], list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        self.paired: dict[tuple[str, str], list[NDArray[np.bool_]]] = {}

    def watching(self) -> Any:
        """A context in which the features that reach `model.head` are seen."""
        if self.head is None:
            return _Nothing()
        return _Hook(self.head.register_forward_pre_hook(self._see, with_kwargs=True))

    def _see(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs.get("features")
        self.seen = features if isinstance(features, Mapping) else {}

    def keep(
        self, inputs: Mapping[str, Any], available: Mapping[str, Tensor], out: Any, rows: Rows
    ) -> None:
        """Keep some rows of the batch."""
        at = torch.from_numpy(rows)
        for target, sources in (getattr(out, "recovered", None) or {}).items():
            real = self.seen.get(target, inputs.get(target))
            for source, made in sources.items():
                if not isinstance(real, Tensor) or real.shape != made.shape:
                    continue
                pair = (target, source)
                values = [x.detach().float().cpu()[at].numpy() for x in (real, made)]
                self.parts.setdefault(pair, []).append((values[0], values[1]))
                both = (available[target] & available[source]).cpu()[at].numpy()
                self.paired.setdefault(pair, []).append(both)

    def projected(self, labels: NDArray[np.int16]) -> dict[tuple[str, str], Recovered]:
        """The rows with both modalities on the principal axes of real and recovered together."""
        found = {}
        for pair, parts in self.parts.items():
            both = np.concatenate(self.paired[pair])
            real = np.concatenate([a for a, _ in parts])[both]
            made = np.concatenate([b for _, b in parts])[both]
            if len(real) < 2 or not (np.isfinite(real).all() and np.isfinite(made).all()):
                continue
            joint = torch.from_numpy(np.concatenate([real, made])).double()
            left, scale, _ = torch.linalg.svd(joint - joint.mean(0), full_matrices=False)
            points = (left * scale)[:, :_AXES].float().numpy()
            variance = scale.square()
            share = (variance / variance.sum().clamp_min(1e-300))[:_AXES].float().numpy()
            found[pair] = Recovered(
                points[: len(real)],
                points[len(real) :],
                share,
                labels[both],
            )
        return found


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class _Hook:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
