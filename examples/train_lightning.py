"""Train a DRF classifier with Lightning.

    python examples/train_lightning.py --devices 2

Needs ``robustfusion[examples,lightning]``.
"""

import sys
from pathlib import Path

try:
    import lightning
    import torch
    import typer
    from digits import HalfDigits, Sample, inputs_of, make_model
    from torch import Tensor
    from torch.utils.data import DataLoader
    from torchmetrics.classification import MulticlassAccuracy
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples,lightning]"')

LOSSES = (None, "upper", "lower")


class HalfDigitsModule(lightning.LightningModule):
    """The classifier, its objective and its optimizer."""

    def __init__(self, lr: float = 2e-3, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = make_model()
        self.lr = lr
        self.label_smoothing = label_smoothing
        # One metric per missing half; torchmetrics gathers the counts over ranks.
        self.accuracies = torch.nn.ModuleList(
            MulticlassAccuracy(num_classes=10, average="micro") for _ in LOSSES
        )

    def training_step(self, batch: Sample, index: int) -> Tensor:
        """Return the loss; the head updates its queues in the forward pass.

        A batch with a ``weight`` (B,) weights its samples.
        """
        output = self.model(*inputs_of(batch))
        loss = self.model.loss(
            output,
            batch["labels"],
            sample_weight=batch.get("weight"),
            label_smoothing=self.label_smoothing,
        )
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Sample, index: int, dataloader_idx: int = 0) -> None:
        """Log the accuracy, one number per missing half."""
        accuracy = self.accuracies[dataloader_idx]
        accuracy(self.model(*inputs_of(batch)).logits, batch["labels"])
        name = f"accuracy, {LOSSES[dataloader_idx] or 'nothing'} missing"
        self.log(name, accuracy, add_dataloader_idx=False, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW for encoders and head."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, fused=True)


def main(
    epochs: int = 20,
    devices: int = 1,
    accelerator: str = "cpu",
    output_dir: Path = Path("runs/train_lightning"),
    resume: Path | None = None,
    label_smoothing: float = 0.0,
) -> None:
    """Train, keep the last checkpoint, and evaluate with both halves and with each missing."""
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        default_root_dir=output_dir,
        logger=False,
        enable_model_summary=False,
        callbacks=[
            lightning.pytorch.callbacks.ModelCheckpoint(output_dir, save_last=True, save_top_k=0)
        ],
    )
    train = DataLoader(HalfDigits("train"), batch_size=32, shuffle=True)
    test = [DataLoader(HalfDigits("test", lost), batch_size=64) for lost in LOSSES]
    # The queues are buffers, so the checkpoint holds them and training resumes exactly.
    module = HalfDigitsModule(label_smoothing=label_smoothing)
    trainer.fit(module, train, ckpt_path=resume)
    for scores in trainer.test(module, test, verbose=False):
        if trainer.is_global_zero:
            print(*(f"{name}: {score:.3f}" for name, score in scores.items()))


if __name__ == "__main__":
    typer.run(main)
