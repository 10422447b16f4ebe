"""A line between the bytes: why nothing moves."""

from __future__ import annotations

import io

import pytest

from gemma_export.progress import LineProgress, Progress, TerminalProgress, make_progress

TEXT = "waiting for [hub].example (attempt 2 of 6): status 503"


@pytest.mark.parametrize("kind", [LineProgress, TerminalProgress])
@pytest.mark.parametrize("inside", [True, False])
def test_a_line_is_shown_as_it_is(kind: type[LineProgress] | type[TerminalProgress], inside: bool) -> None:
    stream = io.StringIO()
    progress: Progress = kind(stream)
    if inside:
        progress.start(100, "downloading")
        progress.advance(10)
    progress.tell(TEXT)
    progress.finish()
    assert [line.strip() for line in stream.getvalue().splitlines() if "waiting" in line] == [TEXT]


def test_a_quiet_one_says_nothing() -> None:
    stream = io.StringIO()
    make_progress(stream, quiet=True).tell(TEXT)
    assert stream.getvalue() == ""
