"""Feature vectors on disk, keyed by content, encoder and preprocessing."""

import hashlib
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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

    A row is found again by the SHA-256 of the file it was made from, whatever the file's name,
    the data set or the split. Each call of ``store`` writes an ``.npz`` of NumPy under another
    name and renames it: an interrupted run leaves whole files only, and any number of processes
    may fill and read one cache. Rows of a file that was damaged later, which its checksums tell,
    count as absent, and so does one that has another width than the others or is not finite.

    Args:
        directory: where the files lie; made when needed.

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
            preprocessing: what happens to the file before the encoder, in words.
        """
        name = module_fingerprint(encoder) if isinstance(encoder, nn.Module) else encoder
        parts = "\0".join((modality, name, preprocessing))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def lookup(self, key: str, digests: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return the rows ``(D,)`` that are there, by digest."""
        blocks = self.stream(key, digests)
        return {name: row for names, rows in blocks for name, row in zip(names, rows, strict=True)}

    def stream(self, key: str, digests: Iterable[str]) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Yield the rows that are there in blocks, digests and ``(n, D)``, one file at a time.

        For more rows than should be in memory twice.
        """
        wanted = {_name(digest): digest for digest in digests}
        held: dict[Path, dict[int, str]] = {}
        kinds: Counter[str] = Counter()
        for path in sorted(self._folder(key).glob("*.npz")) if wanted else ():
            # Of a damaged file anything may be raised.
            with suppress(Exception), path.open("rb") as opened:
                file = np.load(opened, allow_pickle=False)
                names, kind = file["names"].tobytes(), str(file["kind"])
                each = ((row, names[16 * row : 16 * row + 16]) for row in range(len(names) // 16))
                if found := {row: wanted[name] for row, name in each if name in wanted}:
                    held[path] = found
                    kinds[kind] += len(found)
        for path, found in held.items():
            whole: NDArray[np.bool_] = np.zeros(0, np.bool_)
            with suppress(Exception), path.open("rb") as opened:
                file = np.load(opened, allow_pickle=False)
                rows, usual = file["rows"], kinds.most_common(1)[0][0] == str(file["kind"])
                fits = len(rows) == len(file["names"]) and _kind(rows) == str(file["kind"])
                if usual and fits and rows.dtype.kind == "f":
                    rows = rows[list(found)]
                    whole = np.isfinite(rows).all(1)
            if whole.any():
                yield np.array(list(found.values()), object)[whole].tolist(), rows[whole]

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
        names = b"".join(_name(digest) for digest in digests)
        path = folder / f"{hashlib.sha256(names).hexdigest()[:16]}.npz"
        index = np.frombuffer(names, np.uint8).reshape(-1, 16)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            # Made by open(), not by tempfile: what may be read by others, the umask says.
            with temporary.open("xb") as file:
                np.savez(file, names=index, kind=np.array(_kind(features)), rows=features)
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


def _name(digest: str) -> bytes:
    # 16 bytes: that two of a million digests agree has a chance of 1 in 10^27.
    return hashlib.blake2b(digest.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _kind(rows: NDArray[Any]) -> str:
    return f"{rows.shape[1:]} {rows.dtype.str}"
