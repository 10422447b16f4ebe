"""`gemma-run DIR` on a terminal: a session of prompts and answers.

Answers go to stdout, everything else to stderr, so that a session whose stdout is a file leaves the answers there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from gemma_runtime.cli.line_input import LineInput, history_file
from gemma_runtime.cli.options import Options
from gemma_runtime.cli.output import notice, print_text
from gemma_runtime.cli.repl_commands import LeaveError, run_command
from gemma_runtime.cli.settings import answer_settings, load_model
from gemma_runtime.errors import GemmaRuntimeError

if TYPE_CHECKING:
    from gemma_runtime.answer import AnswerKeywords
    from gemma_runtime.chat_session import Chat
    from gemma_runtime.model import Gemma
    from gemma_runtime.results import Completion, Piece
    from gemma_runtime.sampling import Sampling

__all__ = ["Session", "run_session"]

# an answer ends within a step, a long prompt within a chunk: who presses Ctrl-C this often wants out
_PATIENCE = 3


class Session:
    """What a session knows; the commands read and change it.

    Args:
        model: the folder.
        settings: keywords of `Gemma.answer`.
        chat: where texts go; None where each is continued by itself.
        lines: where texts come from.
    """

    def __init__(self, model: Gemma, settings: AnswerKeywords, *, chat: Chat | None, lines: LineInput) -> None:
        self.settings, self.chat, self.lines = settings, chat, lines
        # of the last answer
        self.completion: Completion | None = None
        self.last_text: str | None = None
        self._conversation = model.conversation()

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        from gemma_runtime.sampling import Sampling

        return self.settings.get("sampling") or Sampling()

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self.settings["sampling"] = sampling

    @property
    def opened_chat(self) -> Chat:
        """The chat, for commands that belong to one."""
        assert self.chat is not None
        return self.chat

    def say(self, text: str) -> None:
        """Answers a text and prints the answer as it comes.

        Raises:
            PromptError: nothing to answer, or the context is full.
            ModelOutputError: logits that are NaN or infinite.
        """
        self.last_text = text
        with _ctrl_c_ends() as cancel:
            settings: AnswerKeywords = {**self.settings, "cancel": cancel}
            if self.chat is not None:
                _show(self.chat.stream(text, **settings))
                completion = self.chat.completion
            else:
                answer = self._conversation.answer(text, **settings)
                _show(answer.pieces())
                completion = answer.completion
        assert completion is not None
        self.completion = completion
        if completion.finish_reason in ("length", "context", "cancelled"):
            notice(f"({completion.finish_reason})")


def _show(pieces: Iterator[Piece]) -> None:
    try:
        for piece in pieces:
            print_text(piece.text, newline=False)
    finally:
        print_text("")


def run_session(options: Options) -> int:
    """Reads and answers until the user leaves.

    Raises:
        GemmaRuntimeError: DIR or an option cannot be used; what goes wrong later is told and the session goes on.
    """
    if options.as_json:
        raise click.UsageError("--json needs a PROMPT")
    if options.samples != 1:
        raise click.UsageError("--samples needs a PROMPT")
    settings = answer_settings(options)
    model = load_model(options)
    wanted = _chats(model) if options.chat is None else options.chat
    chat = model.chat(system=options.system or "") if wanted else None
    with LineInput(None if options.no_history else history_file()) as lines:
        session = Session(model, settings, chat=chat, lines=lines)
        kind = "A chat" if chat else "Each line is a text to continue"
        notice(f"{kind}. /help lists commands, Ctrl-C ends an answer, Ctrl-D leaves.")
        while _take_turn(session):
            pass
    return 0


def _take_turn(session: Session) -> bool:
    """One line of the user's; False where it was the last."""
    try:
        text = session.lines.read("> ")
        if text is None:
            notice("")
            return False
        if text.startswith("/") and not text.startswith("//"):
            run_command(session, text)
        elif text.strip():
            session.say(text.removeprefix("/") if text.startswith("//") else text)
    except LeaveError:
        return False
    except KeyboardInterrupt:
        notice("\n(Ctrl-D or /exit leaves)")
    except GemmaRuntimeError as error:
        notice(f"error: {error.message}\nhint: {error.hint}")
    return True


def _chats(model: Gemma) -> bool:
    from gemma_runtime.chat import END_OF_TURN, START_OF_TURN

    return all(model.tokenizer.find(token) is not None for token in (START_OF_TURN, END_OF_TURN))


@contextlib.contextmanager
def _ctrl_c_ends() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets: the answer ends between two steps, and what the cache holds stays true."""
    cancel = threading.Event()
    pressed = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed += 1
        cancel.set()
        if pressed >= _PATIENCE:
            # click's word for it: the session ends, not only the answer
            raise click.Abort

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
