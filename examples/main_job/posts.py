"""Generate small image-text posts in the folder layout of MVSA, for examples and tests."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from main_job.drawing import draw_post
from main_job.wording import write_post
from robustfusion.datasets import stratified_split
from robustfusion.datasets.labels import SENTIMENTS, combine

SHARES = {"positive": 0.45, "neutral": 0.25, "negative": 0.30}
FRACTIONS = (0.7, 0.1, 0.2)


def make_posts(
    root: str | os.PathLike[str],
    *,
    n: int = 1500,
    seed: int = 0,
    mismatch: float = 0.2,
    size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a small data set of generated images and texts that ``datasets.MVSA`` reads.

    Each post has a sentiment: 45 % are positive, 25 % neutral and 30 % negative. Both its image (a
    face, weather or a heart) and its text (a few clauses, with negations and contrasts) show the
    sentiment. In a share ``mismatch`` of the posts one of them, by turns the image and the text,
    is neutral instead: the joint label rule gives these posts the label of the other one, the
    equal rule drops them. So neither modality by itself is enough for all posts.

    The same arguments give the same texts and pixels, and with one version of Pillow and its JPEG
    library also the same bytes. Post ``i`` depends on the seed and ``i`` only.

    Args:
        root: folder to create; nothing is done if it already holds exactly this data set.
        n: number of posts.
        seed: seed of all random choices.
        mismatch: share of the posts in which one modality is neutral and the other is not.
        size: width and height of the images in pixels.
        progress: called every 50 posts with the number of posts written and ``n``.

    Returns:
        ``root``, with ``data``, ``labelResultAll.txt``, ``splits.json`` (70/10/20 %, stratified)
        and ``posts.json`` (the arguments).

    Raises:
        ValueError: if an argument is out of range, or ``root`` holds other files.
        ImportError: if Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from main_job.posts import make_posts
        >>> root = make_posts(Path(tempfile.mkdtemp()) / "posts", n=20)
        >>> sorted(path.name for path in root.iterdir())
        ['data', 'labelResultAll.txt', 'posts.json', 'splits.json']
    """
    if n < 20:
        raise ValueError(f"n must be at least 20, got {n}")
    if not 0 <= mismatch <= 0.7:
        raise ValueError(f"mismatch must be in [0, 0.7], got {mismatch}")
    if not 32 <= size <= 512:
        raise ValueError(f"size must be in [32, 512], got {size}")
    root = Path(root)
    stamp = json.dumps({"n": n, "seed": seed, "mismatch": mismatch, "size": size, "version": 1})

    def is_complete() -> bool:
        return (root / "posts.json").is_file() and (root / "posts.json").read_text() == stamp

    if is_complete():
        return root
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"root must be empty or hold the same posts, {root} holds other files")
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written to a scratch folder and renamed, so that an interrupted run leaves no data set.
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(scratch, n, seed, mismatch, size, progress)
        (scratch / "posts.json").write_text(stamp)
        scratch.chmod(0o755)
        try:
            if root.exists():
                root.rmdir()
            scratch.rename(root)
        except OSError:
            if not is_complete():  # if it is, another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def plan_posts(n: int, seed: int, mismatch: float) -> list[tuple[str, str]]:
    """Choose the sentiments of the text and the image of each post.

    Returns:
        n pairs; in exactly ``round(mismatch * n)`` of them one is neutral and the other is not.
    """
    counts = {name: round(n * share) for name, share in SHARES.items()}
    counts["positive"] += n - sum(counts.values())
    labels = np.repeat(np.array(SENTIMENTS), [counts[name] for name in SENTIMENTS])
    order = np.random.default_rng([seed, n]).permutation(n)
    labels = labels[order]
    polar = np.flatnonzero(labels != "neutral")
    turn = {int(index): count for count, index in enumerate(polar[: round(mismatch * n)])}
    pairs = []
    for index, label in enumerate(labels.tolist()):
        text = "neutral" if turn.get(index, 1) % 2 == 0 else label
        image = "neutral" if index in turn and turn[index] % 2 == 1 else label
        pairs.append((text, image))
    return pairs


def _write(
    root: Path,
    n: int,
    seed: int,
    mismatch: float,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    (root / "data").mkdir()
    pairs = plan_posts(n, seed, mismatch)
    ids = [str(index) for index in range(1, n + 1)]
    for index, (text, image) in enumerate(pairs):
        random = np.random.default_rng([seed, index, 1])
        path = root / "data" / ids[index]
        path.with_suffix(".txt").write_bytes(f"{write_post(text, random)}\n".encode())
        draw_post(image, size, random).save(path.with_suffix(".jpg"), quality=90)
        if progress is not None and (index + 1) % 50 == 0:
            progress(index + 1, n)
    rows = [
        f"{post_id}\t{text},{image}" for post_id, (text, image) in zip(ids, pairs, strict=True)
    ]
    content = "\n".join(["ID\ttext,image", *rows]) + "\n"
    (root / "labelResultAll.txt").write_bytes(content.encode())
    labels = [combine(text, image, "joint") for text, image in pairs]
    stratified_split(labels, FRACTIONS, seed=seed, ids=ids).save(root / "splits.json")
