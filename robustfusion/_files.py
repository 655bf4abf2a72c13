"""Replace a file at once: a reader finds the old content or the new one, never half of each."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, writer: str = "") -> None:
    """Write a file under another name, flush it to the disk, and rename it.

    Args:
        path: File; its folder is created where needed.
        content: What it holds afterwards.
        writer: Name of this writer where several may write the same file at the same time. With
            one writer the temporary file has one name, so that a run killed again and again
            leaves at most one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{writer}.partial")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename is on the disk only once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
