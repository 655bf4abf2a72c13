"""DRF by hand from the five parts; (n) is an equation of https://arxiv.org/abs/2511.18751."""

import torch
from torch import Tensor, nn

import robustfusion as rf
from robustfusion.functional import Gaussian, fit_gaussian


class ImageTextDRF(nn.Module):
    """Classify from image and text features, either of which may be missing or damaged."""

    def __init__(self, image_dim: int, text_dim: int, num_classes: int) -> None:
        super().__init__()
        self.image_quality = rf.GaussianQualityEstimator(image_dim, capacity=512)  # with queue
        self.text_quality = rf.GaussianQualityEstimator(text_dim, capacity=512)
        self.to_image = rf.ModalityConverter(text_dim, image_dim)
        self.to_text = rf.ModalityConverter(image_dim, text_dim)
        linear = [nn.Linear(d, 768) for d in (image_dim + text_dim, 768, 768)]
        self.network = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])
        self.classifier = nn.Linear(768, num_classes)
        self.fusion = rf.QualityWeightedFusion(normalize=False)
        self.recovery = rf.DistributionRecoveryLoss()
        self.constraint = rf.DistributionConstraintLoss()

    def forward(
        self, image: Tensor, text: Tensor, has_image: Tensor, has_text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the loss terms that need no labels."""
        image, text, paired = blank(image, has_image), blank(text, has_text), has_image & has_text
        # Recover each modality from the other.
        to_image, to_text = self.to_image(text), self.to_text(image)
        # Expand one sample into three, each weighted by the product of its densities: (9) to (12).
        image_only = (image, blank(to_text, has_image))
        text_only = (blank(to_image, has_text), text)
        candidates, log_quality = [], []
        for v, t in ((image, text), image_only, text_only):
            log_quality.append(self.image_quality.log_prob(v) + self.text_quality.log_prob(t))
            candidates.append(self.network(torch.cat([v, t], dim=-1)))
        usable = torch.stack([paired, has_image, has_text], 1)
        fused = self.fusion(torch.stack(candidates, 1), torch.stack(log_quality, 1), usable)
        # Keep features near their own mean (3), recover samples (4) and distributions (5) to (7).
        p_image, p_text = self.image_quality.distribution, self.text_quality.distribution
        recovered_image = converted(self.text_quality.queue, self.to_image, p_image)
        recovered_text = converted(self.image_quality.queue, self.to_text, p_text)
        loss = self.constraint(image, p_image.mean, [p_text.mean], has_image)
        loss = loss + self.recovery(to_image, image, recovered_image, p_image, paired=paired)
        loss = loss + self.constraint(text, p_text.mean, [p_image.mean], has_text)
        loss = loss + self.recovery(to_text, text, recovered_text, p_text, paired=paired)
        if self.training:
            remember(image, has_image, self.image_quality)
            remember(text, has_text, self.text_quality)
        return self.classifier(fused), loss  # (14)


def blank(features: Tensor, available: Tensor) -> Tensor:
    """Set missing rows to zero before a network sees them: they may hold anything."""
    return features.where(available[:, None], 0.0)


def converted(queue: rf.FeatureQueue, convert: nn.Module, reference: Gaussian) -> Gaussian:
    """Return (5), (6); with fewer than two rows return the reference, so that the loss is zero."""
    fitted, enough = fit_gaussian(convert(queue.storage.clone()), queue.valid), queue.count >= 2
    mean, scale = (torch.where(enough, a, b) for a, b in zip(fitted, reference, strict=True))
    return Gaussian(mean, scale)


@torch.no_grad()
def remember(x: Tensor, available: Tensor, quality: rf.GaussianQualityEstimator) -> None:
    """Enqueue features denser than the mean of the queue (13), which also updates (1) and (2)."""
    queue = quality.queue
    score, queued = quality.log_prob(x), quality.log_prob(queue.storage)
    quality.observe(x, available & rf.admit_above_mean(score, queued, queue.valid))


def main(steps: int = 40) -> None:
    """Train on synthetic features, a third of them with one modality missing."""
    torch.manual_seed(0)
    model, centers = ImageTextDRF(16, 12, num_classes=3), 0.2 * torch.randn(3, 28)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for step in range(1, steps + 1):
        labels = torch.randint(3, (32,))
        image, text = (centers[labels] + 0.1 * torch.randn(32, 28)).split([16, 12], dim=1)
        luck = torch.rand(32)
        logits, loss = model(image, text, luck > 1 / 6, luck < 5 / 6)
        loss = loss + nn.functional.cross_entropy(logits, labels)  # (15), (16)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            accuracy = (logits.argmax(1) == labels).float().mean()
            print(f"step {step:3d}  loss {loss.item():.3f}  accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
