"""Corruption of texts as strings."""

import string
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from robustfusion._text import split_words, word_spans
from robustfusion.disruption._draws import Severity, check_options, choose, count_of, draw_severity

TextKind: TypeAlias = Literal[
    "mask", "characters", "mojibake", "truncate", "repeat", "blank", "swapped"
]

_FILLERS = (".", "-", "...", "?", "_")


def _misread(word: str) -> str:
    """Return `word` as it reads when its bytes are decoded with the wrong encoding."""
    if not word.isascii():
        return word.encode("utf-8", "surrogatepass").decode("cp1252", "replace")
    # Code pages that extend ASCII read an ASCII word correctly; UTF-16 does not.
    data = word.encode("ascii")
    return (data + b" " * (len(data) % 2)).decode("utf-16-le")


def _spaced_words(text: str) -> list[str]:
    """Return the words of a text, each after a blank unless it follows the last one directly."""
    spans = word_spans(text)
    ends = [-1, *(end for _, end in spans)]
    return [
        (" " if start > before else "") + text[start:end]
        for (start, end), before in zip(spans, ends, strict=False)
    ]


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
    - `truncate`: the end of the text is cut off; at least one character stays;
    - `repeat`: words are replaced by one word of the text, the same everywhere;
    - `blank`: words are replaced by punctuation, until the text holds nothing else;
    - `swapped`: the end of the text is replaced by the end of another text.

    White space separates words and is kept. In a script that is written without blanks, such as
    Chinese, Japanese, Thai or Khmer, a word is a character with its marks. The number of damaged
    words or characters is rounded to the nearest, and is at least one. A text without words is
    returned unchanged.

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

    def __call__(self, text: str, generator: np.random.Generator, other: str | None = None) -> str:
        """Return a corrupted copy of `text`; all randomness comes from `generator`.

        The kind `swapped` takes words from `other`, another text.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if self.kind == "swapped" and not isinstance(other, str):
            raise ValueError(
                f'kind="swapped" needs other, another text, got {type(other).__name__}'
            )
        severity = draw_severity(self.severity, generator)
        if self.kind == "characters":
            return _characters(text, severity, generator)
        if self.kind == "truncate":
            return text[: len(text) - min(count_of(severity, len(text)), max(len(text) - 1, 0))]
        words = split_words(text)
        if self.kind == "swapped":
            if not words or severity == 0:
                return text
            own, others = _spaced_words(text), _spaced_words(other or "")
            own = own[: len(own) - count_of(severity, len(own))]
            tail = others[len(others) - count_of(severity, len(others)) :]
            return "".join([*own, *tail]).strip()
        chosen = choose(len(words), count_of(severity, len(words)), generator)
        repeated = (
            words[int(generator.integers(len(words)))] if self.kind == "repeat" and words else ""
        )

        def replace(word: str) -> str:
            if self.kind == "mojibake":
                return _misread(word)
            if self.kind == "blank":
                return _FILLERS[int(generator.integers(len(_FILLERS)))]
            return repeated if self.kind == "repeat" else self.mask_token

        parts: list[str] = []
        last = 0
        for (start, end), hit in zip(word_spans(text), chosen, strict=True):
            word = text[start:end]
            parts += [text[last:start], replace(word) if hit else word]
            last = end
        return "".join([*parts, text[last:]])
