"""What a session's commands change; the terminal's side is in test_repl."""

from __future__ import annotations

import pytest

from gemma_runtime import Gemma, Sampling
from gemma_runtime.cli.line_input import LineInput
from gemma_runtime.cli.repl import Session
from gemma_runtime.cli.repl_commands import run_command
from gemma_runtime.errors import PromptError


def session(plain: Gemma, sampling: Sampling) -> Session:
    return Session(plain, {"sampling": sampling, "max_new_tokens": 4}, chat=None, lines=LineInput(None))


def test_the_most_likely_tokens_mean_sampling_as_on_the_command_line(
    plain: Gemma, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = session(plain, Sampling(seed=3))
    run_command(opened, "/top-k 5")
    assert opened.settings["sampling"] == Sampling(seed=3, top_k=5, temperature=1.0)
    assert capsys.readouterr().err == "(top-k 5, temperature 1)\n"
    # a temperature that is there stays, and greedy can be had again
    run_command(opened, "/temperature 0.5")
    run_command(opened, "/top-k 7")
    assert opened.settings["sampling"] == Sampling(seed=3, top_k=7, temperature=0.5)
    run_command(opened, "/temperature 0")
    assert opened.settings["sampling"] == Sampling(seed=3, top_k=7)
    run_command(opened, "/seed 9")
    assert opened.settings["sampling"] == Sampling(seed=9, top_k=7)


def test_what_is_refused_changes_nothing(plain: Gemma) -> None:
    opened = session(plain, Sampling())
    for line in ("/top-k 0", "/top-k -5", f"/top-k {'9' * 5000}", "/temperature 1e400", "/seed -1"):
        with pytest.raises(PromptError):
            run_command(opened, line)
    assert opened.settings["sampling"] == Sampling()


def test_numbers_are_told_as_they_are(plain: Gemma, capsys: pytest.CaptureFixture[str]) -> None:
    opened = session(plain, Sampling(temperature=1.0))
    run_command(opened, "/seed 123456789")
    # more than a float can be
    run_command(opened, f"/top-k {10**400}")
    assert capsys.readouterr().err == f"(seed 123456789)\n(top-k {10**400})\n"
    assert opened.settings["sampling"] == Sampling(temperature=1.0, seed=123456789, top_k=10**400)
    opened.say("x = 1\n")
    assert opened.completion is not None
    assert len(opened.completion.token_ids) == 4
