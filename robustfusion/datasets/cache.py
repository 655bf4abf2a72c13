"""Feature vectors on disk, keyed by content, encoder and preprocessing."""

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# What reading a damaged archive raises; zipfile's complaints about its header are RuntimeErrors.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class FeatureCache:
    """Feature vectors on disk, one for each content, encoder and preprocessing.

    A row is found again by the SHA-256 of the file it was made from, whatever the file's name,
    the data set or the split. Each file is written under another name and then renamed, so an
    interrupted run leaves whole files only; a file damaged later counts as absent.

    Args:
        directory: where the files lie; made when needed.

    Shape:
        Rows are ``(D,)``; ``store`` takes ``(N, D)``.

    Example:
        >>> import tempfile
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
        """Name a kind of feature.

        Args:
            modality: "image", "text" ...
            encoder: a name with its version, or a module, whose weights then count.
            preprocessing: what happens to the file before the encoder, in words.

        Returns:
            Sixteen hexadecimal digits.
        """
        name = module_fingerprint(encoder) if isinstance(encoder, nn.Module) else encoder
        parts = "\0".join((modality, name, preprocessing))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def lookup(self, key: str, digests: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return the rows that are there, by digest."""
        wanted = set(digests)
        found: dict[str, NDArray[Any]] = {}
        for path in sorted((self.directory / key).glob("*.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                    names, features = content["digests"].tolist(), content["features"]
            except _DAMAGED:
                continue
            rows = zip(names, features, strict=False)
            found.update({name: row for name, row in rows if name in wanted})
        return found

    def store(self, key: str, digests: Sequence[str], features: NDArray[Any]) -> None:
        """Write rows.

        Raises:
            ValueError: where ``features`` has no row for each digest.
        """
        if features.ndim != 2 or len(features) != len(digests):
            raise ValueError(
                f"features must have shape ({len(digests)}, D), got {tuple(features.shape)}"
            )
        if not digests:
            return
        folder = self.directory / key
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, digests=np.array(digests), features=features)
            os.replace(temporary, folder / f"{name}.npz")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def __repr__(self) -> str:
        """Name the directory."""
        return f"FeatureCache({str(self.directory)!r})"


def module_fingerprint(module: nn.Module) -> str:
    """Return a hash of a module: its class, its repr, every weight and buffer.

    Example:
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
