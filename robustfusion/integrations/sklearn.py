"""scikit-learn estimators over cached features, in which any modality may be missing."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion._validation import check_between, check_positive
from robustfusion.drf import DRFHead
from robustfusion.tasks import Task, fit_interval

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        'RobustFusionClassifier needs scikit-learn 1.6: pip install "robustfusion[sklearn]"'
    ) from error

Columns: TypeAlias = slice | Sequence[int] | Sequence[str] | NDArray[Any]

CHECKS: dict[str, Any] = {
    "dtype": np.float64,
    "ensure_all_finite": "allow-nan",
    "accept_sparse": "csr",
}
# Length of training unless ``epochs`` sets it. Our choice: a head on cached features converges in
# so many steps, and the bounds on epochs are for very few and very many samples.
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 300, 6, 100
PREDICT_BATCH = 1024  # samples in one forward pass of a prediction


def join_features(features: Mapping[str, Any]) -> tuple[NDArray[Any], dict[str, slice]]:
    """Join feature arrays into one, which ``cross_val_score`` and ``Pipeline`` need.

    Args:
        features: Modality to (N, D_m): an array, a sparse matrix, or N embeddings of D_m numbers,
            such as a column of a data frame with one embedding a cell. NaN, or a cell without an
            embedding (``None``, NaN), means that the sample lacks the modality.

    Returns:
        The array (N, sum of D_m), and the columns of each modality, for
        ``RobustFusionClassifier(modalities=...)``.

    Raises:
        ValueError: If the arrays differ in their number of rows, or are not 2-D.

    Example:
        >>> import numpy as np
        >>> from robustfusion.integrations.sklearn import join_features
        >>> X, modalities = join_features({"image": np.ones((5, 3)), "text": np.ones((5, 2))})
        >>> X.shape, modalities
        ((5, 5), {'image': slice(0, 3, None), 'text': slice(3, 5, None)})
    """
    arrays = {name: _as_array(values, f'features["{name}"]') for name, values in features.items()}
    if not arrays:
        raise ValueError("features must hold at least one modality")
    columns, start, rows = {}, 0, len(next(iter(arrays.values())))
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) != rows:
            raise ValueError(
                f'features["{name}"] must have shape ({rows}, D), got {tuple(array.shape)}'
            )
        columns[name] = slice(start, start + array.shape[1])
        start += array.shape[1]
    return np.concatenate(list(arrays.values()), axis=1), columns


class _FusionEstimator(BaseEstimator):  # type: ignore[misc]
    """The columns, the training and the outputs of the classifier and the regressor."""

    _task: Task = "multiclass"

    def __init__(
        self,
        modalities: Mapping[str, Columns] | None = None,
        *,
        head: Callable[..., nn.Module] | None = None,
        dropout: float | None = None,
        hidden_features: int | None = None,
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.modalities = modalities
        self.head = head
        self.dropout = dropout
        self.hidden_features = hidden_features
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state

    def log_quality(self, X: Any) -> dict[str, NDArray[np.float64]]:
        """Return the head's log-quality of each modality, (N,); −inf where it is missing.

        Raises:
            AttributeError: If the head has no quality scores.
        """
        parts = [output.log_quality for output in self._outputs(X)]
        return {name: _joined([part[name] for part in parts]) for name in self.columns_}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags

    def _checked(self, X: Any, y: Any, **checks: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Check options, features and targets, and remember the columns."""
        if self.epochs is not None:
            check_positive(self.epochs, "epochs")
        check_positive(self.batch_size, "batch_size")
        check_between(self.learning_rate, 0.0, 1.0, "learning_rate")
        X, modalities = self._join(X)
        _check_labels(y)
        array, y = validate_data(self, X, y, **CHECKS, **checks)
        self.columns_ = {name: self._resolve(name, c) for name, c in modalities.items()}
        return _dense(array), y

    def _fit(
        self,
        array: NDArray[Any],
        target: Tensor,
        sample_weight: Any,
        weight: NDArray[np.float64],
        class_weight: Tensor | None = None,
    ) -> Self:
        """Train the head with the product of both weights of a sample."""
        own = _check_sample_weight(
            sample_weight, array, dtype=np.float64, ensure_non_negative=True
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._scalers: dict[str, StandardScaler] = {}
        inputs, available = self._tensors(array)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = torch.from_numpy(own * weight), class_weight
            self.head_ = self._train(inputs, available, target, *weights)
        return self

    def _join(self, X: Any) -> tuple[Any, Mapping[str, Any]]:
        """Return one array and the columns of each modality, before any check of its content."""
        if _is_dict(X):
            if self.modalities is not None:
                raise ValueError("modalities names columns of an array, but X is a dict")
            return join_features(X)
        if embeddings := _embeddings(X, self.modalities):
            return join_features(embeddings)
        if self.modalities is None:
            raise ValueError(
                "X is one array: say which columns belong to which modality, "
                'modalities={"image": slice(0, 512), "text": slice(512, None)}, or pass a dict '
                "from modality to features"
            )
        return X, self.modalities

    def _join_again(self, X: Any) -> Any:
        """Return one array with the columns seen in ``fit``."""
        if not _is_dict(X):
            X = _embeddings(X, self.modalities) or X
            if not _is_dict(X):
                return X
        elif self.modalities is not None:
            raise ValueError("modalities names columns of an array, but X is a dict")
        if not set(X) <= set(self.columns_) or not X:
            raise ValueError(f"X must hold some of {list(self.columns_)}, got {list(X)}")
        X = {name: _as_array(values, f'features["{name}"]') for name, values in X.items()}
        samples, complete = len(next(iter(X.values()))), {}
        for name, columns in self.columns_.items():
            width = len(np.arange(self.n_features_in_)[columns])
            complete[name] = X.get(name, np.full((samples, 1), np.nan))
            if complete[name].shape[1:] == (1,) and np.isnan(complete[name]).all():
                complete[name] = np.full((samples, width), np.nan)
        array, columns = join_features(complete)
        if columns != self.columns_:
            raise ValueError(f"X must have the columns {self.columns_}, got {columns}")
        return array

    def _resolve(self, name: str, columns: Any) -> Any:
        """Return columns as a slice or indices; names of a data frame become indices."""
        if not isinstance(columns, slice):
            columns = np.asarray(columns)
            if columns.dtype.kind in "UO":
                known = {n: i for i, n in enumerate(getattr(self, "feature_names_in_", ()))}
                for column in columns:
                    if column not in known:
                        raise ValueError(f'modalities["{name}"]: X has no column "{column}"')
                columns = np.array([known[column] for column in columns])
        if not len(np.arange(self.n_features_in_)[columns]):
            raise ValueError(
                f'modalities["{name}"] selects no column of X, which has '
                f"{self.n_features_in_} feature(s)"
            )
        return columns

    def _tensors(self, array: NDArray[Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return standardized features, zero where they are missing, and the masks."""
        inputs, available = {}, {}
        for name, columns in self.columns_.items():
            values = np.ascontiguousarray(array[:, columns])
            mask = ~np.isnan(values).any(1)
            if name not in self._scalers:
                # A row of zeros stands for a modality that no training sample has.
                seen = values[mask] if mask.any() else np.zeros((1, values.shape[1]))
                self._scalers[name] = StandardScaler().fit(seen)
            scaled = self._scalers[name].transform(values)
            inputs[name] = torch.from_numpy(np.where(mask[:, None], scaled, 0.0))
            available[name] = torch.from_numpy(mask)
        return inputs, available

    def _train(
        self,
        inputs: dict[str, Tensor],
        available: dict[str, Tensor],
        target: Tensor,
        weight: Tensor,
        class_weight: Tensor | None,
    ) -> nn.Module:
        dims = {name: x.shape[1] for name, x in inputs.items()}
        chosen = {"dropout": self.dropout, "hidden_features": self.hidden_features}
        options: dict[str, Any] = {n: value for n, value in chosen.items() if value is not None}
        if self._task != "multiclass":
            options["task"] = self._task
        count = target.shape[1] if target.ndim > 1 else int(target.max()) + 1
        head: Any = (self.head or DRFHead)(dims, count, **options)
        head = head.to(self.device).train()
        some = torch.stack(list(available.values())).any(0)
        rows = (some & (weight > 0)).nonzero()[:, 0]
        if not len(rows):
            raise ValueError(
                "X must hold at least one sample that is not NaN throughout and has a weight"
            )
        weight = weight / weight[rows].mean()
        weighted = bool((weight[rows] != 1).any())
        in_loss = weighted and "sample_weight" in inspect.signature(head.loss).parameters
        per_epoch = math.ceil(len(rows) / self.batch_size)
        epochs = self.epochs or min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(STEPS / per_epoch)))
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
        for _ in range(epochs):
            if weighted and not in_loss:
                order = torch.multinomial(weight[rows], len(rows), replacement=True)
            else:
                order = torch.randperm(len(rows))
            for batch in torch.split(rows[order], self.batch_size):
                output = self._output(head, inputs, available, batch)
                extra = {"sample_weight": weight[batch].float().to(self.device)} if in_loss else {}
                if class_weight is not None:
                    extra["class_weight"] = class_weight.to(self.device)
                loss = head.loss(output, target[batch].to(self.device), **extra)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        # In float32 a prediction depends on its batch by more than scikit-learn tolerates; some
        # other devices have no float64.
        trained: nn.Module = head.eval()
        return trained.double() if torch.device(self.device).type == "cpu" else trained

    def _output(
        self, head: nn.Module, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor], rows: Any
    ) -> Any:
        dtype = next((p.dtype for p in head.parameters()), torch.float64)
        batch = {name: x[rows].to(dtype).to(self.device) for name, x in inputs.items()}
        return head(batch, {name: mask[rows].to(self.device) for name, mask in masks.items()})

    @torch.no_grad()
    def _outputs(self, X: Any) -> Iterator[Any]:
        """Yield the head's output for all samples, a batch at a time."""
        check_is_fitted(self)
        array = _dense(validate_data(self, self._join_again(X), reset=False, **CHECKS))
        inputs, masks = self._tensors(array)
        for start in range(0, len(array), PREDICT_BATCH):
            yield self._output(self.head_, inputs, masks, slice(start, start + PREDICT_BATCH))


class RobustFusionClassifier(ClassifierMixin, _FusionEstimator):  # type: ignore[misc]
    r"""Train a robust head on cached features with ``fit`` and ``predict``.

    ``X`` is a dict from modality to (N, D_m), a data frame with one embedding a cell and a column
    for each modality, or one array (N, D) of which ``modalities`` names the columns, as
    cross-validation and pipelines need it and :func:`join_features` returns it. Arrays may be
    sparse. A sample with NaN in a modality lacks that modality, in ``fit`` as in ``predict``, and
    a dict without a modality in ``predict`` lacks it for all samples; a sample that lacks all is
    left out of ``fit``. Features are standardized by the samples that have them.
    Training is AdamW with a learning rate that falls to zero along a cosine.

    Args:
        modalities: For an array or a data frame: modality to a slice, indices or column names.
            ``None`` if ``X`` is a dict, or a data frame of embeddings.
        head: Class or function from (dims, number of classes) to a head, such as
            :class:`~robustfusion.DRFHead` (``None``), :class:`~robustfusion.PaperDRFHead` or a
            baseline.
        dropout: Dropout of the head, the option to tune first; ``None`` is the head's own default.
        hidden_features: Width of the head's hidden layers; ``None`` is the head's own default.
        class_weight: Weight of each class in training, a dict from label to weight or "balanced",
            which gives every class the same total weight. For several labels a sample, a dict from
            column to weight.
        epochs: ``None`` trains for about 300 steps, at least 6 and at most 100 epochs.
        batch_size: Number of samples in a step.
        learning_rate: Learning rate at the start.
        weight_decay: Weight decay of AdamW.
        device: Device of training and prediction.
        random_state: Seed; an int makes ``fit`` deterministic. The global generators do not
            change.

    Attributes:
        classes_: The labels; for several labels a sample, the indices of the columns of ``y``.
        n_features_in_: Number of columns, over all modalities.
        columns_: Modality to its columns.
        head_: The trained head.

    Raises:
        ValueError: If columns or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> from robustfusion.integrations.sklearn import RobustFusionClassifier, join_features
        >>> from sklearn.model_selection import cross_val_score
        >>> rng, y = np.random.default_rng(0), np.array(["no", "yes"] * 50)
        >>> image = rng.normal(size=(100, 8)) + 2 * (y == "yes")[:, None]
        >>> text = rng.normal(size=(100, 4)) + 2 * (y == "yes")[:, None]
        >>> text[::3] = np.nan  # these samples have no text
        >>> X, modalities = join_features({"image": image, "text": text})
        >>> model = RobustFusionClassifier(modalities, epochs=20, random_state=0)
        >>> bool(cross_val_score(model, X, y).mean() > 0.8)
        True

    Reference:
        The estimator contract, https://scikit-learn.org/stable/developers/develop.html
    """

    def __init__(
        self,
        modalities: Mapping[str, Columns] | None = None,
        *,
        head: Callable[..., nn.Module] | None = None,
        dropout: float | None = None,
        hidden_features: int | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            modalities,
            head=head,
            dropout=dropout,
            hidden_features=hidden_features,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            device=device,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on features and labels of any kind, (N,), or several labels, 0 or 1, (N, L).

        Weights of samples, (N,), and of classes multiply. They enter the head's loss if that takes
        a ``sample_weight``; for any other head, samples are drawn with probabilities proportional
        to their weights.
        """
        several = _width(y) > 1
        array, y = self._checked(X, y, multi_output=several)
        check_classification_targets(y)
        self._task = "multilabel" if several else "multiclass"
        class_weight = None
        if several:
            self.classes_, target = np.arange(y.shape[1]), torch.from_numpy(y).float()
            weight, self._dtype = np.ones(len(y)), y.dtype
            class_weight = self._label_weights()
        else:
            self.classes_, codes = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"y must hold two classes or more, got {len(self.classes_)} class: all "
                    f"{len(y)} samples are '{self.classes_[0]}'"
                )
            target = torch.from_numpy(codes).long()
            weight = compute_sample_weight(self.class_weight, y)
        return self._fit(array, target, sample_weight, weight, class_weight)

    def _label_weights(self) -> Tensor | None:
        """Return the weight of each of several labels."""
        if self.class_weight is None:
            return None
        if not isinstance(self.class_weight, Mapping):
            raise ValueError(
                "class_weight must be a dict from column to weight for several labels a sample, "
                f"got {self.class_weight!r}"
            )
        return torch.tensor([float(self.class_weight.get(k, 1.0)) for k in self.classes_])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class or label, (N, C), as in ``classes_``."""
        logits = _joined([output.logits for output in self._outputs(X)])
        scores = torch.from_numpy(logits)
        return (scores.softmax(1) if self._task == "multiclass" else scores.sigmoid()).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each sample, (N,), or all labels above ½, (N, L)."""
        probabilities = self.predict_proba(X)
        if self._task == "multilabel":
            return (probabilities > 0.5).astype(self._dtype)
        labels: NDArray[Any] = self.classes_[probabilities.argmax(1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class RobustFusionRegressor(RegressorMixin, _FusionEstimator):  # type: ignore[misc]
    r"""Train a robust head on cached features to predict one number or several.

    ``X`` and training are those of :class:`RobustFusionClassifier`. Numbers may have any unit; the
    head standardizes them. After ``calibrate`` on held-out samples, ``predict_interval`` says
    between which numbers the true one lies.

    Args:
        modalities: For an array or a data frame: modality to a slice, indices or column names.
            ``None`` if ``X`` is a dict, or a data frame of embeddings.
        head: Class or function from (dims, number of numbers, task="regression") to a head, such
            as :class:`~robustfusion.DRFHead` (``None``) or a baseline.
        dropout: Dropout of the head, the option to tune first; ``None`` is the head's own default.
        hidden_features: Width of the head's hidden layers; ``None`` is the head's own default.
        epochs: ``None`` trains for about 300 steps, at least 6 and at most 100 epochs.
        batch_size: Number of samples in a step.
        learning_rate: Learning rate at the start.
        weight_decay: Weight decay of AdamW.
        device: Device of training and prediction.
        random_state: Seed; an int makes ``fit`` deterministic. The global generators do not
            change.

    Attributes:
        n_features_in_: Number of columns, over all modalities.
        columns_: Modality to its columns.
        head_: The trained head.
        half_widths_: After ``calibrate``, half the width of the interval of each number, (C,), by
            the modalities that a sample has; under ``()`` that of all other samples.

    Raises:
        ValueError: If columns or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> from robustfusion.integrations.sklearn import RobustFusionRegressor
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(50, 10, size=300)
        >>> image = y[:, None] + rng.normal(scale=5, size=(300, 4))
        >>> text = y[:, None] + rng.normal(scale=5, size=(300, 3))
        >>> text[::3] = np.nan  # these samples have no text
        >>> train, rest = slice(0, 200), slice(200, None)
        >>> model = RobustFusionRegressor(epochs=60, random_state=0)
        >>> model = model.fit({"image": image[train], "text": text[train]}, y[train])
        >>> held_out = {"image": image[rest], "text": text[rest]}
        >>> bool(model.score(held_out, y[rest]) > 0.7)
        True
        >>> low, high = model.calibrate(held_out, y[rest]).predict_interval(held_out)
        >>> bool(((low <= y[rest]) & (y[rest] <= high)).mean() > 0.85)
        True

    Reference:
        Intervals: split conformal prediction, https://arxiv.org/abs/2107.07511.
    """

    _task: Task = "regression"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on features and numbers, (N,) or (N, C).

        Weights of samples, (N,), enter as in the classifier.
        """
        several = _width(y) > 0
        array, y = self._checked(X, y, multi_output=several, y_numeric=True)
        self._is_single = not several
        target = torch.from_numpy(np.asarray(y, np.float32).reshape(len(y), -1))
        return self._fit(array, target, sample_weight, np.ones(len(y)))

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the numbers, (N,) or (N, C), as in ``fit``."""
        return self._shaped(_joined([output.logits for output in self._outputs(X)]))

    def calibrate(self, X: Any, y: Any, *, level: float = 0.9) -> Self:
        """Find the intervals that cover a share ``level`` of the numbers of held-out samples.

        There is one width for all samples with the same modalities, if there are enough of them
        for it to be finite, else that of all samples.

        Raises:
            ValueError: If ``y`` has another shape than the predictions, or there are too few
                samples.
        """
        outputs = _joined([output.logits for output in self._outputs(X)])
        target = np.asarray(y, np.float64)
        if target.shape != self._shaped(outputs).shape:
            raise ValueError(
                f"y must have shape {self._shaped(outputs).shape}, got {target.shape}"
            )
        target = target.reshape(outputs.shape)
        patterns = self._patterns(X)
        widths: dict[tuple[str, ...], NDArray[np.float64]] = {}
        for pattern in [(), *sorted(set(patterns))]:
            rows = np.array([not pattern or p == pattern for p in patterns])
            width = fit_interval(
                torch.from_numpy(outputs[rows]), torch.from_numpy(target[rows]), level
            ).numpy()
            if np.isfinite(width).all():
                widths[pattern] = width
        if () not in widths:
            raise ValueError(
                f"X must hold more samples for intervals of level={level}, got {len(target)}"
            )
        self.half_widths_ = widths
        return self

    def predict_interval(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lower and the upper ends of the intervals, each shaped as predictions.

        Raises:
            sklearn.exceptions.NotFittedError: Before ``calibrate``.
        """
        check_is_fitted(self, "half_widths_", msg="Call calibrate before predict_interval.")
        outputs = _joined([output.logits for output in self._outputs(X)])
        widths = [self.half_widths_.get(p, self.half_widths_[()]) for p in self._patterns(X)]
        half = np.stack(widths)
        return self._shaped(outputs - half), self._shaped(outputs + half)

    def _patterns(self, X: Any) -> list[tuple[str, ...]]:
        """Return the modalities of each sample."""
        array = _dense(validate_data(self, self._join_again(X), reset=False, **CHECKS))
        masks = self._tensors(array)[1]
        rows = torch.stack(list(masks.values()), 1).tolist()
        return [tuple(m for m, seen in zip(masks, row, strict=True) if seen) for row in rows]

    def _shaped(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return outputs[:, 0] if self._is_single else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _width(y: Any) -> int:
    """Return the number of columns of targets, 0 for (N,)."""
    values = np.asarray(y)
    return values.shape[1] if values.ndim == 2 else 0


def _joined(parts: list[Tensor]) -> NDArray[np.float64]:
    joined: NDArray[np.float64] = torch.cat(parts).detach().cpu().double().numpy()
    return joined


def _as_array(values: Any, argument: str) -> NDArray[Any]:
    """Return features as one array; a cell without an embedding becomes a row of NaN."""
    values = _dense(values)
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):  # some cells are missing, or differ in length
        array = np.full(len(values), np.nan)
    if array.ndim != 1 or not np.isnan(array).all():
        return array
    cells = [None if _is_missing(cell) else np.asarray(cell, np.float64) for cell in values]
    shapes = {cell.shape for cell in cells if cell is not None}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(
            f"{argument} must hold embeddings of one length, got the shapes {sorted(shapes)[:4]}"
        )
    width = next(iter(shapes), (1,))[0]
    empty = np.full(width, np.nan)
    return np.stack([empty if cell is None else cell for cell in cells]) if cells else array


def _embeddings(X: Any, modalities: Any) -> dict[str, Any]:
    """Return the columns of a data frame with one embedding a cell by modality, else {}."""
    if not hasattr(X, "columns") or not len(X):
        return {}
    names = {column: column for column in X.columns} if modalities is None else {}
    for name, columns in (modalities or {}).items():
        if isinstance(columns, slice):
            return {}
        column = columns if isinstance(columns, str) or len(columns) != 1 else columns[0]
        if not isinstance(column, str) or column not in X.columns:
            return {}
        names[name] = column
    if all(any(np.ndim(cell) == 1 for cell in X[column]) for column in names.values()):
        return {str(name): list(X[column]) for name, column in names.items()}
    return {}


def _check_labels(y: Any) -> None:
    """Raise unless every sample has a label."""
    values = y.ravel() if isinstance(y, np.ndarray) else y if hasattr(y, "__iter__") else ()
    values = list(values)
    without = sum(_is_missing(value) for value in values)
    if without:
        raise ValueError(
            f"Input y contains NaN or None for {without} of {len(values)} samples: leave samples "
            "without a label out of fit"
        )


def _is_missing(value: Any) -> bool:
    """Return whether a cell is None, NaN or pandas.NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _dense(values: Any) -> Any:
    return values.toarray() if hasattr(values, "toarray") else values


def _is_dict(X: Any) -> bool:
    # One of SciPy's sparse formats is a dict as well.
    return isinstance(X, Mapping) and not hasattr(X, "shape")
