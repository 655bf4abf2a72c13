"""Measure how much of each modality a linear map predicts from the others."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from robustfusion._validation import check_available

OTHERS = "all others"
_MEANING = (
    (0.25, "a good part can be recovered, so a stand-in should pay"),
    (0.05, "little can be recovered"),
    (-torch.inf, "next to nothing can be recovered, so a missing one stays missing"),
)
# Ridge penalties, times the mean eigenvalue of the source's Gram matrix and rows / 1000. The
# largest shrinks every weight to nearly nothing.
_PENALTIES = 10.0 ** torch.arange(-3, 8, dtype=torch.float64)
_INNER_FOLDS = 2


class Recoverability(NamedTuple):
    """The result of :func:`recoverability`, on samples that the fit did not see.

    Args:
        samples: Number of samples.
        r2: ``r2[target][source]``: share of the variance of the target, all dimensions together,
            that a ridge regression from the source predicts; 1 is all, 0 no more than the mean,
            below 0 worse than it. With three modalities or more there is also the source
            "all others".
    """

    samples: int
    r2: dict[str, dict[str, float]]

    def best(self, target: str) -> tuple[str, float]:
        """Return the source that predicts a target best, and its R²."""
        source = max(self.r2[target], key=lambda name: self.r2[target][name])
        return source, self.r2[target][source]

    def to_markdown(self) -> str:
        """Return a table, and a sentence for each modality."""
        names = list(self.r2)
        sources = [n for n in (*names, OTHERS) if any(n in row for row in self.r2.values())]
        lines = [
            f"| recovered | {' | '.join(f'from {source}' for source in sources)} |",
            "|---|" + "---:|" * len(sources),
        ]
        for target, row in self.r2.items():
            cells = [f"{row[s]:.2f}" if s in row else "" for s in sources]
            lines.append(f"| {target} | {' | '.join(cells)} |")
        lines.append("")
        for target in self.r2:
            source, share = self.best(target)
            meaning = next(words for least, words in _MEANING if not share < least)
            lines.append(f"- {target}: {meaning} (R² {share:.2f} from {source}).")
        return "\n".join(lines) + "\n"


def recoverability(
    features: Mapping[str, Tensor],
    available: Mapping[str, Tensor] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Recoverability:
    """Measure by cross-validation how well each modality predicts every other one.

    Ridge regression of a modality on another, and on all others together, is fitted on some folds
    and scored on the rest; the penalty is chosen by cross-validation within the fitted folds. The
    result is a lower bound, because a network may find more than a linear map; but where it is
    near zero, no stand-in can be expected to bring a missing modality back.

    Args:
        features: Features by modality, (N, D_m), two modalities or more.
        available: Bool (N,) by modality, True where observed; ``None`` means everywhere. A pair is
            measured on the samples that have both.
        folds: Number of folds, at least 2.
        seed: Seed of the order of the samples; remove near-duplicates before.

    Returns:
        R² by target and source.

    Raises:
        ValueError: If there are fewer than two modalities, or fewer than ``2 * folds`` samples
            that have a pair, or shapes do not fit.

    Example:
        >>> import torch
        >>> from robustfusion.diagnostics import recoverability
        >>> hidden = torch.randn(200, 3)
        >>> image, text = hidden @ torch.randn(3, 8), hidden @ torch.randn(3, 5)
        >>> result = recoverability({"image": image, "text": text, "noise": torch.randn(200, 4)})
        >>> round(result.r2["text"]["image"], 2), result.r2["noise"]["image"] < 0.1
        (1.0, True)

    Reference:
        Hoerl and Kennard, "Ridge Regression", Technometrics 12, 1970.
    """
    if len(features) < 2:
        raise ValueError(f"features must hold two modalities or more, got {list(features)}")
    samples = len(next(iter(features.values())))
    for name, values in features.items():
        if values.ndim != 2 or len(values) != samples:
            raise ValueError(
                f'features["{name}"] must have shape ({samples}, D), got {tuple(values.shape)}'
            )
    data = {name: values.detach().cpu().double() for name, values in features.items()}
    masks = check_available(available, features, samples, torch.device("cpu"))
    masks = {name: mask & data[name].isfinite().all(1) for name, mask in masks.items()}
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(samples, dtype=torch.long)
    fold[order] = torch.arange(samples) % folds
    r2: dict[str, dict[str, float]] = {}
    for target in data:
        others = [name for name in data if name != target]
        sources = {name: [name] for name in others}
        if len(others) > 1:
            sources[OTHERS] = others
        r2[target] = {}
        for source, names in sources.items():
            both = torch.stack([masks[name] for name in (target, *names)]).all(0)
            if folds < 2 or int(both.sum()) < 2 * folds:
                raise ValueError(
                    f"{target} from {source}: {int(both.sum())} rows have both, which is too few "
                    f"for {folds} folds of 2 rows or more"
                )
            x = torch.cat([data[name][both] for name in names], dim=1)
            r2[target][source] = _r2(x, data[target][both], fold[both], folds)
    return Recoverability(samples, r2)


def _r2(x: Tensor, y: Tensor, fold: Tensor, folds: int) -> float:
    """Return one minus the squared error over that of the mean of the fitted rows."""
    error = variance = 0.0
    for k in range(folds):
        train, test = fold != k, fold == k
        if not test.any() or int(train.sum()) < 2:
            continue
        inner = torch.arange(int(train.sum())) % min(_INNER_FOLDS, int(train.sum()))
        by_penalty = torch.stack(
            [
                _errors(x[train], y[train], inner != j, inner == j)
                for j in range(int(inner.max()) + 1)
            ]
        )
        best = int(by_penalty.sum(0).argmin())
        error += float(_errors(x, y, train, test)[best])
        variance += float((y[test] - y[train].mean(0)).square().sum())
    return 1 - error / variance if variance > 0 else float("nan")


def _errors(x: Tensor, y: Tensor, train: Tensor, test: Tensor) -> Tensor:
    """Return the squared error on the test rows of the ridge with each penalty, (P,)."""
    mean, scale = x[train].mean(0), x[train].std(0, unbiased=False)
    scale = torch.where(scale > 0, scale, 1.0)
    z, z_test, offset = (x[train] - mean) / scale, (x[test] - mean) / scale, y[train].mean(0)
    rows = len(z)
    # The smaller of the two Gram matrices has the same eigenvalues, apart from zeros.
    tall = rows >= z.shape[1]
    values, vectors = torch.linalg.eigh(z.T @ z if tall else z @ z.T)
    floor = 1e-12 * values[-1].clamp_min(1e-300)
    penalties = _PENALTIES * rows / 1000 * values.mean().clamp_min(floor)
    values = values.clamp_min(floor)
    if tall:
        left, right = z_test @ vectors, vectors.T @ (z.T @ (y[train] - offset))
    else:
        left, right = z_test @ z.T @ vectors, vectors.T @ (y[train] - offset)
    remainder = y[test] - offset
    return torch.stack(
        [
            (remainder - left @ (right / (values + penalty)[:, None])).square().sum()
            for penalty in penalties
        ]
    )
