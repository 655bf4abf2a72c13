"""Text as people and tables hand it over: missing values, well-formed characters, words."""

import math
import re
import unicodedata
from collections.abc import Mapping
from numbers import Number
from typing import Any

# Control characters other than tab and line ends, and the byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Scripts that are written without blanks between words: Thai, Lao, Tibetan, Myanmar, Khmer, the
# kana, Bopomofo and Chinese characters. Korean and Ethiopic use blanks.
_NO_BLANKS = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035"
    "\u303b\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff"
    "\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U0001b2ff\U00020000-\U0003ffff]"
)


def is_missing(value: Any) -> bool:
    """Return whether a value of any type is missing: None, blanks, NaN, ``pandas.NA``, or empty.

    Example:
        >>> from robustfusion._text import is_missing
        >>> [is_missing(value) for value in (None, " ", float("nan"), [], {})]
        [True, True, True, True, True]
        >>> is_missing(0), is_missing("nan"), is_missing([0])
        (False, False, False)
    """
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, bytes | list | tuple | set | frozenset | Mapping):
        return not value
    if isinstance(value, Number):
        try:
            return math.isnan(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return False  # a complex number, a huge integer, a signaling NaN
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def clean_text(value: Any) -> str:
    r"""Return a value as well-formed text without control characters.

    Two surrogates that belong together become their character; a single one, half an emoji, has
    no meaning and becomes U+FFFD. Tabs and line ends stay.

    Example:
        >>> from robustfusion._text import clean_text
        >>> clean_text("so \ud83d\ude00 happy \ud83d\x00")
        'so 😀 happy �'
    """
    text = str(value)
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _CONTROL.sub("", text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each word of a text.

    Blanks separate words. In a script that is written without blanks, each character with its
    marks is a word of its own.
    """
    if not _NO_BLANKS.search(text):
        return [match.span() for match in re.finditer(r"\S+", text)]
    spans: list[tuple[int, int]] = []
    own = True  # whether the last span is a character of its own, or a blank came after it
    for index, character in enumerate(text):
        if character.isspace():
            own = True
        elif unicodedata.category(character)[0] == "M" and spans and spans[-1][1] == index:
            spans[-1] = (spans[-1][0], index + 1)
        elif _NO_BLANKS.match(character):
            spans.append((index, index + 1))
            own = True
        elif own:
            spans.append((index, index + 1))
            own = False
        else:
            spans[-1] = (spans[-1][0], index + 1)
    return spans


def split_words(text: str) -> list[str]:
    """Return the words of a text, see :func:`word_spans`.

    Example:
        >>> from robustfusion._text import split_words
        >>> split_words("so happy 今天 2024年")
        ['so', 'happy', '今', '天', '2024', '年']
    """
    return [text[start:end] for start, end in word_spans(text)]
