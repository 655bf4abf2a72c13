"""Save heads to a folder or the Hugging Face hub, with a model card of measurements.

This is not built on huggingface_hub's ``PyTorchModelHubMixin``, which deletes the old config
before it knows whether the new one can be written, drops arguments that JSON cannot hold, and
builds a model from a config that nobody checked. All of it but the upload would be overridden.
"""

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from robustfusion import checkpoint
from robustfusion.drf import DRFHead
from robustfusion.evaluation import RobustnessReport
from robustfusion.paper import PaperDRFHead

try:
    from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, snapshot_download
except ImportError as error:
    raise ImportError(
        'saving to the hub needs huggingface_hub: pip install "robustfusion[hub]"'
    ) from error

PAPER = "https://arxiv.org/abs/2511.18751"
FILES = [checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.DIGESTS]


class HubDRFHead(DRFHead):
    r"""A :class:`~robustfusion.DRFHead` with ``save_pretrained`` and ``from_pretrained``.

    The folder holds ``model.safetensors`` with weights, queues and calibration, ``config.json``
    with the constructor's arguments, ``SHA256SUMS`` with the digests of both, and ``README.md``,
    the model card. Reading it runs no code, and refuses what does not fit. For a model with
    encoders use :func:`~robustfusion.checkpoint.save_model` and :func:`model_card`: only your code
    can build them.

    Args:
        dims: And all others, see :class:`~robustfusion.DRFHead`.

    Raises:
        TypeError: On saving, if an argument cannot be written as JSON, such as a factory.
        ValueError: On loading, if the files are damaged, foreign, or of another version.

    Example:
        >>> import tempfile
        >>> from robustfusion.integrations.hub import HubDRFHead
        >>> head = HubDRFHead({"image": 8, "text": 4}, num_classes=3)
        >>> folder = tempfile.mkdtemp()
        >>> head.save_pretrained(folder)
        >>> HubDRFHead.from_pretrained(folder).dims
        {'image': 8, 'text': 4}

    Reference:
        https://huggingface.co/docs/huggingface_hub/package_reference/mixins
    """

    def __init__(self, dims: Mapping[str, int], num_classes: int, **options: Any) -> None:
        super().__init__(dims, num_classes, **options)
        arguments = inspect.signature(DRFHead).bind(dict(dims), num_classes, **options)
        arguments.apply_defaults()
        self.arguments = dict(arguments.arguments)

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Write weights, config, digests and, unless there is one, a :func:`model_card`."""
        known = inspect.signature(DRFHead).parameters
        for name, value in self.arguments.items():
            if callable(value) and value is not known[name].default:
                raise TypeError(
                    f"{name} cannot be written as JSON, so the head could not be built again: use "
                    "robustfusion.checkpoint.save_model, which leaves building to your code"
                )
        config = {name: value for name, value in self.arguments.items() if not callable(value)}
        checkpoint.save_model(self, save_directory, config)
        card = Path(save_directory) / "README.md"
        if not card.exists():
            model_card(self, **(model_card_kwargs or {})).save(card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **commit: Any,
    ) -> str:
        """Upload the files of :meth:`save_pretrained`, with ``HfApi.upload_folder(**commit)``."""
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, model_card_kwargs=model_card_kwargs)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **commit))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Self:
        """Return the head of a folder or a repository, in evaluation mode.

        ``options`` are those of ``huggingface_hub.snapshot_download``, for example ``revision``.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(name_or_path), allow_patterns=FILES, **options))
        config: Any = checkpoint.read_config(folder)
        weights: dict[str, Tensor] = checkpoint.read_weights(folder)
        try:
            with torch.device("meta"):  # a foreign config may ask for terabytes
                checkpoint.check_fit(cls(**config), weights)
            head = cls(**config)
            head.load_state_dict(weights)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{folder} holds no such {cls.__name__}: {error}") from error
        return head.eval()


def model_card(
    model: nn.Module,
    report: RobustnessReport | None = None,
    *,
    dataset: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Write a model card from measurements.

    Args:
        model: A head or a classifier.
        report: Its robustness report; goes into the text, and as results into the metadata.
        dataset: Name of the data that the report was made on.
        license: Identifier of the model's license, for example "apache-2.0".

    Example:
        >>> from robustfusion import DRFHead
        >>> from robustfusion.integrations.hub import model_card
        >>> card = model_card(DRFHead({"image": 8, "text": 4}, num_classes=3), license="mit")
        >>> card.data.license, card.text.strip().splitlines()[0]
        ('mit', '# DRFHead')

    Reference:
        Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
    """
    name, head = type(model).__name__, getattr(model, "head", model)
    title = name if report is None else report.name
    data = ModelCardData(
        model_name=title,
        library_name="robustfusion",
        license=license,
        tags=["multimodal", "missing-modality", "robustness"],
        eval_results=None if report is None else _results(report, dataset or "unnamed"),
    )
    method = f"; the method is that of {PAPER}" if isinstance(head, DRFHead | PaperDRFHead) else ""
    widths = ", ".join(f"{m} ({dim})" for m, dim in getattr(head, "dims", {}).items())
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n"
        "Predicts from several modalities, each of which may be missing or damaged. Built with "
        f"`robustfusion`{method}.\n\n- Head: `{type(head).__name__}`"
        f"{', feature widths: ' if widths else ''}{widths}\n\n"
    )
    if isinstance(model, HubDRFHead):
        text += f"```python\nfrom {__name__} import {name}\n\n"
        text += f'model = {name}.from_pretrained("folder or repository")\n```\n\n'
    if report is None:
        text += "No robustness report came with this model: its errors are unknown.\n"
    else:
        measured = report.to_markdown().rstrip().replace("\n#", "\n##")
        text += f"Measured{f' on {dataset}' if dataset else ''}:\n\n#{measured}\n"
    return ModelCard(text)


def _results(report: RobustnessReport, dataset: str) -> list[EvalResult]:
    """Return every accuracy and macro-F1 for the card's metadata."""
    return [
        EvalResult(
            task_type="multimodal-classification",
            task_name="Classification with missing or damaged modalities",
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=f"{dataset}, {cell.condition.title}",
            dataset_config=key,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(score.value, 4),
        )
        for key, cell in report.scores.items()
        for metric, score in (("accuracy", cell.accuracy), ("macro_f1", cell.macro_f1))
    ]
