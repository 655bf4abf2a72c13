"""What can be recovered: how much of each modality a linear map can tell from the others."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from robustfusion._validation import check_available

OTHERS = "all others"
_MEANING = (
    (0.25, "a good part can be recovered, so standing in for it should pay"),
    (0.05, "little can be recovered"),
    (-torch.inf, "next to nothing can be recovered, a missing one stays missing"),
)
_PENALTIES = 10.0 ** torch.arange(-3, 6, dtype=torch.float64)  # times the number of rows / 1000


class Recoverability(NamedTuple):
    """What :func:`recoverability` found, on rows that the fit did not see.

    Args:
        rows: Number of rows.
        r2: ``r2[target][source]``: share of the variance of the target, all dimensions together,
            that a ridge regression from the source predicts; 1 is all, 0 no more than the mean,
            below 0 worse than it. With three modalities or more there is also the source
            "all others".
    """

    rows: int
    r2: dict[str, dict[str, float]]

    def best(self, target: str) -> tuple[str, float]:
        """The source that tells most about a target, and how much."""
        source = max(self.r2[target], key=lambda name: self.r2[target][name])
        return source, self.r2[target][source]

    def to_markdown(self) -> str:
        """A table, and what it means for each modality."""
        sources = list(dict.fromkeys(s for found in self.r2.values() for s in found))
        lines = [
            f"| recovered | {' | '.join(f'from {source}' for source in sources)} |",
            "|---|" + "---:|" * len(sources),
        ]
        for target, found in self.r2.items():
            cells = [f"{found[s]:.2f}" if s in found else "" for s in sources]
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
    """Measure by cross-validation what each modality tells about every other one.

    Ridge regression of a modality on another, and on all others together, fitted on some folds and
    scored on the rest; the penalty is chosen within the fitted folds by generalized
    cross-validation. It is a lower bound, for a network may see more than a linear map; but where
    it is near zero, no stand-in should be expected to bring a missing modality back.

    Args:
        features: Features by modality, (N, D_m), two modalities or more.
        available: Bool (N,) by modality, True where observed; None means all. A pair is measured
            on the rows that have both.
        folds: Number of folds, at least 2.
        seed: Of the order of the rows; near-duplicates should be taken out before.

    Returns:
        R² by target and source.

    Raises:
        ValueError: If there are fewer than two modalities, or than ``2 * folds`` rows that have a
            pair, or shapes do not fit.

    Example:
        >>> import torch
        >>> from robustfusion.diagnostics import recoverability
        >>> hidden = torch.randn(200, 3)
        >>> image, text = hidden @ torch.randn(3, 8), hidden @ torch.randn(3, 5)
        >>> found = recoverability({"image": image, "text": text, "noise": torch.randn(200, 4)})
        >>> round(found.r2["text"]["image"], 2), found.r2["noise"]["image"] < 0.1
        (1.0, True)

    Reference:
        Hoerl and Kennard, "Ridge Regression", Technometrics 12, 1970; the penalty by Golub, Heath
        and Wahba, "Generalized Cross-Validation", Technometrics 21, 1979.
    """
    if len(features) < 2:
        raise ValueError(f"features must hold two modalities or more, got {list(features)}")
    rows = len(next(iter(features.values())))
    for name, values in features.items():
        if values.ndim != 2 or len(values) != rows:
            raise ValueError(
                f'features["{name}"] must have shape ({rows}, D), got {tuple(values.shape)}'
            )
    data = {name: values.detach().double().cpu() for name, values in features.items()}
    masks = check_available(available, features, rows, torch.device("cpu"))
    there = {name: mask & data[name].isfinite().all(1) for name, mask in masks.items()}
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(rows, dtype=torch.long)
    fold[order] = torch.arange(rows) % folds
    r2: dict[str, dict[str, float]] = {}
    for target in data:
        others = [name for name in data if name != target]
        sources = {name: [name] for name in others}
        if len(others) > 1:
            sources[OTHERS] = others
        r2[target] = {}
        for source, names in sources.items():
            both = torch.stack([there[name] for name in (target, *names)]).all(0)
            if folds < 2 or int(both.sum()) < 2 * folds:
                raise ValueError(
                    f"{target} from {source}: {int(both.sum())} rows have both, which is too few "
                    f"for {folds} folds of 2 rows or more"
                )
            x = torch.cat([data[name][both] for name in names], dim=1)
            r2[target][source] = _r2(x, data[target][both], fold[both], folds)
    return Recoverability(rows, r2)


def _r2(x: Tensor, y: Tensor, fold: Tensor, folds: int) -> float:
    """One minus the squared error over that of the fitted rows' mean, all folds together."""
    error = variance = 0.0
    for k in range(folds):
        fitted, held = fold != k, fold == k
        if not held.any() or int(fitted.sum()) < 2:
            continue
        center, scale = x[fitted].mean(0), x[fitted].std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        mean = y[fitted].mean(0)
        predict = _ridge((x[fitted] - center) / scale, y[fitted] - mean)
        error += float((y[held] - mean - (x[held] - center) / scale @ predict).square().sum())
        variance += float((y[held] - mean).square().sum())
    return 1 - error / variance if variance > 0 else float("nan")


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights (D, D') of the ridge regression whose penalty has the least GCV score."""
    rows = len(x)
    tall = rows >= x.shape[1]
    # The eigenvectors of the smaller product.
    values, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    values = values.clamp_min(1e-12 * values[-1].clamp_min(1e-300))
    scaled = (x if tall else x.T) @ vectors / values.sqrt()
    left, right = (scaled, vectors) if tall else (vectors, scaled)
    seen = left.T @ y
    beyond = (y.square().sum() - seen.square().sum()).clamp_min(0)
    best, chosen = torch.inf, torch.zeros_like(values)
    for penalty in _PENALTIES * rows / 1000 * values.mean():
        kept = values / (values + penalty)
        left_over = ((1 - kept)[:, None] * seen).square().sum() + beyond
        score = float(left_over / (rows - kept.sum() - 1).clamp_min(1e-9) ** 2)
        if score < best:
            best, chosen = score, kept
    weights: Tensor = right @ ((chosen / values.sqrt())[:, None] * seen)
    return weights
