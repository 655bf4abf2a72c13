"""Corruption of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_inputs import generator

from robustfusion.disruption import (
    FeatureCorruption,
    ImageCorruption,
    TextCorruption,
)
from robustfusion.disruption._draws import count_of

TEXT = "What a lovely day at the beach, the sun is shining and café Zoë is open 😀"
TEXT_KINDS: tuple[Any, ...] = ("mask", "characters", "mojibake", "truncate")


@settings(deadline=None)
@given(text=st.text(max_size=60), severity=st.floats(0, 1), name=st.integers(0, 9))
def test_text_kinds_return_strings_and_are_deterministic(
    text: str, severity: float, name: int
) -> None:
    for kind in TEXT_KINDS:
        corrupt = TextCorruption(kind=kind, severity=severity)
        result = corrupt(text, generator(name))
        assert isinstance(result, str)
        assert result == corrupt(text, generator(name))
        if severity == 0:
            assert result == text


@given(words=st.integers(0, 30), severity=st.floats(0, 1), name=st.integers(0, 9))
def test_mask_replaces_exactly_its_share_of_the_words(
    words: int, severity: float, name: int
) -> None:
    text = "  ".join(f"w{i}" for i in range(words))
    result = TextCorruption(severity=severity, mask_token="<mask>")(text, generator(name))
    pieces = result.split("  ") if words else []
    assert pieces.count("<mask>") == count_of(severity, words)
    assert all(new in (f"w{i}", "<mask>") for i, new in enumerate(pieces))


def test_mask_default_is_40_to_80_percent_of_the_words() -> None:
    text = " ".join("word" for _ in range(100))
    counts = [TextCorruption()(text, generator(i)).count("[MASK]") for i in range(300)]
    assert min(counts) in (40, 41)
    assert max(counts) in (79, 80)
    assert np.mean(counts) == pytest.approx(60, abs=2)
    masked = {TextCorruption(severity=0.5)(TEXT, generator(i)) for i in range(20)}
    assert len(masked) > 15


def test_white_space_is_kept() -> None:
    assert TextCorruption(severity=1.0)(" a\n\nb\tc ", generator()) == " [MASK]\n\n[MASK]\t[MASK] "


def test_a_short_text_loses_a_word_and_an_empty_one_stays() -> None:
    assert TextCorruption(severity=0.4)("good", generator()) == "[MASK]"
    for kind in TEXT_KINDS:
        assert TextCorruption(kind=kind)("", generator()) == ""


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text_severity_is_monotone(kind: Any) -> None:
    text = " ".join(f"word{i}" for i in range(40))
    kept = []
    for severity in (0.0, 0.1, 0.4, 0.8, 1.0):
        result = TextCorruption(kind=kind, severity=severity)(text, generator())
        kept.append(len(set(result.split()) & set(text.split())))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 40
    assert kept[-1] == 0


def test_characters_hits_exactly_its_share() -> None:
    # Replaced letters are counted where nothing is lost or doubled, by an alignment.
    text = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 2
    result = TextCorruption(kind="characters", severity=0.25)(text, generator())
    gone = sum(1 for letter in result if letter.islower())
    lost_or_doubled = 13 - gone
    assert 0 < gone < 13
    assert abs(len(result) - len(text)) <= lost_or_doubled
    alphabet = TextCorruption(kind="characters", severity=1.0)("aaaa", generator())
    assert alphabet != "aaaa"


def test_mojibake_is_a_wrong_decoding_that_can_be_undone() -> None:
    corrupt = TextCorruption(kind="mojibake", severity=1.0)
    assert corrupt("Zoë", generator()) == "ZoÃ«"
    ascii_word = corrupt("good", generator())
    assert ascii_word != "good"
    assert ascii_word.encode("utf-16-le") == b"good"
    assert corrupt("day", generator()).encode("utf-16-le") == b"day "


@given(text=st.text(min_size=1, max_size=50), severity=st.floats(0, 1))
def test_truncate_leaves_a_beginning(text: str, severity: float) -> None:
    result = TextCorruption(kind="truncate", severity=severity)(text, generator())
    assert result
    assert text.startswith(result)
    assert len(result) == max(1, len(text) - count_of(severity, len(text)))


WORDS = " ".join(f"word{i}" for i in range(40))


@pytest.mark.parametrize("severity", [0.0, 0.1, 0.5, 1.0])
def test_repeat_blank_and_swapped_hit_their_share_of_the_words(severity: float) -> None:
    own, count = WORDS.split(), count_of(severity, 40)
    repeated = TextCorruption(kind="repeat", severity=severity)(WORDS, generator()).split()
    changed = [new for old, new in zip(own, repeated, strict=True) if new != old]
    assert len(changed) in (count, count - 1)  # the repeated word itself may be hit
    assert len(set(changed)) == (count > 0)
    assert set(repeated) <= set(own)
    blank = TextCorruption(kind="blank", severity=severity)(WORDS, generator()).split()
    assert sum(new == old for old, new in zip(own, blank, strict=True)) == 40 - count
    if severity == 1:
        assert not any(letter.isalnum() for letter in "".join(blank))
        assert "".join(blank).strip()  # not empty: an empty text would count as missing
    other = " ".join(f"other{i}" for i in range(10))
    swapped = TextCorruption(kind="swapped", severity=severity)(WORDS, generator(), other)
    if severity == 1:
        assert swapped == other
    assert [w for w in swapped.split() if w in own] == own[: 40 - count]
    assert sum(w.startswith("other") for w in swapped.split()) == count_of(severity, 10)


def test_swapped_needs_another_text() -> None:
    with pytest.raises(ValueError, match='kind="swapped" needs other, another text, got NoneType'):
        TextCorruption(kind="swapped")("a", generator())
    assert TextCorruption(kind="swapped")("", generator(), "b") == ""
    assert TextCorruption(kind="repeat")("", generator()) == ""


def test_text_must_be_a_string() -> None:
    with pytest.raises(TypeError, match="text must be a str, got list"):
        TextCorruption()(["a"], generator())  # type: ignore[arg-type]


@pytest.mark.parametrize("corruption", [ImageCorruption, TextCorruption, FeatureCorruption])
def test_wrong_kind_and_severity_are_named(corruption: Any) -> None:
    with pytest.raises(ValueError, match=r"kind must be one of 'mask', .* got 'fog'"):
        corruption(kind="fog")
    for bad in (-0.1, 1.1, (0.8, 0.4), (0.1, 0.2, 0.3), "0.5", float("nan"), True, None):
        with pytest.raises(ValueError, match="severity must be a number in"):
            corruption(severity=bad)


@pytest.mark.parametrize(
    "text", ["今天天气很好我很高兴", "今日はとてもいい天気", "สวัสดีชาวโลกทุกคน", "សួស្តីពិភពលោក"]
)
@pytest.mark.parametrize("kind", ["mask", "repeat", "blank", "mojibake", "swapped"])
def test_scripts_without_blanks_lose_only_a_share(text: str, kind: Any) -> None:
    damaged = TextCorruption(kind=kind, severity=0.4)(text, generator(1), "我不喜欢这个")
    assert damaged != text
    assert len(set(text) & set(damaged)) >= 0.3 * len(set(text))
    if kind == "swapped":
        assert " " not in damaged


def test_mask_of_a_text_with_and_without_blanks() -> None:
    mask = TextCorruption(kind="mask", severity=0.5)
    assert mask("so happy 今天", generator(0)).count("[MASK]") == 2
    assert mask("今天  天气\n", generator(0)).count("[MASK]") == 2
