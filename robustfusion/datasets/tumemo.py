"""TumEmo from the files of its official release."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustfusion.datasets.labels import LabelledPost, check_id, read_lines
from robustfusion.datasets.post_dataset import OnBad, PostDataset
from robustfusion.datasets.report import Problem

EMOTIONS = ("angry", "bored", "calm", "fear", "happy", "love", "sad")
LABEL_FILE = "all_data_id_and_label.txt"
FOLDERS = ("all_data", "data")


class TumEmo(PostDataset):
    r"""Tumblr posts of an image and a text, each under one of seven emotions.

    The release is a label file, ``all_data_id_and_label.txt``, and an archive of all posts whose
    file names are the ids: ``0.txt`` and ``0.jpg``, ``1.txt`` and so on. Assumed here, since the
    release documents no more than that: each line of the label file is an id and an emotion with
    blanks, a tab or a comma between them; a first line that is neither is a header; letter case
    does not matter; the archive was unpacked to ``all_data`` (its own name) or ``data`` beside
    the label file. A file that is laid out otherwise is an error that says so.

    With 195,265 posts, ``verify=False`` saves minutes at the start.

    Args:
        root: folder with the label file and the unpacked archive.
        on_bad: a bad row is listed and skipped, raised, or its modality taken as missing, as
            in :class:`MVSA`.
        image_transform: applied to the decoded RGB image.
        verify: read and decode every file once at the start.
        allow_outside: also follow links to files outside of the data folder.

    Raises:
        FileNotFoundError: without the folder, the posts or the label file.
        ValueError: for an unusable label file, or a bad row with ``on_bad="raise"``.
        ImportError: without Pillow.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import TumEmo
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "all_data").mkdir()
        >>> Image.new("RGB", (8, 8)).save(root / "all_data" / "0.jpg")
        >>> _ = (root / "all_data" / "0.txt").write_text("rain again")
        >>> _ = (root / "all_data_id_and_label.txt").write_text("ID label\n0 Sad\n")
        >>> TumEmo(root)[0]["label_name"]
        'sad'

    Reference:
        Yang et al., Image-text multimodal emotion classification via multi-view attentional
        network, IEEE Transactions on Multimedia 2021.
    """

    class_names = EMOTIONS

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        on_bad: OnBad = "skip",
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        allow_outside: bool = False,
    ) -> None:
        super().__init__(
            root,
            on_bad=on_bad,
            image_transform=image_transform,
            verify=verify,
            allow_outside=allow_outside,
        )

    def _data_folder(self) -> Path:
        for name in FOLDERS:
            if (self.root / name).is_dir():
                return self.root / name
        raise FileNotFoundError(
            f"root must hold the unpacked posts in {' or '.join(FOLDERS)}, {self.root} does not"
        )

    def _read_rows(self) -> tuple[list[LabelledPost], list[Problem]]:
        path = self.root / LABEL_FILE
        rows: dict[str, LabelledPost] = {}
        problems: list[Problem] = []
        for position, (number, line) in enumerate(read_lines(path)):
            fields = line.replace(",", " ").split()
            label = fields[-1].lower()
            if position == 0 and label not in EMOTIONS and not fields[0].isdigit():
                continue
            reason = check_id(fields[0])
            if len(fields) != 2:
                reason = f"expected an id and an emotion, got {line[:40]!r}"
            elif label not in EMOTIONS:
                reason = f"unknown emotion {label[:40]!r}, expected one of {', '.join(EMOTIONS)}"
            elif fields[0] in rows:
                same = "same" if rows[fields[0]].label_name == label else "different"
                reason = f"the id occurred before, with the {same} label; the first row counts"
            if reason is None:
                rows[fields[0]] = LabelledPost(fields[0], label, label, label)
            else:
                problems.append(
                    Problem(fields[0], "label row", f"line {number}: {reason}", "skipped")
                )
        if not rows:
            detail = f"; {problems[0].reason}" if problems else ""
            raise ValueError(f"no row of {path} could be read{detail}")
        return list(rows.values()), problems

    def _title(self) -> str:
        return "TumEmo"
