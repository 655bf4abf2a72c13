"""Train a DRF classifier on several processes with accelerate.

    torchrun --nproc-per-node 2 examples/train_ddp.py

Every rank stores the rows of the whole batch in its queues, so DistributedDataParallel needs no
special setting. The script also runs as one process, without torchrun. Needs
``robustfusion[examples]``.
"""

from pathlib import Path

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import HalfDigits, inputs_of, make_model
from torch.utils.data import DataLoader

from robustfusion.checkpoint import save_model


@torch.no_grad()
def accuracy(model: torch.nn.Module, lost: str | None, accelerator: Accelerator) -> float:
    """Return the accuracy on the test digits, with one half missing or none."""
    loader = accelerator.prepare(DataLoader(HalfDigits("test", lost), batch_size=64))
    model.eval()
    right, count = 0, 0
    for batch in loader:
        predicted = model(*inputs_of(batch)).logits.argmax(1)
        # This drops the samples that accelerate repeated to give every rank the same number.
        hits = accelerator.gather_for_metrics(predicted == batch["labels"])
        right, count = right + int(hits.sum()), count + len(hits)
    return right / count


def main(epochs: int = 20, output_dir: Path = Path("runs/train_ddp"), cpu: bool = True) -> None:
    """Train, evaluate with both halves and with each half missing, and save the model."""
    accelerator = Accelerator(cpu=cpu)
    set_seed(0)  # every rank starts from the same weights
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    loader = DataLoader(HalfDigits("train"), batch_size=32, shuffle=True)
    # DDP and the head need the same number of steps on every rank; accelerate ensures that.
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    drf = accelerator.unwrap_model(model)
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in loader:
            output = model(*inputs_of(batch))
            loss = drf.loss(output, batch["labels"])
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch:2d}  loss {loss.item():.3f}")
    for lost in (None, "upper", "lower"):
        score = accuracy(model, lost, accelerator)
        accelerator.print(f"accuracy, {lost or 'nothing'} missing: {score:.3f}")
    if accelerator.is_main_process:
        save_model(drf, output_dir, {"example": "digits"})
    accelerator.wait_for_everyone()  # a rank that exits early can stop the others
    accelerator.end_training()


if __name__ == "__main__":
    typer.run(main)
