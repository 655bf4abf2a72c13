"""The posts of a run: generate or read them, split them, and encode them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from main_job.encoders import SetupError, encoding
from main_job.posts import make_posts
from main_job.settings import Settings
from main_job.training import to
from robustfusion.datasets import (
    MVSA,
    FeatureCache,
    PostDataset,
    PostTable,
    Splits,
    TableColumns,
    encode,
    load_splits,
    stratified_split,
)
from robustfusion.datasets.table_columns import holds_numbers
from robustfusion.disruption import (
    FEATURE_DAMAGE,
    IMAGE_DAMAGE,
    TEXT_DAMAGE,
    CachedFeatures,
    FeatureCorruption,
    ImageCorruption,
    RawSamples,
    TextCorruption,
    collate,
)
from robustfusion.disruption.damage import PAIRED_KINDS

MIN_POSTS = 10  # validation and test get a tenth each, which must be a post at least
SEPARATORS = "|;,"  # may stand between several labels of a cell
ROOT_HINT = (
    "--image-root names the folder of all pictures; --allow-outside follows links out of it"
)


def generate_posts(settings: Settings, output_dir: Path) -> Path:
    """Generate the small data set, unless it exists already."""
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
            # Another run may have generated the same posts meanwhile; if not, this raises again.
            return make()


def open_data(
    root: Path, settings: Settings, encoders: Mapping[str, Any]
) -> tuple[PostDataset, Splits]:
    """Open a table or a folder like MVSA-Single; an unreadable image or text counts as missing.

    Columns that are a modality are fitted to the training posts.
    """
    if not root.exists():
        raise SetupError(f"--data {root} does not exist")
    print(f"reading {root}, checking every file ...", flush=True)
    resize = encoders["image"].resize
    dataset: PostDataset
    splits = None
    columns = TableColumns(settings.table_columns) if settings.table_columns else None
    try:
        if root.is_file():
            dataset = table = PostTable(
                root,
                image_column=settings.image_column,
                text_column=settings.text_column,
                label_column=settings.label_columns or settings.label_column,
                task=settings.task,
                label_sep=settings.label_sep,
                weight_column=settings.weight_column or None,
                table_columns=columns,
                root=settings.image_root,
                allow_outside=settings.allow_outside,
                image_transform=resize,
                encoding=settings.encoding or None,
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
        if root.is_file():
            names = settings.label_columns or [settings.label_column]
            column = f"the column {', '.join(map(repr, names))}"
        else:
            column = "the label file"
            check_folder(settings)
        check_labels(dataset, column)
        if splits is None:
            splits = stratified_split(
                dataset.strata,
                seed=settings.seed,
                ids=dataset.ids,
                groups=dataset.duplicate_groups(),
            )
        if not splits.val:
            raise ValueError("no post is in the split val, by which the epoch is chosen")
        if columns is not None:
            columns.fit(dataset.select(splits.train, absent="ignore").rows)
        for name, available in dataset.available.items():
            if not available.any():
                reasons = [p.reason for p in dataset.report().problems if p.kind.endswith(name)]
                hint = f" ({ROOT_HINT})" if name == "image" else ""
                raise ValueError(f"no post has the {name}: {reasons[0]}{hint}")
            parts = [splits.split_of(post_id) for post_id in dataset.ids]
            for part in ("train", "val", "test"):
                if not available[torch.tensor([other == part for other in parts])].any():
                    raise ValueError(f"no post in the split {part} has the {name}")
    except (OSError, ValueError, ImportError) as error:
        what = "a table" if root.is_file() else "MVSA-Single"
        hint = "" if root.is_file() else "; for a table name the file, such as posts.csv"
        raise SetupError(f"--data {root} cannot be read as {what}: {error}{hint}") from error
    return dataset, splits


def check_labels(dataset: PostDataset, column: str) -> None:
    """Raise ValueError where posts are too few to be split, or their labels are no classes."""
    if len(dataset) < MIN_POSTS:
        reasons = [f" ({problem.reason})" for problem in dataset.report().problems[:1]]
        count = f"it has {len(dataset)} usable posts, at least {MIN_POSTS} are needed"
        raise ValueError("".join([count, *reasons]))
    if dataset.task != "multiclass":
        check_targets(dataset, column)
        return
    labels = cast("list[int]", dataset.labels)
    used = len(set(labels))
    if used < 2:
        raise ValueError(
            f"all {len(dataset)} posts have the label {dataset.class_names[labels[0]]!r} in "
            f"{column}, at least two classes are needed"
        )
    if used > MIN_POSTS and 2 * used > len(dataset):
        hint = "name a column of classes with --label-column"
        if holds_numbers(dataset.class_names):
            hint += ", or predict numbers with --task regression"
        for separator in SEPARATORS:
            if 2 * sum(separator in name for name in dataset.class_names) > used:
                hint += (
                    f", or read several labels with --task multilabel --label-sep '{separator}'"
                )
        raise ValueError(
            f"{column} holds {used} different labels for {len(dataset)} posts, such as "
            f"{', '.join(dataset.class_names[:3])}: {hint}"
        )


def check_targets(dataset: PostDataset, column: str) -> None:
    """Raise ValueError where a label or a number is the same in all posts."""
    for position, name in enumerate(dataset.class_names):
        targets = [row[position] for row in cast("list[list[float]]", dataset.labels)]
        known = {value for value in targets if not math.isnan(value)}
        if len(known) < 2:
            value = f"{known.pop():g} in all posts" if known else "not known in any post"
            raise ValueError(f"{name!r} of {column} is {value}: nothing can be learned from it")


def check_folder(settings: Settings) -> None:
    """Raise SetupError where an option for tables is given with a folder."""
    for name in ("label_columns", "label_sep", "weight_column", "table_columns"):
        if getattr(settings, name):
            raise SetupError(f"--{name.replace('_', '-')} is for tables: --data posts.csv")
    if settings.task != "multiclass":
        raise SetupError(f"--task {settings.task} is for tables: --data posts.csv")


def labels_file(dataset: PostDataset) -> Path:
    """Return the file with the labels: the table, or the label file of the folder."""
    return dataset.path or dataset.root


def chosen_ids(dataset: PostDataset, ids: tuple[str, ...], settings: Settings) -> list[str]:
    """Return the posts of one split, or the share of it that --limit leaves."""
    known = set(dataset.ids)
    chosen = [post_id for post_id in ids if post_id in known]
    if settings.data and settings.limit and settings.limit < len(dataset):
        # Draw by a hash of each id, because the ids of published splits are sorted by class.
        seed, share = settings.seed, settings.limit / len(dataset)
        chosen.sort(key=lambda post_id: hashlib.sha256(f"{seed}/{post_id}".encode()).digest())
        chosen = chosen[: max(8, round(share * len(chosen)))]
    return chosen


def prepare_split(
    dataset: PostDataset,
    ids: tuple[str, ...],
    encoders: Mapping[str, Any],
    settings: Settings,
    *,
    seeds: tuple[int, ...] = (),
    cache: FeatureCache | None = None,
) -> CachedFeatures:
    """Encode one split, or the share of it that --limit leaves."""
    return encode(
        dataset.select(chosen_ids(dataset, ids, settings)),
        {name: encoding(e, frozen=name in settings.frozen) for name, e in encoders.items()},
        corruptions={
            "image": ImageCorruption(),
            "text": TextCorruption(mask_token=encoders["text"].mask_token),
            **({"table": FeatureCorruption()} if "table" in encoders else {}),
        },
        seeds=seeds,
        cache=cache,
        progress=True,
    )


class EncodedSamples(RawSamples):
    """Raw posts whose frozen inputs are encoded when a batch is made."""

    def __init__(
        self, dataset: PostDataset, encoders: Mapping[str, Any], settings: Settings
    ) -> None:
        self.encoders = {name: encoders[name] for name in settings.frozen}
        self.device = settings.device
        super().__init__(
            dataset,
            transforms={name: encoder.prepare for name, encoder in encoders.items()},
            collate_fn=self._encode,
            class_names=dataset.class_names,
        )

    def _encode(self, samples: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        batch = collate(samples)
        tensors = to({key: batch[key] for key in ("inputs", "available", "label")}, self.device)
        inputs = tensors["inputs"]
        with torch.no_grad():
            inputs |= {m: part(inputs[m]).float() for m, part in self.encoders.items()}
        return {**batch, **tensors}


def damage_kinds(names: str, *, table: bool = False) -> dict[str, list[str]]:
    """Return the kinds of damage by modality, from "all", "none" or names with commas."""
    known: dict[str, Sequence[str]] = {"image": IMAGE_DAMAGE, "text": TEXT_DAMAGE}
    if table:
        known["table"] = FEATURE_DAMAGE
    if names == "none":
        return {}
    chosen = [name.strip() for name in names.split(",")]
    if names != "all":
        everything = sorted({kind for kinds in known.values() for kind in kinds})
        for name in chosen:
            if name not in everything:
                raise SetupError(
                    f"--damage {name!r} is no kind of damage; there are all, none, "
                    f"{', '.join(everything)}"
                )
    kinds = {m: [k for k in every if names == "all" or k in chosen] for m, every in known.items()}
    return {modality: part for modality, part in kinds.items() if part}


def training_kinds(settings: Settings) -> dict[str, list[str]]:
    """Return the kinds of damage to train on: of encoders that learn, with one input each."""
    if not settings.train_damage:
        return {}
    if settings.recipe == "paper":
        raise SetupError("--train-damage is not in --recipe paper")
    every = damage_kinds(settings.damage, table=bool(settings.table_columns))
    kinds = {
        modality: [kind for kind in names if kind not in PAIRED_KINDS]
        for modality, names in every.items()
        if modality not in settings.frozen
    }
    kinds = {modality: names for modality, names in kinds.items() if names}
    if not kinds:
        raise SetupError(
            "--train-damage needs an encoder that is not frozen, and a kind of damage for it "
            f"other than {', '.join(PAIRED_KINDS)} in --damage"
        )
    return kinds
