"""Stop strings: nothing of one gets out, everything else does, however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_runtime.errors import PromptError
from gemma_runtime.stop_text import StopText

SETTINGS = settings(max_examples=500, deadline=None, derandomize=True, database=None)
# two letters: overlaps everywhere
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
TEXT = st.text("ab", max_size=30) | st.text("abc\n", max_size=30)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the text before the first stop string, and which."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@SETTINGS
@given(STOPS, TEXT, st.lists(st.integers(0, 30), max_size=8))
def test_against_looking_at_each_character(stops: list[str], text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stop_text = StopText(stops)
    expected, found = oracle(text, stops)
    shown = ""
    for begin, end in itertools.pairwise(places):
        shown += stop_text.push(text[begin:end])
        # what was shown once is never taken back, and is never part of a stop string
        assert expected.startswith(shown)
        # held back only for what may still become a stop string
        if stop_text.found is None:
            held = text[len(shown) : end]
            assert not held or any(stop.startswith(held) for stop in stops)
    shown += stop_text.flush()
    assert (shown, stop_text.found) == (expected, found)
    # after the end, nothing
    assert found is None or stop_text.push("ab" * 9) == stop_text.flush() == ""


def test_across_pieces() -> None:
    stop_text = StopText(("\n\n", "END"))
    assert [stop_text.push(piece) for piece in ("one", "\n", "two E", "N", "x", "E", "ND", "three")] == [
        "one",
        "",
        "\ntwo ",
        "",
        "ENx",
        "",
        "",
        "",
    ]
    assert stop_text.found == "END"
    assert stop_text.flush() == ""


def test_a_stop_string_that_is_never_finished_comes_out_at_the_end() -> None:
    stop_text = StopText(["</answer>"])
    assert stop_text.push("42</ans") == "42"
    assert stop_text.flush() == "</ans"
    assert stop_text.flush() == ""
    assert stop_text.found is None


def test_without_stop_strings_everything_passes_at_once() -> None:
    stop_text = StopText()
    assert stop_text.push("abc") == "abc"
    assert stop_text.flush() == ""


def test_one_string_is_one_stop_string() -> None:
    stop_text = StopText("END")
    assert stop_text.push("EN and NED") == "EN and NED"
    assert stop_text.push(" END") == " "
    assert stop_text.found == "END"


@pytest.mark.parametrize(("stops", "found"), [("", "an empty one"), (["a", ""], "an empty one"), ([3], "3")])
def test_what_is_no_stop_string(stops: list[str], found: str) -> None:
    with pytest.raises(PromptError) as caught:
        StopText(stops)
    assert caught.value.message == f"a stop string must be text of at least one character, found {found}"
    assert caught.value.exit_code == 2
