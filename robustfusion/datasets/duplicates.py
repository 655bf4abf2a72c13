"""Posts that share a text or an image and would leak between splits, whatever their names."""

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from robustfusion.datasets.report import DuplicateKind

K = TypeVar("K", bound=Hashable)

# A content that so many posts share, and at least this share of all, whose other halves differ,
# is a stock picture or caption.
MIN_STOCK, STOCK_SHARE = 5, 0.01

_URL = re.compile(r"(?:https?://|www\.)\S*")
_HANDLE = re.compile(r"@\w+")
_RETWEET = re.compile(r"\brt\b")
_NOT_WORD = re.compile(r"[^\w#]+")


def normalize_text(text: str) -> str:
    """Reduce a post to what its author wrote: no URLs, handles, ``RT``, case or punctuation.

    Example:
        >>> from robustfusion.datasets import normalize_text
        >>> normalize_text("RT @ann: So HAPPY today!! #sun http://t.co/abc")
        'so happy today #sun'
    """
    text = _RETWEET.sub(" ", _HANDLE.sub(" ", _URL.sub(" ", text.lower())))
    return _NOT_WORD.sub(" ", text).strip()


def equal_groups(keys: Mapping[str, K | None]) -> list[tuple[str, ...]]:
    """Group the ids whose keys are equal; None is equal to nothing."""
    groups: defaultdict[K, list[str]] = defaultdict(list)
    for post_id, key in keys.items():
        if key is not None:
            groups[key].append(post_id)
    return [tuple(ids) for ids in groups.values() if len(ids) > 1]


def near_groups(
    fingerprints: Mapping[str, NDArray[np.bool_] | None], tolerance: int = 8
) -> list[tuple[str, ...]]:
    """Group the ids whose fingerprints differ in at most ``tolerance`` bits, chains included.

    None is near to nothing. Two unrelated pictures differ in 128 of 256 bits on average.
    """
    ids = [post_id for post_id, bits in fingerprints.items() if bits is not None]
    if len(ids) < 2:
        return []
    # +-1 vectors: the number of differing bits is (length - inner product) / 2.
    bits = np.stack([bits for bits in fingerprints.values() if bits is not None])
    signs = np.where(bits, np.float32(1), np.float32(-1))
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(ids), 1024):  # in blocks: 80 MB of products for 20,000 pictures
        products = signs[start : start + 1024] @ signs.T
        rows, columns = np.nonzero(products >= signs.shape[1] - 2 * tolerance)
        pairs += [(ids[start + i], ids[j]) for i, j in zip(rows, columns, strict=True)]
    return equal_groups(connect(ids, pairs))


def find_duplicates(
    texts: Mapping[str, str | None],
    digests: Mapping[str, str],
    fingerprints: Mapping[str, NDArray[np.bool_] | None],
    total: int,
) -> dict[DuplicateKind, list[tuple[str, ...]]]:
    """Group posts that share a text or an image, and apart from these stock images and texts.

    A "no picture" image or a "photo" caption under many posts that differ otherwise does not make
    duplicates of them; those of its posts that are equal in both are.

    Args:
        texts: normalized texts by post, None where nothing is left.
        digests: digests of images by post.
        fingerprints: perceptual hashes of images by post.
        total: number of posts.
    """
    limit = max(MIN_STOCK, math.ceil(STOCK_SHARE * total))
    same, near = equal_groups(digests), near_groups(fingerprints)
    picture = {i: group[0] for group in [*same, *near] for i in group}
    pictures = {i: picture.get(i, i) for i in digests}
    text, stock_texts = _without_stock(equal_groups(texts), pictures, limit)
    image, stock_images = _without_stock(same, texts, limit)
    near_image, near_stock = _without_stock(near, texts, limit)
    larger = {i for group in near_stock for i in group}
    return {
        "text": text,
        "image": image,
        "near image": [ids for ids in near_image if ids not in set(image)],
        "stock text": stock_texts,
        "stock image": near_stock + [ids for ids in stock_images if not larger.issuperset(ids)],
    }


def _without_stock(
    groups: Iterable[tuple[str, ...]], others: Mapping[str, str | None], limit: int
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return groups of duplicates, and groups that share a content with many other halves."""
    duplicates, stock = [], []
    for ids in groups:
        if len({others.get(i) for i in ids} - {None}) < limit:
            duplicates.append(ids)
        else:
            stock.append(ids)
            duplicates += equal_groups({i: (others.get(i),) for i in ids})
    return duplicates, stock


def connect(ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Give every id the first id that it is linked to, directly or through others."""
    order = {post_id: index for index, post_id in enumerate(ids)}
    parent = {post_id: post_id for post_id in ids}

    def root(post_id: str) -> str:
        while parent[post_id] != post_id:
            parent[post_id] = parent[parent[post_id]]
            post_id = parent[post_id]
        return post_id

    for one, other in pairs:
        first, second = sorted((root(one), root(other)), key=order.__getitem__)
        parent[second] = first
    return {post_id: root(post_id) for post_id in ids}
