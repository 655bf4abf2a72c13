"""Corruption of texts as strings."""

import re
import string
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from robustfusion.disruption._draws import Severity, check_options, choose, count_of, draw_severity

TextKind: TypeAlias = Literal["mask", "characters", "mojibake", "truncate"]

_WORD = re.compile(r"\S+")


def _misread(word: str) -> str:
    """Return `word` as it reads when its bytes are decoded with the wrong encoding."""
    if not word.isascii():
        return word.encode("utf-8", "surrogatepass").decode("cp1252", "replace")
    # Code pages that extend ASCII read an ASCII word correctly; UTF-16 does not.
    data = word.encode("ascii")
    return (data + b" " * (len(data) % 2)).decode("utf-16-le")


def _characters(text: str, severity: float, generator: np.random.Generator) -> str:
    positions = [index for index, letter in enumerate(text) if not letter.isspace()]
    hit = choose(len(positions), count_of(severity, len(positions)), generator)
    actions = generator.integers(0, 4, len(positions))
    letters = generator.integers(0, 26, len(positions))
    result = list(text)
    for index, chosen, action, number in zip(positions, hit, actions, letters, strict=True):
        if not chosen:
            continue
        old = result[index]
        new = string.ascii_lowercase[number]
        if new == old:
            new = string.ascii_lowercase[(number + 1) % 26]
        # Half of the hits are wrong letters, the others lost or doubled ones.
        result[index] = (new, new, "", old + old)[action]
    return "".join(result)


@dataclass(frozen=True, kw_only=True)
class TextCorruption:
    """Corrupt one text, by a named kind and a severity: the share that is damaged, in [0, 1].

    - `mask`: words are replaced by `mask_token` (section 4.1);
    - `characters`: characters are replaced, lost or doubled;
    - `mojibake`: words are read in the wrong encoding: UTF-8 as Windows-1252, ASCII as UTF-16;
    - `truncate`: the end of the text is cut off; at least one character stays.

    White space separates words and is kept. The number of damaged words or characters is rounded
    to the nearest, and is at least one. A text without words is returned unchanged.

    Args:
        kind: The damage.
        severity: A number, or a pair (low, high) from which each sample draws uniformly.
        mask_token: The word that replaces a masked word: your tokenizer's mask token.

    Raises:
        ValueError: If `kind` is unknown or `severity` is not in [0, 1].
        TypeError: If the input is not a string.

    Example:
        >>> from robustfusion.disruption import TextCorruption, sample_generator
        >>> noise = sample_generator(0, "post-17", "text")
        >>> TextCorruption(kind="mask", severity=0.5)("what a lovely day", noise).count("[MASK]")
        2

    Reference:
        Section 4.1 of https://arxiv.org/abs/2511.18751.
    """

    kind: TextKind = "mask"
    severity: Severity = (0.4, 0.8)
    mask_token: str = "[MASK]"

    def __post_init__(self) -> None:
        check_options(self.kind, TextKind, self.severity)

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        """Return a corrupted copy of `text`; all randomness comes from `generator`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        severity = draw_severity(self.severity, generator)
        if self.kind == "characters":
            return _characters(text, severity, generator)
        if self.kind == "truncate":
            return text[: len(text) - min(count_of(severity, len(text)), max(len(text) - 1, 0))]
        words = len(_WORD.findall(text))
        chosen = iter(choose(words, count_of(severity, words), generator))

        def replace(match: re.Match[str]) -> str:
            if not next(chosen):
                return match[0]
            return self.mask_token if self.kind == "mask" else _misread(match[0])

        return _WORD.sub(replace, text)
