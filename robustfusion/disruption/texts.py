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
    # Every code page that extends ASCII leaves an ASCII word alone; UTF-16 does not.
    data = word.encode("ascii")
    return (data + b" " * (len(data) % 2)).decode("utf-16-le")


def _characters(text: str, severity: float, generator: np.random.Generator) -> str:
    places = [index for index, letter in enumerate(text) if not letter.isspace()]
    hit = choose(len(places), count_of(severity, len(places)), generator)
    actions = generator.integers(0, 4, len(places))
    letters = generator.integers(0, 26, len(places))
    result = list(text)
    for index, chosen, action, number in zip(places, hit, actions, letters, strict=True):
        if not chosen:
            continue
        old = result[index]
        new = string.ascii_lowercase[number]
        if new == old:
            new = string.ascii_lowercase[(number + 1) % 26]
        # Half of the hits are wrong letters, the rest lost and doubled ones.
        result[index] = (new, new, "", old + old)[action]
    return "".join(result)


@dataclass(frozen=True, kw_only=True)
class TextCorruption:
    """Corrupt one text, by a named kind and a severity: the share of what is hit, in [0, 1].

    - `mask`: words are replaced by `mask_token` (section 4.1);
    - `characters`: characters are replaced, lost or doubled;
    - `mojibake`: words are read in the wrong encoding: UTF-8 as Windows-1252, ASCII as UTF-16;
    - `truncate`: characters are cut off at the end; at least one stays.

    Words are what white space separates; white space itself is kept. Their number, or that of
    the characters, is the nearest to the share and at least one. A text without words comes back
    as it is.

    Args:
        kind: What is done to the text.
        severity: A number, or a pair (low, high) from which each sample draws uniformly.
        mask_token: What replaces a masked word: your tokenizer's mask token.

    Raises:
        ValueError: If `kind` is unknown or `severity` is no share.
        TypeError: If the input is no string.

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
