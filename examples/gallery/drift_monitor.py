"""Does the data of today look like that of yesterday? A feature queue as a drift monitor.

The queue holds what a service has seen; each batch is compared with it before it enters. Small
changes that no single sample shows, such as a camera that gets darker, show in the batch's mean.
"""

from pathlib import Path

import torch
from _gallery import BLUE, GREY, ORANGE, new_figure, output_dir, save
from sklearn.datasets import load_digits
from torch import Tensor

from robustfusion import FeatureQueue
from robustfusion.functional import fit_gaussian


def stream(batches: int, size: int, start: int, seed: int) -> list[Tensor]:
    """Batches of digits; from batch ``start`` on they lose 2 % of their light with each batch."""
    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(batches):
        rows = torch.randint(len(pixels), (size,), generator=generator)
        made.append(pixels[rows] * 0.98 ** max(0, index - start))
    return made


def shift(batch: Tensor, queue: FeatureQueue) -> float:
    """Squared distance of the means, relative to what chance makes of it: about 1 is well."""
    mean, scale = fit_gaussian(queue.storage, queue.valid, covariance_type="diag")
    varies = scale > 0.01  # pixels that are always black have nothing to say
    z = (batch.mean(0) - mean) / (scale * (1 / len(batch) + 1 / len(queue)) ** 0.5)
    return float(z[varies].square().mean())


def main(folder: Path, batches: int = 60, size: int = 64) -> float:
    """Run the stream past the monitor; return the number of batches until the alarm."""
    start = batches // 2
    queue = FeatureQueue(dim=64, capacity=1024)
    # The alarm line: what an undisturbed stream of the same length reached, and a bit.
    scores: dict[str, list[float]] = {}
    for name, begin in (("undisturbed", batches), ("light fades", start)):
        queue.reset()
        scores[name] = []
        for batch in stream(batches, size, begin, seed=len(scores)):
            scores[name].append(shift(batch, queue) if len(queue) >= 512 else 1.0)
            if len(queue) < 1024:  # the reference is what came first; keep it, do not follow
                queue.enqueue(batch)
    line = 1.2 * max(scores["undisturbed"])
    alarms = [i for i, score in enumerate(scores["light fades"]) if score > line]
    figure, panel = new_figure()
    for (name, values), colour in zip(scores.items(), (BLUE, ORANGE), strict=True):
        panel.plot(values, color=colour, label=name)
    panel.axhline(line, color=GREY, linestyle=":", label="alarm")
    panel.axvline(start, color=GREY, linewidth=0.8)
    panel.set(xlabel="batch", ylabel="shift of the mean", yscale="log")
    panel.annotate("light begins to fade", (start + 0.5, 20), va="top")
    panel.legend(frameon=False)
    save(figure, folder, "drift_monitor")
    if not alarms:
        print("no alarm")
        return float("inf")
    wait = alarms[0] - start
    print(f"alarm {wait} batches after the light began to fade, at {0.98**wait:.0%} of it")
    return wait


if __name__ == "__main__":
    main(output_dir(__doc__))
