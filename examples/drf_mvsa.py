r"""Train a robust image-text classifier and measure it with damaged and missing inputs.

    python examples/drf_mvsa.py

generates a small data set of posts, trains small encoders with DRF and the same encoders with
concatenation and modality dropout, and writes tables, figures and both models to ``runs/``.

    python examples/drf_mvsa.py --data MVSA_Single --image-encoder efficientnet-lite0 \
        --text-encoder minilm --freeze

does the same with real posts and pretrained encoders. ``--data`` also takes your own table (CSV,
TSV, JSON lines or Parquet) with image paths, texts and labels of any number of classes. An empty
cell is a missing modality:

    python examples/drf_mvsa.py --data posts.csv --image-column photo --text-column caption

Several labels a post, numbers, columns as a third input and rare classes:

    python examples/drf_mvsa.py --data posts.csv --task multilabel --label-sep ";" \
        --table-columns price,shop --class-weight balanced --select macro-f1

If the table has a column ``split`` with train, val and test, it decides the split. Needs
``robustfusion[examples]``.
"""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

try:
    import matplotlib  # noqa: F401 - a missing package is reported before the training
    import safetensors  # noqa: F401
    import torch
    import typer
    from main_job.damaged_posts import DamagedPosts
    from main_job.encoders import SetupError
    from main_job.reading import (
        EncodedSamples,
        check_folder,
        chosen_ids,
        damage_kinds,
        generate_posts,
        labels_file,
        open_data,
        prepare_split,
        training_kinds,
    )
    from main_job.run_folder import (
        Stopwatch,
        check_device,
        find_run,
        kept_settings,
        new_run,
        run_record,
        sha256,
        write_json,
    )
    from main_job.settings import (
        NAMES,
        SEVERITIES,
        TEST_SEEDS,
        VAL_SEED,
        ClassWeight,
        RecipeName,
        Score,
        Settings,
        TaskName,
        chosen_score,
        make_encoders,
        make_model,
        recipe_of,
        split_names,
        without_folders,
    )
    from main_job.side_by_side import console, write_results
    from main_job.training import (
        Interrupted,
        certainty,
        clean_batches,
        loss_terms,
        train,
        validation_score,
    )
    from main_job.weighting import loss_weights, score
    from tqdm.auto import tqdm

    from robustfusion import __version__, calibrate
    from robustfusion.calibration import refresh
    from robustfusion.checkpoint import save_model
    from robustfusion.datasets import FeatureCache, PostDataset, PostTable, Splits
    from robustfusion.disruption import damage
    from robustfusion.evaluation import damage_report, robustness_report
except ImportError as error:
    sys.exit(f'{error}. The examples need: pip install -e ".[examples]"')


def run(
    settings: Settings,
    encoders: dict[str, Any],
    dataset: PostDataset,
    splits: Splits,
    folder: Path,
    save_every: int,
) -> None:
    """Prepare the posts, train and evaluate both models, and write all results."""
    watch = Stopwatch(folder / "seconds.json")
    source = "read" if settings.data else "generated"
    sizes = ", ".join(f"{size} {name}" for name, size in splits.sizes.items())
    print(f"{len(dataset)} posts ({source}), classes {', '.join(dataset.class_names)}: {sizes}")
    if dataset.report().problems:
        print(dataset.report())
    if isinstance(dataset, PostTable) and (unused := dataset.unused_numbers):
        names = ",".join(unused)
        print(f"numbers that nothing uses: {names} (--table-columns {names} makes them an input)")
    prepare = partial(
        prepare_split,
        dataset,
        encoders=encoders,
        settings=settings,
        cache=FeatureCache(folder.parent / "features"),
    )
    train_posts = prepare(splits.train)
    val_posts = prepare(splits.val, seeds=(VAL_SEED,))
    test_ids = splits.open_test("final report of both models, chosen by validation")
    test_posts = prepare(test_ids, seeds=TEST_SEEDS)
    used = [len(posts.ids) for posts in (train_posts, val_posts, test_posts)]
    if settings.limit and settings.data:
        print(f"--limit uses {used[0]} train, {used[1]} val and {used[2]} test posts of them")

    recipe, device = recipe_of(settings), settings.device
    kinds = damage_kinds(settings.damage, table=bool(settings.table_columns))
    validate = partial(
        validation_score,
        posts=val_posts,
        seed=VAL_SEED,
        device=device,
        score=partial(score, settings=settings),
    )
    train_rows = dataset.select(chosen_ids(dataset, splits.train, settings))
    weights, columns = loss_weights(train_rows, settings), dataset.table_columns
    learned: Any = train_posts
    if trained := training_kinds(settings):
        learned = DamagedPosts(
            train_posts, train_rows, encoders, trained, settings.train_damage, settings.seed
        )
        print(
            f"Damaging {settings.train_damage:.0%} of the training posts, anew in each epoch: "
            f"{' or '.join(trained)}, for both models"
        )
    reports, histories, models = [], {}, {}
    watch.tick("posts")
    for kind, title in NAMES.items():
        own = make_encoders(settings, columns)
        model = make_model(kind, own, len(dataset.class_names), settings)
        for name in settings.frozen:
            model.encoders[name].fit(train_posts.features[name], train_posts.available[name])
        histories[kind] = train(
            model,
            learned,
            validate,
            recipe,
            folder / "training" / kind,
            seed=settings.seed,
            device=device,
            save_every=save_every,
            title=title.split(" + ")[0],  # the progress bar has one line
            on_save=partial(watch.tick, kind),
            loss=weights.loss,
        )
        if trained and kind == "drf":
            # The queue shall hold intact posts, so that damage is unusual.
            refresh(model, clean_batches(train_posts, device))
        print(f"{title}: {loss_terms(histories[kind])}")
        config = {
            "robustfusion": __version__,
            "head": type(model.head).__name__,
            "dims": dict(model.head.dims),
            "class_names": list(dataset.class_names),
            "settings": without_folders(settings),
            "table": None if columns is None else columns.state,
        }
        if kind == "drf":
            # Posts that were not trained on, intact and damaged, teach how much to trust an input.
            val = dataset.select(chosen_ids(dataset, splits.val, settings))
            copies = None
            if kinds and settings.recipe != "paper":
                copies = damage(EncodedSamples(val, encoders, settings), kinds)
                copies = tqdm(copies, desc="damage", unit="batch", leave=False, disable=None)
            report = calibrate(model, clean_batches(val_posts, device), copies)
            calibration = report.to_markdown().strip()
            (folder / "calibration.md").write_text(calibration + "\n", encoding="utf-8")
            config["certainty"] = certainty(model, val_posts, device)
            config["references"] = {
                name: int(part.reference_count) for name, part in model.head.estimators.items()
            }
        save_model(model, folder / "models" / kind, config)
        models[title] = model
        watch.tick(kind)
        report = robustness_report(model, test_posts, seeds=TEST_SEEDS, progress=True)
        reports.append(report.named(title))
        watch.tick("reports")
    if kinds:
        test = dataset.select(chosen_ids(dataset, test_ids, settings))
        print("Damaging the test posts ...", flush=True)
        samples = EncodedSamples(test, encoders, settings)
        under_damage = damage_report(models, samples, kinds, severities=SEVERITIES)
        (folder / "damage.md").write_text(under_damage.to_markdown(), encoding="utf-8")
        under_damage.to_csv(folder / "damage.csv")
        under_damage.plot(folder / "damage.png")
        watch.tick("damage")
    record = run_record(
        settings=asdict(settings),
        recipe=asdict(recipe),
        posts={
            "labels_sha256": sha256(labels_file(dataset)),
            "splits": repr(splits),
            "used": used,
            "report": str(dataset.report()),
        },
        history=histories,
        training_seconds={kind: round(watch.seconds[kind], 1) for kind in NAMES},
        total_seconds=round(sum(watch.seconds.values()), 1),
    )
    write_json(folder / "run.json", record)
    write_results(folder, dict(zip(NAMES, reports, strict=True)))
    print(console(*reports, "real" if settings.data else "generated"))
    print(f"\nOpen first: {folder / 'accuracy.png'} ({record['total_seconds']:.0f} s in all)")
    print(f"All files:  {folder / 'README.txt'}")
    print(f"Next:       python examples/predict.py {folder} new.csv")


def main(
    context: typer.Context,
    resume_dir: Annotated[
        Path | None,
        typer.Argument(help="Folder of the run to resume, with --resume.", metavar="[RUN]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A table, or the folder of MVSA-Single; by default posts are generated."
        ),
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column of the image paths.")] = "image",
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[
        str, typer.Option(help="Column of the classes, any number of them.")
    ] = "label",
    task: Annotated[
        TaskName,
        typer.Option(
            help="One class a post, several labels (multilabel), or numbers (regression)."
        ),
    ] = TaskName.multiclass,
    label_columns: Annotated[
        str, typer.Option(help="Columns of labels (0 or 1) or numbers, with commas.")
    ] = "",
    label_sep: Annotated[
        str, typer.Option(help="What stands between the labels of a cell, such as '|'.")
    ] = "",
    table_columns: Annotated[
        str, typer.Option(help="Columns of numbers or words as a third input, with commas.")
    ] = "",
    weight_column: Annotated[str, typer.Option(help="Column of weights of the posts.")] = "",
    class_weight: Annotated[
        ClassWeight, typer.Option(help="balanced: rare classes weigh more in training.")
    ] = ClassWeight.none,
    select: Annotated[
        Score | None,
        typer.Option(
            help="Score that chooses the epoch; for several labels macro-f1 unless you choose."
        ),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder of the image paths; by default that of the table.")
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Also open images outside of that folder.")
    ] = False,
    encoding: Annotated[
        str, typer.Option(help="Encoding of a table that is not UTF-8, such as cp1252.")
    ] = "",
    image_encoder: Annotated[
        str, typer.Option(help="small, efficientnet-lite0, or a transformers model or folder.")
    ] = "small",
    text_encoder: Annotated[
        str, typer.Option(help="small, minilm, or a transformers model or folder.")
    ] = "small",
    freeze: Annotated[bool, typer.Option("--freeze", help="Freeze both encoders.")] = False,
    freeze_image: Annotated[
        bool, typer.Option("--freeze-image", help="Freeze the image encoder.")
    ] = False,
    damage: Annotated[
        str,
        typer.Option(help="Kinds of damage to learn trust from, with commas; all, or none."),
    ] = "all",
    train_damage: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the training posts to damage by these kinds, too."
        ),
    ] = 0.0,
    recipe: Annotated[
        RecipeName,
        typer.Option(help="default, or paper: its head, batch size 16, 30 epochs."),
    ] = RecipeName.default,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=2)] = None,
    limit: Annotated[int | None, typer.Option(min=40, help="Use about this many posts.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    output_dir: Annotated[Path, typer.Option(help="Folder for runs and generated posts.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the latest run, or RUN.")
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
) -> None:
    """Train DRF and concatenation on image-text posts and compare them under disruption."""
    folder = None
    try:
        if resume:
            folder, saved = find_run(resume_dir, output_dir)
            settings = Settings(**kept_settings(folder, saved, Settings, context))
        else:
            if resume_dir is not None:
                raise SetupError(f"{resume_dir} is given without --resume")
            settings = Settings(
                data=None if data is None else str(data.resolve()),
                image_column=image_column,
                text_column=text_column,
                label_column=label_column,
                image_root=None if image_root is None else str(image_root.resolve()),
                allow_outside=allow_outside,
                encoding=encoding,
                task=task.value,
                label_columns=split_names(label_columns),
                label_sep=label_sep,
                table_columns=split_names(table_columns),
                weight_column=weight_column,
                class_weight="" if class_weight is ClassWeight.none else class_weight.value,
                select=chosen_score(task, select, class_weight),
                image_encoder=image_encoder,
                text_encoder=text_encoder,
                frozen=["image", "text"] if freeze else ["image"] if freeze_image else [],
                damage=damage,
                train_damage=train_damage,
                recipe=recipe.value,
                epochs=epochs,
                batch_size=batch_size,
                limit=limit,
                seed=seed,
                device=device,
                # Networks as small as these are slower with a second thread.
                threads=1 if image_encoder == text_encoder == "small" else torch.get_num_threads(),
            )
        torch.set_num_threads(settings.threads)
        # Check device, encoders and data before anything is written.
        check_device(settings.device)
        damage_kinds(settings.damage, table=bool(settings.table_columns))
        training_kinds(settings)
        if settings.data is None:
            check_folder(settings)
        encoders = make_encoders(settings)
        parent = folder.parent if folder else output_dir
        root = Path(settings.data) if settings.data else generate_posts(settings, parent)
        dataset, splits = open_data(root, settings, encoders)
        if dataset.table_columns is not None:
            encoders = make_encoders(settings, dataset.table_columns)
        folder = folder or new_run(output_dir, asdict(settings))
        run(settings, encoders, dataset, splits, folder, save_every)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (Interrupted, KeyboardInterrupt):
        command = f" To resume: python {sys.argv[0]} --resume {folder}" if folder else ""
        print(f"\nInterrupted.{command}", file=sys.stderr)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    typer.run(main)
