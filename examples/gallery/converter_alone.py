"""Recover one modality from another: converter and recovery loss, without a head.

A converter learns to predict the lower half of a digit from its upper half. With only the sample
term of the loss it regresses to the mean, so the recovered halves vary too little. The
distribution term restores their variation, at the price of a larger error. Any paired features
can be used.
"""

import sys
from pathlib import Path

try:
    import torch
    from _gallery import new_figure, output_dir, save
    from sklearn.datasets import load_digits

    from robustfusion import DistributionRecoveryLoss, ModalityConverter
    from robustfusion.functional import fit_gaussian
except ImportError as error:
    sys.exit(f'{error}. This example needs: pip install -e ".[examples]"')


def train(
    upper: torch.Tensor, lower: torch.Tensor, weight: float, steps: int
) -> ModalityConverter:
    """Train one converter; ``weight`` belongs to the distribution term of the loss."""
    torch.manual_seed(0)
    converter = ModalityConverter(32, 32, hidden_features=128)
    criterion = DistributionRecoveryLoss(distribution_weight=weight)
    optimizer = torch.optim.AdamW(converter.parameters(), lr=2e-3, fused=True)
    for _ in range(steps):
        rows = torch.randint(len(upper), (256,))
        recovered, target = converter(upper[rows]), lower[rows]
        loss = criterion(recovered, target, fit_gaussian(recovered), fit_gaussian(target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return converter.eval()


@torch.no_grad()
def main(folder: Path, steps: int = 600) -> dict[str, tuple[float, float]]:
    """Return error and standard deviation of the recovered halves, relative to the real ones."""
    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    test = torch.arange(len(pixels)) % 4 == 0
    upper, lower = pixels[:, :32], pixels[:, 32:]
    real = lower[test]
    variance = real.var(0).sum()
    rows: dict[str, torch.Tensor] = {"real": real}
    scores = {}
    for name, weight in (("sample term", 0.0), ("both terms", 1.0)):
        with torch.enable_grad():
            converter = train(upper[~test], lower[~test], weight, steps)
        rows[name] = converter(upper[test])
        error = float((rows[name] - real).square().sum(1).mean() / variance)
        std_ratio = float((rows[name].var(0).sum() / variance).sqrt())
        scores[name] = (error, std_ratio)
        print(f"{name:12} error {error:.2f} (mean: 1), std {std_ratio:.2f} (real: 1)")
    figure, panels = new_figure(len(rows), width=6.5)
    index = torch.arange(0, 40, 4)
    for panel, (name, values) in zip(panels, rows.items(), strict=True):
        both = torch.cat([upper[test][index], values[index]], dim=1).view(2, 5, 8, 8)
        tiled = torch.nn.functional.pad(both, (1, 1, 1, 1), value=1.0)
        sheet = tiled.permute(1, 2, 0, 3).reshape(50, 20).clamp(0, 1)
        panel.imshow(sheet.numpy(), cmap="gray_r")
        panel.axis("off")
        ratio = "" if name == "real" else f"\nstd {scores[name][1]:.2f} of the real"
        panel.set_title(f"lower half:\n{name}{ratio}", fontsize=9)
    save(figure, folder, "converter_alone")
    return scores


if __name__ == "__main__":
    main(output_dir(__doc__))
