"""Train a DRF classifier with the Trainer of transformers.

    python examples/train_trainer.py

``torchrun --nproc-per-node 2 examples/train_trainer.py`` trains on two processes. Needs
``robustfusion[examples,trainer]``.
"""

import sys
from pathlib import Path

try:
    import accelerate  # noqa: F401 - the Trainer reports it missing only at the end
    import torch
    import typer
    from digits import HalfDigits, inputs_of, make_model
    from torch import Tensor, nn
    from transformers import EvalPrediction, Trainer, TrainingArguments
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples,trainer]"')


class ForTrainer(nn.Module):
    """Take a batch as keywords and return ``loss`` and ``logits``, as the Trainer expects.

    Label smoothing is the head's, because ``label_smoothing_factor`` of the Trainer would replace
    its loss. A data set whose samples have a ``weight`` weights them.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = make_model()
        self.label_smoothing = label_smoothing

    def forward(
        self,
        upper: Tensor,
        lower: Tensor,
        has_upper: Tensor,
        has_lower: Tensor,
        labels: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits, and the loss if labels are passed."""
        batch = {"upper": upper, "lower": lower, "has_upper": has_upper, "has_lower": has_lower}
        output = self.model(*inputs_of(batch))
        if labels is None:
            return {"logits": output.logits}
        loss = self.model.loss(
            output, labels, sample_weight=weight, label_smoothing=self.label_smoothing
        )
        return {"loss": loss, "logits": output.logits}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the accuracy."""
    hits = prediction.predictions.argmax(1) == prediction.label_ids
    return {"accuracy": float(hits.mean())}


def main(
    epochs: int = 20,
    output_dir: Path = Path("runs/train_trainer"),
    resume: bool = False,
    cpu: bool = True,
    label_smoothing: float = 0.0,
) -> None:
    """Train, then evaluate with both halves and with each half missing."""
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        use_cpu=cpu,
        seed=0,
        report_to=[],
        save_strategy="epoch",
        save_total_limit=1,
        disable_tqdm=True,
        logging_strategy="epoch",
    )
    trainer = Trainer(
        ForTrainer(label_smoothing),
        arguments,
        train_dataset=HalfDigits("train"),
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=resume)
    for lost in (None, "upper", "lower"):
        scores = trainer.evaluate(HalfDigits("test", lost))
        if trainer.is_world_process_zero():
            print(f"accuracy, {lost or 'nothing'} missing: {scores['eval_accuracy']:.3f}")


if __name__ == "__main__":
    typer.run(main)
