"""gemma-run without a prompt on a real terminal: Ctrl-C ends an answer, commands, history, redirected answers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import assert_error, gemma_run

if sys.platform == "win32":
    pytest.skip("pseudo-terminals", allow_module_level=True)

from terminal import Terminal

HISTORY = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
# no answer ends by itself before somebody presses Ctrl-C
ENDLESS = ("--max-new-tokens", 8000, "--min-new-tokens", 8000)
SHORT = ("--max-new-tokens", 6)


@pytest.fixture
def terminal(tiny_fp32: Path, tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tiny_fp32, *SHORT, home=tmp_path) as started:
        started.wait_for("\n> ")
        yield started


def expected(folder: Path, *turns: str, chat: bool = True) -> str:
    """What the model says to the last of the turns."""
    text = ""
    for turn in turns:
        text += f"<start_of_turn>user\n{turn}<end_of_turn>\n<start_of_turn>model\n" if chat else turn
        answer = json.loads(gemma_run(folder, text, *SHORT, "--json").stdout)["text"]
        text += answer + "<end_of_turn>\n"
    return str(answer)


def test_ctrl_c_ends_the_answer_and_not_the_session(tiny_fp32: Path, tmp_path: Path) -> None:
    with Terminal(tiny_fp32, *ENDLESS, home=tmp_path) as terminal:
        assert "A chat." in terminal.wait_for("\n> ")
        for _ in range(2):
            terminal.type("Hi\n")
            terminal.wait_for("Hi\n")
            terminal.wait_for_more(200)
            terminal.type("\x03")
            assert "\n(cancelled)\n" in terminal.wait_for("\n> ")
        assert "(cancelled)" in terminal.ask("/stats")
        # the answer so far stays
        terminal.ask(f"/save {tmp_path / 'saved.json'}")
        messages = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))["messages"]
        assert [each["role"] for each in messages] == ["user", "model"] * 2
        assert len(messages[1]["content"]) > 50
        # readline shows its prompt before it waits: a signal in between is seen with the next key only
        time.sleep(0.5)
        terminal.type("\x03")
        assert "(Ctrl-D or /exit leaves)" in terminal.wait_for("\n> ")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown


def test_a_conversation_and_its_commands(terminal: Terminal, tiny_fp32: Path, tmp_path: Path) -> None:
    first = expected(tiny_fp32, "What is it?")
    assert terminal.ask("What is it?") == first + "\n(length)\n"
    assert terminal.ask("And then?") == expected(tiny_fp32, "What is it?", "And then?") + "\n(length)\n"
    figures = terminal.ask("/stats")
    # the second prompt starts with the first and its answer, whose last token is read with it
    assert "cached) at" in figures
    assert "6 new tokens" in figures
    assert terminal.ask("/undo") == "(taken back: And then?)\n"
    assert terminal.ask("/regenerate").startswith("(greedy: the same again; ")
    assert terminal.shown.count(first) == 2
    assert terminal.ask(f"/save {tmp_path / 'a.json'}") == "(saved)\n"
    assert terminal.ask("/reset") == "(forgotten)\n"
    assert terminal.ask("/undo") == "(nothing to undo)\n"
    assert terminal.ask("What is it?") == first + "\n(length)\n"
    assert terminal.ask("/max 3") == "(at most 3 tokens)\n"
    terminal.ask("/reset")
    short = terminal.ask("What is it?").removesuffix("\n(length)\n")
    assert first.startswith(short)
    assert len(short) < len(first)
    assert terminal.ask(f"/load {tmp_path / 'a.json'}") == "(2 messages)\n"
    terminal.ask("/max 6")
    assert terminal.ask("And then?") == expected(tiny_fp32, "What is it?", "And then?") + "\n(length)\n"
    terminal.type("/exit\n")
    assert terminal.end() == 0


def test_sampling_in_a_session(terminal: Terminal) -> None:
    assert terminal.ask("/temperature 3") == "(temperature 3)\n"
    assert terminal.ask("/seed 7") == "(seed 7)\n"
    one = terminal.ask("Hi")
    assert terminal.ask("/regenerate") != one
    terminal.ask("/reset")
    terminal.ask("/seed 7")
    assert terminal.ask("Hi") == one
    assert terminal.ask("/top-k 1") == "(top-k 1)\n"


def test_what_a_command_refuses(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "odd.json").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    (tmp_path / "wrong.json").write_text('{"messages": [{"role": "model", "content": "x"}]}')
    for line, reason in (
        ("/nothing", "there is no command /nothing"),
        ("/temperature", "/temperature takes one argument: X"),
        ("/temperature hot", "'hot' is no number"),
        ("/temperature -1", "temperature must be 0 or above"),
        ("/top-k 1.5", "'1.5' is no whole number"),
        ("/seed -1", "seed must be 0 or above"),
        ("/max 0", "max-new-tokens must be 1 or above"),
        ("/reset now", "/reset takes no argument"),
        ("/regenerate", "there is no answer to give again"),
        ("/system Be brief.", "this model has no system role"),
        (f"/save {tmp_path / 'notes.txt'}", "notes.txt is no conversation"),
        (f"/save {tmp_path / 'no/such/file'}", "cannot be written: No such file or directory"),
        (f"/load {tmp_path / 'none.json'}", "cannot be read: No such file or directory"),
        (f"/load {tmp_path / 'notes.txt'}", "notes.txt is no conversation"),
        (f"/load {tmp_path / 'odd.json'}", "ends with the user's turn"),
        ("/save ~nosuchuser/x", "~nosuchuser/x cannot be written: Could not determine home directory"),
        (f"/save {'x' * 300}", "cannot be written: File name too long"),
        (f"/load {'x' * 300}", "cannot be read: File name too long"),
        (f"/load {tmp_path / 'deep.json'}", "deep.json is no conversation: maximum recursion depth"),
        (f"/load {tmp_path / 'wrong.json'}", "messages[0]: a turn of the user is due"),
        ("x " * 1000, None),
    ):
        shown = terminal.ask(line)
        if reason is not None:
            assert shown.startswith("error: "), shown
            assert reason in shown
            assert "\nhint: " in shown
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert terminal.ask("/stats").endswith("(length)\n")


def test_help_lists_every_command(terminal: Terminal) -> None:
    shown = terminal.ask("/help")
    for name in (
        "help",
        "reset",
        "system",
        "temperature",
        "top-k",
        "seed",
        "max",
        "regenerate",
        "undo",
        "save",
        "load",
    ):
        assert f"/{name}" in shown
    for name in ("stats", "multi", "exit"):
        assert f"/{name}" in shown


def test_texts_of_several_lines(terminal: Terminal, tiny_fp32: Path) -> None:
    whole = expected(tiny_fp32, "a = 1\nb = 2")
    terminal.type("a = 1\\\n")
    terminal.wait_for("... ")
    assert whole in terminal.ask("b = 2")
    terminal.ask("/reset")
    terminal.type("/multi\na = 1\nb = 2\n")
    assert whole in terminal.ask("/end")
    terminal.ask("/reset")
    assert expected(tiny_fp32, "/etc is") in terminal.ask("//etc is")


def test_a_model_continues_texts_where_it_has_no_chat(tiny_fp32: Path, tmp_path: Path) -> None:
    with Terminal(tiny_fp32, *SHORT, "--no-chat", home=tmp_path) as terminal:
        assert "Each line is a text to continue." in terminal.wait_for("\n> ")
        for _ in range(2):
            assert terminal.ask("def f(x):") == expected(tiny_fp32, "def f(x):", chat=False) + "\n(length)\n"
        assert "/undo belongs to a chat" in terminal.ask("/undo")
        assert "/undo" not in terminal.ask("/help")


def test_the_history(tiny_fp32: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    file = tmp_path / HISTORY / "gemma-run/history"
    for number in range(2):
        with Terminal(tiny_fp32, *SHORT, home=tmp_path) as terminal:
            terminal.wait_for("\n> ")
            terminal.ask(f"line {number}")
            terminal.type("\x04")
            assert terminal.end() == 0
    assert [line for line in file.read_text().splitlines() if line.startswith("line")] == ["line 0", "line 1"]
    assert file.stat().st_mode & 0o077 == 0
    # nothing else was written
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_no_history(tiny_fp32: Path, tmp_path: Path) -> None:
    with Terminal(tiny_fp32, *SHORT, "--no-history", home=tmp_path) as terminal:
        terminal.wait_for("\n> ")
        terminal.ask("line")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_cannot_be_written(tiny_fp32: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    (tmp_path / HISTORY).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / HISTORY).write_text("in the way")
    with Terminal(tiny_fp32, *SHORT, home=tmp_path) as terminal:
        terminal.wait_for("\n> ")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "warning: the history" in terminal.shown
        assert "Traceback" not in terminal.shown


def test_a_history_that_cannot_be_looked_for(tiny_fp32: Path, tmp_path: Path) -> None:
    """As in a directory that belongs to somebody else."""
    pytest.importorskip("readline")
    with Terminal(tiny_fp32, *SHORT, home=tmp_path / ("x" * 300)) as terminal:
        terminal.wait_for("\n> ")
        assert "cannot be read: File name too long" in terminal.shown
        assert terminal.ask("x").endswith("(length)\n")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("redirected", [False, True])
def test_bytes_that_are_no_text(redirected: bool, tiny_fp32: Path, tmp_path: Path) -> None:
    """Of a terminal with another encoding: the line is refused and the conversation goes on."""
    with (tmp_path / "answers").open("wb") as file:
        terminal = Terminal(tiny_fp32, *SHORT, "--no-history", home=tmp_path, stdout=file if redirected else None)
        with terminal:
            terminal.wait_for("\n> ")
            terminal.type("What is it?\n")
            terminal.wait_for("(length)\n> ")
            terminal.type(b"caf\xff\xfe!\n")
            assert "error: the line is not valid utf-8 at byte 3\nhint: " in terminal.wait_for("encoding.\n> ")
            terminal.type("/stats\n")
            terminal.wait_for("(length)\n")
            terminal.wait_for("> ")
            terminal.type("/undo\n")
            terminal.wait_for("(taken back: What is it?)\n> ")
            terminal.type("\x04")
            assert terminal.end() == 0


def test_only_answers_go_to_a_redirected_stdout(tiny_fp32: Path, tmp_path: Path) -> None:
    with (tmp_path / "answers").open("wb") as file, Terminal(tiny_fp32, *SHORT, home=tmp_path, stdout=file) as terminal:
        terminal.wait_for("\n> ")
        terminal.type("What is it?\n")
        terminal.wait_for("(length)\n> ")
        terminal.type("/stats\n")
        terminal.wait_for("new tokens")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert (tmp_path / "answers").read_text(encoding="utf-8") == expected(tiny_fp32, "What is it?") + "\n"


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [(["--json"], "--json needs a PROMPT"), (["--samples", "2"], "--samples needs a PROMPT")],
)
def test_options_that_need_a_prompt(tiny_fp32: Path, tmp_path: Path, arguments: list[str], phrase: str) -> None:
    with Terminal(tiny_fp32, *arguments, home=tmp_path) as terminal:
        assert terminal.end() == 2
        assert phrase in terminal.shown


def test_a_system_message_that_the_model_cannot_take(tiny_fp32: Path, tmp_path: Path) -> None:
    with Terminal(tiny_fp32, "--system", "Be brief.", home=tmp_path) as terminal:
        assert terminal.end() == 2
        assert "this model has no system role" in terminal.shown


def test_no_session_without_a_terminal(tiny_fp32: Path) -> None:
    assert_error(gemma_run(tiny_fp32), 2, "PROMPT is missing")
