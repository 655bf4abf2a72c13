"""The posts of a run: made or read, split, and prepared."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from main_job.encoders import SetupError, encoding
from main_job.posts import make_posts
from main_job.settings import Settings
from robustfusion.datasets import (
    MVSA,
    FeatureCache,
    PostDataset,
    PostTable,
    Splits,
    encode,
    load_splits,
    stratified_split,
)
from robustfusion.disruption import ImageCorruption, TextCorruption
from robustfusion.evaluation import CachedFeatures

LEAST = 10  # one post in ten for validation, and one for the test
WHERE = "--image-root names the folder of all pictures; --allow-outside follows links out of it"


def generate_posts(settings: Settings, output_dir: Path) -> Path:
    """Make the small data set, unless it is there."""
    count = settings.limit or 1500
    root = output_dir / f"posts-{count}-seed{settings.seed}"
    with tqdm(total=count, desc="make posts", unit="post", leave=False, disable=None) as bar:
        make = partial(
            make_posts,
            root,
            n=count,
            seed=settings.seed,
            progress=lambda done, _: bar.update(done - bar.n),
        )
        try:
            return make()
        except OSError:
            # Another run may have made the same posts meanwhile; if not, this says what is wrong.
            return make()


def open_data(
    root: Path, settings: Settings, encoders: Mapping[str, Any]
) -> tuple[PostDataset, Splits]:
    """Open a table or a folder like MVSA-Single; of a post with a bad side the other counts."""
    if not root.exists():
        raise SetupError(f"--data {root} does not exist")
    print(f"reading {root}, checking every file ...", flush=True)
    resize = encoders["image"].resize
    dataset: PostDataset
    splits = None
    try:
        if root.is_file():
            dataset = table = PostTable(
                root,
                image_column=settings.image_column,
                text_column=settings.text_column,
                label_column=settings.label_column,
                root=settings.image_root,
                allow_outside=settings.allow_outside,
                image_transform=resize,
            )
            splits = table.splits
        else:
            dataset = MVSA(
                root,
                on_bad="missing",
                image_transform=resize,
                allow_outside=settings.allow_outside,
            )
            if (root / "splits.json").exists():
                splits = load_splits(root / "splits.json")
        check_labels(dataset)
        if splits is None:
            splits = stratified_split(
                dataset.labels,
                seed=settings.seed,
                ids=dataset.ids,
                groups=dataset.duplicate_groups(),
            )
        if not splits.val:
            raise ValueError("no post is in the split val, by which the epoch is chosen")
        for name, here in dataset.available.items():
            if not here.any():
                reasons = [p.reason for p in dataset.report().problems if p.kind.endswith(name)]
                hint = f" ({WHERE})" if name == "image" else ""
                raise ValueError(f"no post has the {name}: {reasons[0]}{hint}")
            parts = [splits.split_of(post_id) for post_id in dataset.ids]
            for part in ("train", "val", "test"):
                if not here[torch.tensor([other == part for other in parts])].any():
                    raise ValueError(f"no post in the split {part} has the {name}")
    except (OSError, ValueError, ImportError) as error:
        what = "a table" if root.is_file() else "MVSA-Single"
        hint = "" if root.is_file() else "; of a table give the file, such as posts.csv"
        raise SetupError(f"--data {root} cannot be read as {what}: {error}{hint}") from error
    return dataset, splits


def check_labels(dataset: PostDataset) -> None:
    """Raise ValueError where there is nothing to tell apart, or too little to be split."""
    if len(dataset) < LEAST:
        reasons = [f" ({problem.reason})" for problem in dataset.report().problems[:1]]
        count = f"it has {len(dataset)} usable posts, at least {LEAST} are needed"
        raise ValueError("".join([count, *reasons]))
    if len(set(dataset.labels)) < 2:
        only = dataset.class_names[dataset.labels[0]]
        raise ValueError(f"all posts have the label {only!r}, at least two classes are needed")


def labels_file(dataset: PostDataset) -> Path:
    """Return the file with the labels."""
    if isinstance(dataset, PostTable):
        return dataset.path
    return dataset.root / "labelResultAll.txt"


def prepare_split(
    dataset: PostDataset,
    ids: tuple[str, ...],
    encoders: Mapping[str, Any],
    settings: Settings,
    *,
    seeds: tuple[int, ...] = (),
    cache: FeatureCache | None = None,
) -> CachedFeatures:
    """Make tensors of one split, or of the share of it that --limit leaves."""
    known = set(dataset.ids)
    kept = [post_id for post_id in ids if post_id in known]
    if settings.data and settings.limit and settings.limit < len(dataset):
        # By a draw of its own for each id: the ids of published splits are sorted by class.
        seed, share = settings.seed, settings.limit / len(dataset)
        kept.sort(key=lambda post_id: hashlib.sha256(f"{seed}/{post_id}".encode()).digest())
        kept = kept[: max(8, round(share * len(kept)))]
    return encode(
        dataset.select(kept),
        {name: encoding(e, frozen=name in settings.frozen) for name, e in encoders.items()},
        corruptions={
            "image": ImageCorruption(),
            "text": TextCorruption(mask_token=encoders["text"].mask_token),
        },
        seeds=seeds,
        cache=cache,
        progress=True,
    )
