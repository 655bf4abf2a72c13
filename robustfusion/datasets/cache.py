"""Feature vectors on disk, keyed by content, encoder and preprocessing."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_KEY = re.compile(r"[A-Za-z0-9_\-]+")


class FeatureCache:
    """Feature vectors on disk, one for each content, encoder and preprocessing.

    The SHA-256 of a file's content identifies its row, whatever the file's name, the data set or
    the split. Each call of ``store`` writes an ``.npz`` of NumPy under another name and renames
    it: an interrupted run leaves whole files only, and any number of processes may fill and read
    one cache. Rows of a file that was damaged later, as its checksums show, count as absent, and
    so do rows that are not finite or have another width than most.

    Args:
        directory: folder of the files, created when needed.

    Raises:
        ValueError: for a key that is not made of letters, digits, '_' and '-', or ``features``
            without a row for each digest.
        TypeError: for ``features`` that are no floating numbers.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from robustfusion.datasets import FeatureCache
        >>> cache = FeatureCache(tempfile.mkdtemp())
        >>> key = FeatureCache.key("image", "resnet18", "resize 224")
        >>> cache.store(key, ["aa", "bb"], np.eye(2, dtype=np.float32))
        >>> cache.lookup(key, ["bb", "cc"])
        {'bb': array([0., 1.], dtype=float32)}
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    @staticmethod
    def key(modality: str, encoder: str | nn.Module, preprocessing: str) -> str:
        """Name a kind of feature by sixteen hexadecimal digits.

        Args:
            modality: "image", "text" ...
            encoder: a name with its version, or a module, whose weights then count.
            preprocessing: description of the steps before the encoder, in words.
        """
        name = module_fingerprint(encoder) if isinstance(encoder, nn.Module) else encoder
        parts = "\0".join((modality, name, preprocessing))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def lookup(self, key: str, digests: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return the stored rows ``(D,)`` by digest."""
        blocks = self.stream(key, digests)
        return {name: row for names, rows in blocks for name, row in zip(names, rows, strict=True)}

    def stream(self, key: str, digests: Iterable[str]) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Yield the stored rows in blocks, digests and ``(n, D)``, one file at a time.

        It serves where the rows are too many to be in memory twice.
        """
        wanted = {digest.encode("utf-8", "surrogatepass"): digest for digest in digests}
        shape = None
        # The largest file decides which width counts.
        paths = self._folder(key).glob("*.npz") if wanted else ()
        for path in sorted(paths, key=lambda path: (-path.stat().st_size, path)):
            block = _load(path, wanted)
            if block is None or shape not in (None, block[1].shape[1:]):
                continue
            shape = block[1].shape[1:]
            yield block

    def store(self, key: str, digests: Sequence[str], features: NDArray[Any]) -> None:
        """Write rows ``(N, D)``."""
        if features.ndim != 2 or len(features) != len(digests):
            raise ValueError(
                f"features must have shape ({len(digests)}, D), got {tuple(features.shape)}"
            )
        if not np.issubdtype(features.dtype, np.floating):
            raise TypeError(f"features must be floating numbers, got {features.dtype}")
        folder = self._folder(key)
        if not digests:
            return
        folder.mkdir(parents=True, exist_ok=True)
        names = np.array([digest.encode("utf-8", "surrogatepass") for digest in digests])
        path = folder / f"{hashlib.sha256(names.tobytes()).hexdigest()[:16]}.npz"
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            # open() respects the umask, tempfile would not.
            with temporary.open("xb") as file:
                np.savez(file, names=names, rows=features)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"key must be made of letters, digits, '_' and '-', got {key!r}")
        return self.directory / key


def module_fingerprint(module: nn.Module) -> str:
    """Return a hash of a module: its class, its repr, every weight and buffer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from robustfusion.datasets import module_fingerprint
        >>> layer = nn.Linear(2, 2)
        >>> before = module_fingerprint(layer)
        >>> with torch.no_grad():
        ...     _ = layer.bias.add_(1)
        >>> module_fingerprint(layer) == before
        False
    """
    state = hashlib.sha256(f"{type(module).__module__} {module!r}".encode())
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            state.update(f"{name} {value!r}".encode())
            continue
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _load(path: Path, wanted: Mapping[bytes, str]) -> tuple[list[str], NDArray[Any]] | None:
    """Return the wanted rows of a file, None where there are none or the file is damaged."""
    with suppress(Exception), path.open("rb") as opened:  # a damaged file may raise anything
        file = np.load(opened, allow_pickle=False)
        names = file["names"].tolist()
        chosen = [row for row, name in enumerate(names) if name in wanted]
        if chosen:
            rows = file["rows"]
            if rows.ndim == 2 and len(rows) == len(names) and rows.dtype.kind == "f":
                chosen = [row for row in chosen if np.isfinite(rows[row]).all()]
                return [wanted[names[row]] for row in chosen], rows[chosen]
    return None
