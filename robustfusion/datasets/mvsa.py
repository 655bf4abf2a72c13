"""MVSA-Single and MVSA-Multiple from the folders of their official release."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustfusion.datasets.labels import (
    SENTIMENTS,
    LabelledPost,
    LabelRule,
    combine,
    majority,
    read_votes,
)
from robustfusion.datasets.post_dataset import OnBad, PostDataset
from robustfusion.datasets.report import Problem


class MVSA(PostDataset):
    r"""Tweets with photos, each labelled positive, neutral or negative.

    Reads ``data/{ID}.jpg``, ``data/{ID}.txt`` and ``labelResultAll.txt``. That file has one
    ``text,image`` column of labels in MVSA-Single and three, of three annotators, in
    MVSA-Multiple; which one it is shows in the file. With three annotators the text's label is
    what at least two say, and likewise the image's; a post without such a label is dropped.

    The two label rules make two data sets, never to be mixed in one table. On the official
    MVSA-Single, ``"joint"`` (Xu and Mao) leaves 4,511 posts and ``"equal"`` 2,592. Here counts
    are reported, not assumed: ``print(dataset.report())``.

    Args:
        root: folder with ``data`` and ``labelResultAll.txt``.
        label_rule: ``"joint"``: equal labels give that label, a neutral side gives way to the
            other, positive against negative is dropped. ``"equal"``: only equal labels are kept.
        on_bad: a bad row (no text, an image that cannot be decoded, a broken label) is listed
            and left out (``"skip"``), is an error (``"raise"``), or counts as a post without that
            modality (``"missing"``).
        image_transform: applied to the decoded RGB image.
        verify: read and decode every file once at the start.
        allow_outside: also follow links to files outside of the data folder.

    Raises:
        FileNotFoundError: without the folder, ``data`` or ``labelResultAll.txt``.
        ValueError: for an unknown option, an unusable label file, or a bad row with
            ``on_bad="raise"``.
        ImportError: without Pillow.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import MVSA
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "data").mkdir()
        >>> for name in ("1", "2"):
        ...     Image.new("RGB", (8, 8)).save(root / "data" / f"{name}.jpg")
        ...     _ = (root / "data" / f"{name}.txt").write_text("what a day")
        >>> rows = "ID\ttext,image\n1\tpositive,positive\n2\tneutral,negative\n"
        >>> _ = (root / "labelResultAll.txt").write_text(rows)
        >>> posts = MVSA(root)
        >>> posts[0]["inputs"]["text"], posts.labels
        ('what a day', [0, 2])
        >>> len(MVSA(root, label_rule="equal"))
        1

    Reference:
        Niu et al., Sentiment analysis on multi-view social data, MMM 2016.
        Xu and Mao, MultiSentiNet, CIKM 2017 (the joint rule and the majority vote).
    """

    class_names = SENTIMENTS

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        label_rule: LabelRule = "joint",
        on_bad: OnBad = "skip",
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        allow_outside: bool = False,
    ) -> None:
        if label_rule not in ("joint", "equal"):
            raise ValueError(f'label_rule must be "joint" or "equal", got {label_rule!r}')
        self.label_rule: LabelRule = label_rule
        self.annotators = 1
        super().__init__(
            root,
            on_bad=on_bad,
            image_transform=image_transform,
            verify=verify,
            allow_outside=allow_outside,
        )

    def _data_folder(self) -> Path:
        folder = self.root / "data"
        if not folder.is_dir():
            raise FileNotFoundError(f"root must hold the folder 'data', {folder} does not exist")
        return folder

    def _read_rows(self) -> tuple[list[LabelledPost], list[Problem]]:
        votes, problems = read_votes(self.root / "labelResultAll.txt")
        self.annotators = len(votes[0].text)
        rows = []
        for vote in votes:
            text, image = majority(vote.text), majority(vote.image)
            if text is None or image is None:
                side = "text" if text is None else "image"
                reason = f"no majority for the {side}: {', '.join(getattr(vote, side))}"
                problems.append(Problem(vote.id, "label rule", reason, "excluded"))
                continue
            label = combine(text, image, self.label_rule)
            if label is None:
                reason = f"text {text}, image {image}: dropped by the {self.label_rule} rule"
                problems.append(Problem(vote.id, "label rule", reason, "excluded"))
                continue
            rows.append(LabelledPost(vote.id, label, text, image))
        return rows, problems

    def _title(self) -> str:
        variant = "Single" if self.annotators == 1 else "Multiple"
        return f"MVSA-{variant}, label_rule={self.label_rule!r}"
