"""Heads and classifiers in a folder or on the Hugging Face hub, with a card of measurements."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn

from robustfusion.checkpoint import CONFIG, WEIGHTS, load_model, read_config, save_model
from robustfusion.classifier import DRFClassifier
from robustfusion.drf import DRFHead
from robustfusion.evaluation import RobustnessReport
from robustfusion.paper import PaperDRFHead

try:
    from huggingface_hub import (
        EvalResult,
        ModelCard,
        ModelCardData,
        ModelHubMixin,
        snapshot_download,
    )
except ImportError as error:
    raise ImportError(
        'saving to the hub needs huggingface_hub: pip install "robustfusion[hf]"'
    ) from error

PAPER = "https://arxiv.org/abs/2511.18751"
TASK = ("multimodal-classification", "Classification with missing or poor modalities")


class _HubModule(nn.Module, ModelHubMixin, library_name="robustfusion"):
    """What head and classifier share: the card, and loading that refuses what does not fit."""

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **arguments: Any,
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            fetched = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[CONFIG, WEIGHTS],
            )
            folder = Path(fetched)
        model = cls._build(folder, **arguments)
        load_model(model, folder)
        return model.eval()

    @classmethod
    def _build(cls, folder: Path, **arguments: Any) -> Self:
        """Return a model of the saved form, with weights of its own."""
        raise NotImplementedError

    def generate_model_card(
        self,
        *,
        report: RobustnessReport | None = None,
        dataset: str | None = None,
        license: str | None = None,
    ) -> ModelCard:
        """Return the card; see :func:`model_card`."""
        return model_card(self, report, dataset=dataset, license=license)


class HubDRFHead(DRFHead, _HubModule):
    r"""A :class:`~robustfusion.DRFHead` with ``save_pretrained`` and ``from_pretrained``.

    The folder holds ``model.safetensors`` with weights, queues and calibration, ``config.json``
    with the constructor's arguments and the digest of the weights, and ``README.md``, the model
    card. Reading it runs no code, and refuses what does not fit.

    ``save_pretrained(folder, model_card_kwargs={"report": report, "dataset": "MVSA-Single"})``
    writes the card from a :class:`~robustfusion.evaluation.RobustnessReport`; without one the card
    says that nothing was measured. ``push_to_hub(repo_id, model_card_kwargs=...)`` does the same
    on the hub. A card that is there already is kept.

    Args:
        dims: As of :class:`~robustfusion.DRFHead`; so is every further argument.
        num_classes: Number of classes C.

    Raises:
        TypeError: On saving, if an argument cannot be written as JSON, such as a factory.
        ValueError: On loading, if the files are damaged, foreign, or of another version.

    Example:
        >>> import tempfile
        >>> head = HubDRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> folder = tempfile.mkdtemp()
        >>> _ = head.save_pretrained(folder)
        >>> HubDRFHead.from_pretrained(folder).dims
        {'image': 8, 'text': 4}

    Reference:
        https://huggingface.co/docs/huggingface_hub/package_reference/mixins
    """

    unsaved: tuple[str, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember which arguments the mixin leaves out of the config, because JSON cannot."""
        made = super().__new__(cls, *args, **kwargs)
        given = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs).arguments
        made.unsaved = tuple(name for name, value in given.items() if not cls._is_jsonable(value))
        return made

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory, {"head": arguments_of(self)})

    @classmethod
    def _build(cls, folder: Path, **arguments: Any) -> Self:
        return cls(**{**_section(folder, "head"), **arguments})


class HubDRFClassifier(DRFClassifier, _HubModule):
    r"""A :class:`~robustfusion.DRFClassifier` with ``save_pretrained`` and ``from_pretrained``.

    How to build your encoders only your code knows, so loading is given them, built but not
    trained: their weights are in the folder. The head is built from the config if it is a
    :class:`HubDRFHead`; any other is given as well.

    Args:
        encoders: As of :class:`~robustfusion.DRFClassifier`.
        head: Any head.

    Raises:
        ValueError: On loading, if encoders or head are not of the saved form, or files are
            damaged.

    Example:
        >>> import tempfile
        >>> def build():
        ...     return {"image": nn.Linear(12, 8), "text": nn.EmbeddingBag(100, 4)}
        >>> model = HubDRFClassifier(build(), HubDRFHead({"image": 8, "text": 4}, num_classes=3))
        >>> folder = tempfile.mkdtemp()
        >>> _ = model.save_pretrained(folder)
        >>> type(HubDRFClassifier.from_pretrained(folder, encoders=build()).head).__name__
        'HubDRFHead'

    Reference:
        https://huggingface.co/docs/huggingface_hub/package_reference/mixins
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        config: dict[str, Any] = {"encoders": list(self.encoders)}
        if isinstance(self.head, HubDRFHead):
            config["head"] = arguments_of(self.head)
        save_model(self, save_directory, config)

    @classmethod
    def _build(  # type: ignore[override]
        cls,
        folder: Path,
        *,
        encoders: Mapping[str, nn.Module] | None = None,
        head: nn.Module | None = None,
    ) -> Self:
        if encoders is None:
            named = _section(folder, "encoders")
            raise ValueError(f"from_pretrained needs encoders=, one module for each of {named}")
        if head is None:
            head = HubDRFHead(**_section(folder, "head"))
        return cls(encoders, head)


def model_card(
    model: nn.Module,
    report: RobustnessReport | None = None,
    *,
    dataset: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Write a model card from what was measured.

    Args:
        model: A head or a classifier.
        report: Its robustness report; goes into the text, and as results into the metadata.
        dataset: Name of the data the report was made on.
        license: Identifier of the model's licence, say "apache-2.0".

    Returns:
        The card.

    Example:
        >>> card = model_card(DRFHead({"image": 8, "text": 4}, num_classes=3), license="mit")
        >>> card.data.license, card.text.strip().splitlines()[0]
        ('mit', '# DRFHead')

    Reference:
        Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
    """
    name = type(model).__name__
    title = name if report is None else report.name
    data = ModelCardData(
        model_name=title,
        library_name="robustfusion",
        license=license,
        tags=["multimodal", "missing-modality", "robustness"],
        eval_results=None if report is None else _results(report, dataset or "unnamed"),
    )
    head = getattr(model, "head", model)
    widths = ", ".join(f"{m} ({dim})" for m, dim in getattr(head, "dims", {}).items())
    ours = isinstance(head, DRFHead | PaperDRFHead)
    method = f"; the method is that of {PAPER}" if ours else ""
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {title}",
        "",
        "Predicts from several modalities, each of which may be missing or of low quality. Made "
        f"with `robustfusion`{method}.",
        "",
        f"- Head: `{type(head).__name__}`" + (f", feature widths: {widths}" if widths else ""),
    ]
    arguments = ["folder_or_repo"]
    if isinstance(model, HubDRFClassifier):
        arguments += ["encoders=your_encoders"]
        arguments += [] if isinstance(head, HubDRFHead) else ["head=your_head"]
    if isinstance(model, ModelHubMixin):
        loading = f"{name}.from_pretrained({', '.join(arguments)})"
        code = ["```python", f"from {__name__} import {name}", "", f"model = {loading}", "```"]
        lines += ["", *code]
    if report is None:
        lines += ["", "No robustness report came with this model: nothing is known of its errors."]
    else:
        where = f" on {dataset}" if dataset else ""
        body = report.to_markdown().replace("\n#", "\n##")
        lines += ["", f"Measured{where}:", "", "#" + body]
    return ModelCard("\n".join(lines).rstrip() + "\n")


def arguments_of(head: HubDRFHead) -> dict[str, Any]:
    """Return the constructor's arguments of a hub head, all of which JSON must hold."""
    if head.unsaved:
        raise TypeError(
            f"{head.unsaved[0]} cannot be written as JSON, so the head could not be built again: "
            "use robustfusion.checkpoint.save_model, which leaves building to your code"
        )
    return dict(head._hub_mixin_config or {})  # type: ignore[arg-type]


def _results(report: RobustnessReport, dataset: str) -> list[EvalResult]:
    """Return every accuracy and macro-F1 for the card's metadata."""
    task, title = TASK
    return [
        EvalResult(
            task_type=task,
            task_name=title,
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=f"{dataset}, {cell.samples.condition.title}",
            dataset_config=key,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(score.value, 4),
        )
        for key, cell in report.cells.items()
        for metric, score in (("accuracy", cell.accuracy), ("macro_f1", cell.macro_f1))
    ]


def _section(folder: Path, name: str) -> Any:
    config = read_config(folder)
    if name not in config:
        raise ValueError(f"{folder / CONFIG} says nothing of the {name}: pass {name}=")
    return config[name]
