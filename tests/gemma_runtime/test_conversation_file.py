"""What /save and /load make of paths and files that a user may name: an error, never the end of the session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gemma_runtime import Message
from gemma_runtime.cli.conversation_file import load_messages, save_messages
from gemma_runtime.errors import PromptError

SAID = (Message(role="user", content="Wie geht's, 日本?"), Message(role="model", content="\n gut \n"))
# name -> what the message says; {} is a regular file
WRONG_PATHS = {
    "~nosuchuser/a.json": "home directory",
    "x" * 300: "File name too long",
    "a\0b": "null",
    "{}/below": "Not a directory",
    ".": "Is a directory",
}


def test_what_was_saved_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for _ in range(2):
        save_messages("~/a.json", SAID)
        assert tuple(load_messages(str(tmp_path / "a.json"))) == SAID


@pytest.mark.skipif("sys.platform == 'win32'", reason="other words")
@pytest.mark.parametrize("name", WRONG_PATHS)
def test_a_path_that_cannot_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    reason = WRONG_PATHS[name]
    for act, words in ((load_messages, "cannot be read"), (lambda path: save_messages(path, SAID), "cannot be ")):
        with pytest.raises(PromptError, match=words) as caught:
            act(name.format("file"))
        assert reason in caught.value.message
        assert caught.value.exit_code == 2
        assert caught.value.hint == "Check the path."
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": ' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"messages": [' + b"9" * 5000 + b"]}",
        b'{"messages": {}}',
        b'{"messages": [1]}',
        b"[]",
        b"\xff",
        b"",
    ],
    ids=["brackets", "messages", "content", "digits", "object", "number", "list", "no text", "empty"],
)
def test_a_file_that_is_no_conversation(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_bytes(content)
    for act in (load_messages, lambda path: save_messages(path, SAID)):
        with pytest.raises(PromptError) as caught:
            act(str(file))
        assert caught.value.hint
    # not written over
    assert file.read_bytes() == content


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    save_messages(str(file), SAID)
    before = file.read_bytes()
    with pytest.raises(PromptError, match="cannot be written"):
        save_messages(str(file), [*SAID, Message(role="user", content="\ud800")])
    assert file.read_bytes() == before


@pytest.mark.skipif("sys.platform == 'win32'", reason="Windows has no file size limits")
def test_a_full_disk_leaves_what_was_saved(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    save_messages(str(file), SAID)
    code = (
        "import resource, signal, sys\n"
        "from gemma_runtime import Message\n"
        "from gemma_runtime.cli.conversation_file import save_messages\n"
        "from gemma_runtime.errors import PromptError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "try:\n"
        "    save_messages(sys.argv[1], [Message(role='user', content='x' * 100_000)])\n"
        "except PromptError as error:\n"
        "    sys.exit(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{file} cannot be written: File too large\n"
    assert tuple(load_messages(str(file))) == SAID
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
