"""The /commands of a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from gemma_runtime.cli.conversation_file import load_messages, save_messages
from gemma_runtime.cli.output import figures, notice
from gemma_runtime.cli.settings import SAMPLING_TEMPERATURE
from gemma_runtime.errors import PromptError

if TYPE_CHECKING:
    from gemma_runtime.answer import AnswerKeywords
    from gemma_runtime.cli.repl import Session

__all__ = ["LeaveError", "command_names", "run_command"]

_BLOCK_END = "/end"


class LeaveError(Exception):
    """The user wants out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Command:
    run: Callable[[Session, str], None]
    # what follows the name; empty: nothing may
    argument: str
    help: str
    # means nothing where texts are continued
    chat_only: bool = False


def run_command(session: Session, line: str) -> None:
    """Runs a line that starts with a slash.

    Raises:
        PromptError: no such command, or an argument that it cannot take.
        LeaveError: it was /exit.
    """
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    command = _COMMANDS.get(name.rstrip())
    if command is None:
        raise PromptError(
            f"there is no command {name}", hint="/help lists them; a text that starts with a slash starts with two."
        )
    if command.chat_only and session.chat is None:
        raise PromptError(f"{name} belongs to a chat", hint="Here each line is a text to continue.")
    if bool(argument) != bool(command.argument) and not command.argument.startswith("["):
        wanted = f"one argument: {command.argument}" if command.argument else "no argument"
        raise PromptError(f"{name} takes {wanted}", hint="/help lists the commands.")
    command.run(session, argument)


def command_names() -> tuple[str, ...]:
    """All of them, in the order of /help."""
    return tuple(_COMMANDS)


def _help(session: Session, argument: str) -> None:
    for name, command in _COMMANDS.items():
        if session.chat is not None or not command.chat_only:
            notice(f"{f'{name} {command.argument}':16} {command.help}")
    notice("A line that ends in \\ goes on in the next; // at the start is one slash.")


def _reset(session: Session, argument: str) -> None:
    session.opened_chat.reset()
    session.last_text = None
    notice("(forgotten)")


def _system(session: Session, argument: str) -> None:
    session.opened_chat.set_system(argument)
    notice("(set)" if argument else "(no system message)")


def _undo(session: Session, argument: str) -> None:
    taken = session.opened_chat.undo()
    session.last_text = None
    notice("(nothing to undo)" if taken is None else f"(taken back: {taken})")


def _regenerate(session: Session, argument: str) -> None:
    text = session.last_text
    before = () if session.chat is None else session.chat.messages
    if session.chat is not None:
        said = [each.content for each in session.chat.messages if each.role == "user"]
        # a text whose answer was cancelled before it began is not among what was said
        if text is None or said[-1:] == [text]:
            text = session.chat.undo()
    if text is None:
        raise PromptError("there is no answer to give again", hint="Say something first.")
    sampling = session.sampling
    if sampling.temperature == 0:
        notice("(greedy: the same again; /temperature 0.7 gives others)")
    session.sampling = dataclasses.replace(sampling, seed=sampling.seed + 1)
    try:
        session.say(text)
    finally:
        if session.chat is not None and len(session.chat.messages) < len(before):
            # no other answer came: the old one stays
            session.chat.load(before)


def _temperature(session: Session, argument: str) -> None:
    _sample(session, temperature=_number(argument, float))


def _top_k(session: Session, argument: str) -> None:
    top_k = int(_number(argument, int))
    # as on the command line, asking for the most likely tokens means asking for sampling
    greedy = session.sampling.temperature == 0
    _sample(session, top_k=top_k, **({"temperature": SAMPLING_TEMPERATURE} if greedy else {}))


def _seed(session: Session, argument: str) -> None:
    _sample(session, seed=int(_number(argument, int)))


def _sample(session: Session, **changed: float) -> None:
    # Sampling checks the range
    session.sampling = dataclasses.replace(session.sampling, **changed)  # type: ignore[arg-type]
    notice("(" + ", ".join(f"{name.replace('_', '-')} {_told(value)}" for name, value in changed.items()) + ")")


def _told(value: float) -> str:
    # whole numbers as they are: as a float a seed would be rounded, and a longer one an error
    return str(value) if isinstance(value, int) else f"{value:g}"


def _max(session: Session, argument: str) -> None:
    from gemma_runtime.answer import AnswerOptions

    changed: AnswerKeywords = {**session.settings, "max_new_tokens": int(_number(argument, int))}
    AnswerOptions(**changed)
    session.settings = changed
    notice(f"(at most {changed['max_new_tokens']} tokens)")


def _number(text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError as error:
        raise PromptError(f"{text!r} is no {'whole ' if kind is int else ''}number", hint="/help") from error


def _save(session: Session, argument: str) -> None:
    save_messages(argument, session.opened_chat.messages)
    notice("(saved)")


def _load(session: Session, argument: str) -> None:
    messages = load_messages(argument)
    session.opened_chat.load(messages)
    session.last_text = None
    notice(f"({len(messages)} messages)")


def _stats(session: Session, argument: str) -> None:
    notice("(no answer yet)" if session.completion is None else figures(session.completion))


def _multi(session: Session, argument: str) -> None:
    notice(f"(a line with {_BLOCK_END} alone ends the text)")
    text = session.lines.read_block(_BLOCK_END)
    if text is not None and text.strip():
        session.say(text)


def _exit(session: Session, argument: str) -> None:
    raise LeaveError


_COMMANDS = {
    "/help": _Command(run=_help, argument="", help="This list."),
    "/reset": _Command(run=_reset, argument="", help="Forget the conversation.", chat_only=True),
    "/system": _Command(
        run=_system, argument="[TEXT]", help="Instructions before the first turn; none takes them away.", chat_only=True
    ),
    "/temperature": _Command(run=_temperature, argument="X", help="0 is greedy."),
    "/top-k": _Command(
        run=_top_k, argument="N", help="Sample from the N most likely tokens, at temperature 1 if greedy."
    ),
    "/seed": _Command(run=_seed, argument="N", help="Of sampling."),
    "/max": _Command(run=_max, argument="N", help="Tokens of an answer at most."),
    "/regenerate": _Command(run=_regenerate, argument="", help="Another answer to the last text, with the next seed."),
    "/undo": _Command(run=_undo, argument="", help="Take the last text and its answer back.", chat_only=True),
    "/save": _Command(run=_save, argument="FILE", help="Write the conversation as JSON.", chat_only=True),
    "/load": _Command(run=_load, argument="FILE", help="Go on with a saved conversation.", chat_only=True),
    "/stats": _Command(run=_stats, argument="", help="Tokens and speed of the last answer."),
    "/multi": _Command(run=_multi, argument="", help=f"A text of several lines, up to a line with {_BLOCK_END} alone."),
    "/exit": _Command(run=_exit, argument="", help="Leave; so does Ctrl-D."),
}
