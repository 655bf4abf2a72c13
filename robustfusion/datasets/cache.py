"""Feature vectors on disk, keyed by content, encoder and preprocessing."""

import hashlib
import os
import re
import uuid
import zlib
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

# Of each row: who it is, and a checksum of its bytes and type.
_INDEX = np.dtype([("name", "<u8", (2,)), ("checksum", "<u4")])
_Block = tuple[dict[int, str], NDArray[Any], NDArray[Any]]  # digests by row, checksums, all rows


class FeatureCache:
    """Feature vectors on disk, one for each content, encoder and preprocessing.

    A row is found again by the SHA-256 of the file it was made from, whatever the file's name,
    the data set or the split. Each call of ``store`` writes two arrays of NumPy: the rows, and an
    index of names and checksums, so that a look-up reads the index and the rows that it wants.
    Files are written under another name and then renamed: an interrupted run leaves whole files
    only, and any number of processes may fill and read one cache. A row that was damaged later,
    has another width than the others or is not finite counts as absent.

    Args:
        directory: where the files lie; made when needed.

    Shape:
        Rows are ``(D,)``; ``store`` takes ``(N, D)``.

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
        """Return the rows that are there, by digest."""
        blocks = self.stream(key, digests)
        return {name: row for names, rows in blocks for name, row in zip(names, rows, strict=True)}

    def stream(self, key: str, digests: Iterable[str]) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Yield the rows that are there in blocks, digests and ``(n, D)``, one file at a time.

        For more rows than should be in memory twice.
        """
        wanted = {_name(digest): digest for digest in digests}
        blocks: list[_Block] = []
        widths: Counter[Any] = Counter()
        for path in sorted(self._folder(key).glob("*.index.npy")) if wanted else ():
            # Damaged headers are parsed as Python, and raise anything.
            with suppress(Exception):
                if (block := _find(path, wanted)) is not None:
                    blocks.append(block)
                    widths[block[2].shape[1], block[2].dtype] += len(block[0])
        for held, checksums, rows in blocks:
            if (rows.shape[1], rows.dtype) == widths.most_common(1)[0][0]:
                part = np.asarray(rows[list(held)])
                whole = np.isfinite(part).all(1) & (_checksums(part) == checksums)
                if whole.any():
                    digests_there = np.array(list(held.values()), object)[whole].tolist()
                    yield digests_there, part if whole.all() else part[whole]

    def store(self, key: str, digests: Sequence[str], features: NDArray[Any]) -> None:
        """Write rows."""
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
        features = np.ascontiguousarray(features)
        index = np.empty(len(digests), _INDEX)
        names = b"".join(_name(digest) for digest in digests)
        index["name"] = np.frombuffer(names, "<u8").reshape(-1, 2)
        index["checksum"] = _checksums(features)
        stem = hashlib.sha256(names).hexdigest()[:16]
        # The index last: where it is, so are the rows.
        _write(folder / f"{stem}.npy", features)
        _write(folder / f"{stem}.index.npy", index)

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"key must be made of letters, digits, '_' and '-', got {key!r}")
        return self.directory / key

    def __repr__(self) -> str:
        """Name the directory."""
        return f"FeatureCache({str(self.directory)!r})"


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
    return hashlib.blake2b(digest.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _checksums(rows: NDArray[Any]) -> NDArray[np.uint32]:
    start = zlib.crc32(f"{rows.dtype.str} {rows.shape[1]}".encode())
    return np.array([zlib.crc32(row.data, start) for row in rows], np.uint32)


def _find(path: Path, wanted: dict[bytes, str]) -> _Block | None:
    """What a pair of files holds of what is wanted; only one of the rows is read yet."""
    index: NDArray[Any] = np.load(path, allow_pickle=False)
    if index.dtype != _INDEX or index.ndim != 1:
        raise ValueError(f"{path} is no index")
    names = index["name"].tobytes()
    each = ((row, names[16 * row : 16 * row + 16]) for row in range(len(index)))
    held = {row: wanted[name] for row, name in each if name in wanted}
    if not held:
        return None
    path = path.with_name(path.name.replace(".index", ""))
    rows: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    fits = rows.ndim == 2 and len(rows) == len(index) and np.issubdtype(rows.dtype, np.floating)
    one = next(iter(held))  # says whether the header of the rows is true
    if not fits or _checksums(np.asarray(rows[[one]]))[0] != index["checksum"][one]:
        raise ValueError(f"{path} does not fit its index")
    return held, index["checksum"][list(held)], rows


def _write(path: Path, array: NDArray[Any]) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        # Made by open(), not by tempfile: what may be read by others, the umask says.
        with temporary.open("xb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
