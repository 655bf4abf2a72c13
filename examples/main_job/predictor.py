"""Load the DRF model of a run for prediction."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from main_job.encoders import SetupError, TableEncoder, encoding, image_encoder, text_encoder
from main_job.settings import Settings, make_model
from main_job.training import to
from robustfusion import DRFHead, DRFOutput
from robustfusion.checkpoint import load_model, read_config
from robustfusion.datasets import TableColumns
from robustfusion.explanation import explain


class Predictor:
    """The DRF model of a run; it takes images, texts and table rows, each of which may be None.

    Attributes:
        class_names: names of the classes, in the order of the logits.
        settings: settings of the run.
        modalities: names of the inputs.
        columns: the columns that are an input, None without.
        generated: whether it was trained on generated posts, so that real posts look unusual.
        certainty: the largest probability of each validation post, sorted.
    """

    def __init__(self, run: Path, device: str = "cpu") -> None:
        folder = run / "models" / "drf" if (run / "models").is_dir() else run
        try:
            config = read_config(folder)
            self.class_names = tuple(config["class_names"])
            self.settings = settings = Settings(**config["settings"])
            saved = run / "settings.json"  # the folders of the run, which a model does not name
            if saved.is_file():
                settings.image_root = json.loads(saved.read_text(encoding="utf-8"))["image_root"]
            self.generated, self.certainty = settings.data is None, config["certainty"]
            self.frozen = tuple(settings.frozen)
            self.encoders = {
                "image": image_encoder(settings.image_encoder).to(device).eval(),
                "text": text_encoder(settings.text_encoder).to(device).eval(),
            }
            table = config.get("table")
            self.columns = None if table is None else TableColumns.from_state(table)
            if self.columns is not None:
                self.encoders["table"] = TableEncoder(self.columns).to(device).eval()
            self.model = make_model("drf", self.encoders, len(self.class_names), settings)
            load_model(self.model, folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SetupError(f"{run} holds no model of drf_mvsa.py ({reason})") from error
        self.model.to(device).eval()
        self.device = device
        self.candidates = self.model.head.candidates
        self.modalities = tuple(self.encoders)

    @torch.no_grad()
    def __call__(
        self,
        images: list[Any],
        texts: list[str | None],
        rows: list[Tensor | None] | None = None,
    ) -> DRFOutput:
        """Return the output of the head for a batch of posts."""
        output: DRFOutput = self.model(*self.prepare(images, texts, rows))
        return output

    @torch.no_grad()
    def prepare(
        self,
        images: list[Any],
        texts: list[str | None],
        rows: list[Tensor | None] | None = None,
    ) -> tuple[dict[str, Any], ...]:
        """Return inputs and masks for the model; the input of a frozen encoder is its feature.

        ``rows`` are vectors of ``columns``, by default missing.
        """
        image, text = self.encoders["image"], self.encoders["text"]
        black = image.blank()
        values = {
            "image": [black if i is None else image.resize(i) for i in images],
            "text": [t or text.mask_token for t in texts],
        }
        columns: dict[str, list[Any]] = {"image": images, "text": texts}
        if self.columns is not None:
            blank = torch.zeros(self.columns.dim)
            columns["table"] = rows if rows is not None else [None] * len(images)
            values["table"] = [blank if row is None else row for row in columns["table"]]
        inputs = {
            name: to(
                encoding(self.encoders[name], frozen=name in self.frozen)(column), self.device
            )
            for name, column in values.items()
        }
        available = {
            name: torch.tensor([value is not None for value in column], device=self.device)
            for name, column in columns.items()
        }
        return inputs, available

    @torch.no_grad()
    def shares(
        self,
        images: list[Any],
        texts: list[str | None],
        rows: list[Tensor | None] | None = None,
    ) -> dict[str, list[float]]:
        """Return the contribution of each modality to the probability of the predicted class."""
        explanation = explain(self.model, *self.prepare(images, texts, rows))
        return {name: values.tolist() for name, values in explanation.contributions.items()}

    def p_values(self, output: DRFOutput) -> dict[str, Tensor]:
        """Return the p-value of each modality: the share of intact posts at least as unusual."""
        head = self.model.head
        if isinstance(head, DRFHead):
            return head.p_values(output)
        # The output of the paper's head holds densities, so ask its estimators.
        return {name: e.p_value(output.features[name]) for name, e in head.estimators.items()}

    @property
    def references(self) -> int:
        """Number of reference posts behind a p-value, for the modality that has fewer."""
        return min(int(e.reference_count) for e in self.model.head.estimators.values())
