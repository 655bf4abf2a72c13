"""Training posts of which a share is damaged, anew in each epoch."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from robustfusion.datasets import PostDataset
from robustfusion.disruption import CachedFeatures, DisruptedDataset, Disruption, RandomDamage


class DamagedPosts:
    """Posts for `train`, one input of a share of them damaged by a random kind and severity.

    The draws depend on (seed, epoch, id of the post) alone, so a resumed training goes on alike.

    Args:
        posts: The prepared posts.
        dataset: The same posts, raw and in the same order.
        encoders: By modality, each with ``prepare``; none of the damaged ones is frozen.
        kinds: By modality, the kinds of damage to draw from.
        share: Share of the posts to damage.
        seed: Of the run.
    """

    def __init__(
        self,
        posts: CachedFeatures,
        dataset: PostDataset,
        encoders: Mapping[str, Any],
        kinds: Mapping[str, Sequence[str]],
        share: float,
        seed: int,
    ) -> None:
        self.posts, self.dataset, self.encoders = posts, dataset, encoders
        self.damages = {name: RandomDamage(kinds=names) for name, names in kinds.items()}
        self.share, self.seed = share, seed

    def __call__(self, epoch: int) -> CachedFeatures:
        """Return the posts as they are in an epoch."""
        names, seed = tuple(self.posts.modalities), 1000 * self.seed + epoch
        some = len(self.damages) < len(names)
        disruption = Disruption(
            names,
            setting="C",
            strategy="fixed" if some else "random",
            modality=tuple(self.damages) if some else None,
            rate=self.share,
            seed=seed,
        )
        damaged = DisruptedDataset(
            self.dataset,
            disruption,
            self.damages,
            transforms={name: self.encoders[name].prepare for name in self.damages},
            available=self.posts.available,
        )
        posts = copy.copy(self.posts)
        posts.features = {
            name: copy.deepcopy(values) if name in self.damages else values
            for name, values in self.posts.features.items()
        }
        for name in self.damages:
            for row in damaged.plan.corrupted[name].nonzero()[:, 0].tolist():
                write(posts.features[name], row, damaged[row]["inputs"][name])
        return posts


def write(values: Any, row: int, value: Any) -> None:
    """Write one input into a row of a tensor, or of a mapping of tensors."""
    if isinstance(values, Mapping):
        for key, part in values.items():
            write(part, row, value[key])
    else:
        values[row] = value
