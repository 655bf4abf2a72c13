"""TumEmo from the files of its official release."""

from collections.abc import Iterator
from pathlib import Path

from robustfusion.datasets.labels import LabelledPost, check_id, read_lines, usable_rows
from robustfusion.datasets.post_dataset import PostDataset
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

    Arguments and errors are those of :class:`PostDataset`, ``root`` being the folder with the
    label file and the unpacked archive. With 195,265 posts, ``verify=False`` saves minutes at the
    start.

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

    def _data_folder(self) -> Path:
        for name in FOLDERS:
            if (self.root / name).is_dir():
                return self.root / name
        raise FileNotFoundError(
            f"root must hold the unpacked posts in {' or '.join(FOLDERS)}, {self.root} does not"
        )

    def _read_rows(self) -> tuple[list[LabelledPost], list[Problem]]:
        path = self.root / LABEL_FILE
        labels, problems = usable_rows(path, _read_labels(path))
        return [LabelledPost(i, label, label, label) for i, label in labels.items()], problems

    def _title(self) -> str:
        return "TumEmo"


def _read_labels(path: Path) -> Iterator[tuple[int, str, str, str | None]]:
    for position, (number, line) in enumerate(read_lines(path)):
        fields = line.replace(",", " ").split() or [line]
        label, reason = fields[-1].lower(), check_id(fields[0])
        if position == 0 and label not in EMOTIONS and not fields[0].isdigit():
            continue
        if len(fields) != 2:
            reason = f"expected an id and an emotion, got {line[:40]!r}"
        elif label not in EMOTIONS:
            reason = f"unknown emotion {label[:40]!r}, expected one of {', '.join(EMOTIONS)}"
        yield number, fields[0], label, reason
