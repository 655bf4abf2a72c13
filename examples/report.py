"""Write a robustness report of a saved run of drf_mvsa.py, or of your own model.

    python examples/report.py runs/drf_mvsa-001

measures both models of the run on its test posts. For each model it writes figures and a report in
Markdown, CSV and JSON to ``runs/drf_mvsa-001/report``, and one table that compares both.

    python examples/report.py --model my_model.py:make

does the same for any model that takes ``(inputs, available)`` and returns an output with
``logits``; ``log_quality``, ``weights`` and ``recovered`` are reported if the output has them.
``make`` returns the trained model and the data to measure it on. A whole ``my_model.py``::

    from types import SimpleNamespace

    import matplotlib  # noqa: F401 - a missing package is reported before the training
    import safetensors  # noqa: F401
    import torch
    from torch import nn

    from robustfusion.disruption import FeatureCorruption
    from robustfusion.evaluation import CachedFeatures


    class MyModel(nn.Module):
        def __init__(self, dims, num_classes):
            super().__init__()
            self.parts = nn.ModuleDict({m: nn.Linear(d, num_classes) for m, d in dims.items()})

        def forward(self, inputs, available):
            visible = {m: x.where(available[m][:, None], 0.0) for m, x in inputs.items()}
            return SimpleNamespace(logits=sum(self.parts[m](x) for m, x in visible.items()))


    def make():
        features = {"image": torch.randn(200, 32), "text": torch.randn(200, 16)}
        mask = FeatureCorruption(kind="mask")  # or the features of corrupted inputs, (R, N, D)
        data = CachedFeatures(
            features, torch.arange(200) % 3, corrupted=dict.fromkeys(features, mask)
        )
        return MyModel({"image": 32, "text": 16}, num_classes=3), data

For raw images and texts return ``RawSamples`` instead of ``CachedFeatures``. Needs
``robustfusion[examples]``.
"""

import importlib.util
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

try:
    import matplotlib  # noqa: F401 - a missing package is reported before the training
    import safetensors  # noqa: F401
    import torch
    import typer
    from main_job.encoders import SetupError
    from main_job.reading import open_data, prepare_split
    from main_job.run_folder import check_device, find_run
    from main_job.settings import NAMES, TEST_SEEDS, Settings, make_encoders, make_model
    from main_job.side_by_side import console, table

    from robustfusion.checkpoint import load_model, read_config
    from robustfusion.datasets import FeatureCache, TableColumns
    from robustfusion.evaluation import (
        RobustnessReport,
        plot_rate_curves,
        plot_report,
        robustness_report,
    )
except ImportError as error:
    sys.exit(f'{error}. The examples need: pip install -e ".[examples]"')


class EmbeddingName(StrEnum):
    """Projection of recovered features to two dimensions."""

    pca = "pca"
    tsne = "tsne"


def write_report(
    reports: Sequence[RobustnessReport], folder: Path, embedding: Any = "pca"
) -> list[Path]:
    """Write reports of the same samples; several of them get a folder each."""
    written = []
    for report in reports:
        own = folder / _slug(report.name) if len(reports) > 1 else folder
        own.mkdir(parents=True, exist_ok=True)
        report.to_markdown(own / "report.md")
        report.to_csv(own / "report.csv")
        written += [own / "report.md", own / "report.csv", *report.save(own / "report")]
        written += plot_report(report, own, embedding=embedding)
    if len(reports) > 1:
        written.append(plot_rate_curves(reports, folder / "rate_curves.png"))
    if len(reports) == 2:
        (folder / "comparison.md").write_text(table(*reports) + "\n", encoding="utf-8")
        written.append(folder / "comparison.md")
    return written


def load_run(run: Path, data: Path | None, device: str) -> tuple[dict[str, Any], Any]:
    """Return the saved models of a run by name, and its test posts, disrupted as before."""
    folder, saved = find_run(run, run)
    try:
        settings = Settings(**{**saved, "device": device})
        configs = {kind: read_config(folder / "models" / kind) for kind in NAMES}
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SetupError(f"{folder} is not a finished run of drf_mvsa.py ({reason})") from error
    root = data or (Path(settings.data) if settings.data else None)
    if root is None:
        root = folder.parent / f"posts-{settings.limit or 1500}-seed{settings.seed}"
    if not root.exists():
        raise SetupError(f"the posts of the run are not in {root}: name their folder with --data")
    torch.set_num_threads(settings.threads)
    state = configs["drf"].get("table")
    columns = None if state is None else TableColumns.from_state(state)
    encoders = make_encoders(settings, columns)
    models = {}
    for kind, config in configs.items():
        own = make_encoders(settings, columns)
        model = make_model(kind, own, len(config["class_names"]), settings)
        try:
            load_model(model, folder / "models" / kind)
        except (OSError, ValueError) as error:
            raise SetupError(str(error).splitlines()[0]) from error
        models[NAMES[kind]] = model.to(device).eval()
    dataset, splits = open_data(root, settings, encoders)
    if list(dataset.class_names) != configs["drf"]["class_names"]:
        raise SetupError(f"{root} has other classes than the run: {dataset.class_names}")
    if columns is not None:
        dataset.table_columns.state = columns.state  # as in the run
    posts = prepare_split(
        dataset,
        splits.open_test("report of a finished run"),
        encoders,
        settings,
        seeds=TEST_SEEDS,
        cache=FeatureCache(folder.parent / "features") if settings.frozen else None,
    )
    return models, posts


def load_own(factory_path: str) -> tuple[dict[str, Any], Any]:
    """Call the function ``FILE.py:FACTORY``; return its model by name, and its data."""
    path, _, name = factory_path.rpartition(":")
    if not path or not Path(path).is_file():
        raise SetupError(
            f"--model {factory_path} must be FILE.py:FACTORY, and the file must exist"
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise SetupError(f"--model: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles of the file look the module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise SetupError(f"--model: {path} has no function {name}")
    result = factory()
    if not isinstance(result, tuple) or len(result) != 2 or not hasattr(result[1], "batches"):
        raise SetupError(
            f"--model: {name}() must return (model, data); data is a CachedFeatures or RawSamples"
        )
    model, data = result
    return {type(model).__name__: model}, data


def main(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a run, such as runs/drf_mvsa-001.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="FILE.py:FACTORY instead of a run; it returns (model, data)."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the posts of the run, if they were moved.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", help="By default RUN/report, or runs/report."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(hidden=True, help="The former name of --output-dir.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of disruption seeds, with --model.")
    ] = 5,
    embedding: Annotated[
        EmbeddingName, typer.Option(help="Projection of recovered features.")
    ] = EmbeddingName.pca,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing report.")
    ] = False,
) -> None:
    """Measure models under all disruptions and write tables and figures."""
    try:
        if (run is None) == (model is None):
            raise SetupError("give either the folder of a run or --model FILE.py:FACTORY")
        if model is not None and data is not None:
            raise SetupError("--data is for runs: with --model the factory returns the data")
        folder = output_dir or output or (Path("runs/report") if run is None else run / "report")
        if folder.exists() and not overwrite:
            raise SetupError(
                f"{folder} exists already: choose another --output-dir or --overwrite"
            )
        check_device(device)
        if run is not None:
            models, posts = load_run(run, data, device)
            disruption_seeds = TEST_SEEDS
        else:
            models, posts = load_own(str(model))
            disruption_seeds = tuple(range(seeds))
        measure = partial(robustness_report, data=posts, seeds=disruption_seeds, progress=True)
        try:
            reports = [measure(net.to(device)).named(name) for name, net in models.items()]
        except (ValueError, TypeError, AttributeError) as error:
            raise SetupError(f"the model cannot be measured: {error}") from error
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was written.", file=sys.stderr)
        raise typer.Exit(130) from None
    write_report(reports, folder, embedding.value)
    print(console(*reports) if len(reports) == 2 else reports[0].to_markdown())
    first = folder / "rate_curves.png"
    print(f"\nOpen first: {first}")
    print(f"All tables and figures: {folder}")


def _slug(name: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return "-".join(words)


if __name__ == "__main__":
    typer.run(main)
