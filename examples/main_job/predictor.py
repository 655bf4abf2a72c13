"""The DRF model of a run, ready to predict."""

from pathlib import Path
from typing import Any

import torch

from main_job.encoders import SetupError, Standardize, image_encoder, text_encoder
from main_job.prepared import encode, stack, to
from robustfusion import DRFClassifier, DRFHead
from robustfusion.checkpoint import load_model, read_config


class Predictor:
    """The DRF model of a run, for pictures and texts of which either may be None."""

    def __init__(self, run: Path, device: str = "cpu") -> None:
        folder = run / "models" / "drf" if (run / "models").is_dir() else run
        try:
            config = read_config(folder)
            dims, self.class_names = config["dims"], tuple(config["class_names"])
            self.frozen = tuple(config["frozen"])
            heads = {"DRFHead": DRFHead, "PaperDRFHead": DRFHead.paper}
            head = heads[config["head"]](dims, len(self.class_names))
            self.encoders = {
                "image": image_encoder(config["image_encoder"]).to(device).eval(),
                "text": text_encoder(config["text_encoder"]).to(device).eval(),
            }
            own = dict(self.encoders)
            own |= {name: Standardize(torch.zeros(2, dims[name])) for name in self.frozen}
            self.model = DRFClassifier(own, head)
            load_model(self.model, folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SetupError(f"{run} holds no model of drf_mvsa.py ({reason})") from error
        self.model.to(device).eval()
        self.device = device
        self.candidates = head.candidates

    @torch.no_grad()
    def __call__(self, images: list[Any], texts: list[str | None]) -> Any:
        """Return the head's output for some posts."""
        size = (self.encoders["image"].size,) * 2
        black = torch.zeros(3, *size, dtype=torch.uint8)
        image, text = self.encoders["image"], self.encoders["text"]
        values = {
            "image": [black if i is None else image.prepare(image.resize(i)) for i in images],
            "text": [text.prepare(t or text.mask_token) for t in texts],
        }
        given = {"image": images, "text": texts}
        inputs, available = {}, {}
        for name, column in values.items():
            made = stack(column)
            if name in self.frozen:
                made = encode(self.encoders[name], made, self.device)
            inputs[name] = to(made, self.device)
            available[name] = torch.tensor([v is not None for v in given[name]]).to(self.device)
        return self.model(inputs, available)
