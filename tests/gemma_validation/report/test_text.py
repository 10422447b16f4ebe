"""Text and numbers as they are shown."""

from __future__ import annotations

import math

import pytest

from gemma_validation.report.text import number, percent, public_name, shortened, visible


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0"),
        (-0.0, "-0"),
        (1.23456, "1.235"),
        (1.23456e-6, "1.23e-6"),
        (0.001, "0.001"),
        (123456.0, "1.23e5"),
        (12345.6, "12346"),
        (-2.5e-9, "-2.50e-9"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
        (-math.inf, "minus infinite"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares() -> None:
    assert percent(0.99987) == "99.987 %"
    assert percent(math.nan) == "not a number"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\x00", "a␉b␀"),
        ("a\nb", "a⏎b"),
        ("\u202eabc", "<U+202E>abc"),
        ("\ud800", "\ufffd"),
        # some scripts need joiners between letters; alone they would be nothing to see
        ("क\u200cष", "क\u200cष"),
        ("\u200c", "<U+200C>"),
        ("", ""),
        ("\U000e0041", "<U+E0041>"),
    ],
)
def test_nothing_is_hidden(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_can_be_kept() -> None:
    assert visible("a\r\nb", lines=True) == "a␍⏎\nb"


def test_long_text_keeps_one_end() -> None:
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abcdef", 4, keep_end=True) == "…def"
    assert shortened("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("google/gemma-2-2b", "google/gemma-2-2b"),
        ("/home/someone/models/mine", "mine"),
        ("C:\\Users\\someone\\mine", "mine"),
        ("../checkpoints/mine", "mine"),
        ("~/mine", "mine"),
        ("tiny", "tiny"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_published_names_tell_no_directory(name: str, public: str) -> None:
    assert public_name(name) == public
