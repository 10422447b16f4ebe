"""Gemma's turns: a conversation as text and as token ids, without a template engine.

Text and ids equal what the folder's Jinja template gives: white space around a content is trimmed, roles alternate and
start with the user's, "assistant" is another name of "model", and a special token written in a content is that token.
`escape=True` keeps such a token text, for contents that come from strangers.

Source of the format: https://ai.google.dev/gemma/docs/core/prompt-structure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_runtime.errors import PromptError
from gemma_runtime.tokenizer import Tokenizer

__all__ = [
    "END_OF_TURN",
    "START_OF_TURN",
    "Message",
    "chat_ids",
    "chat_text",
    "read_messages",
    "require_turns",
    "turn_ids",
]

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
_ROLES = {"user": "user", "model": "model", "assistant": "model", "system": "system"}
_NO_SYSTEM = "Put the instructions into the first user message."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation. A mapping with the same keys does as well wherever messages are taken.

    A mapping's content may also be a list of parts {"type": "text", "text": ...}, as other programs write it.
    """

    # "user", "model" (or "assistant"), "system"
    role: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turn:
    # "user" or "model"
    role: str
    # trimmed, the system's text in front of the first
    content: str


def read_messages(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages of either kind, each checked by itself; "assistant" becomes "model".

    Raises:
        PromptError: an unknown role, a content that is no text, or a key with a meaning that would be lost.
    """
    return tuple(_read_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def chat_text(
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    folds_system: bool = False,
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the folder's template renders it, its BOS included.

    Args:
        messages: alternating, the user's first; a system message may stand before them where `folds_system`.
        tokenizer: of the folder.
        folds_system: the model's template puts a system message in front of the first user's, as Gemma 3's does; see
            `gemma_runtime.chat_template`.
        add_generation_prompt: end with the start of the model's turn.

    Raises:
        PromptError: no chat model, no messages, or messages that the format cannot hold; the index is named.
    """
    require_turns(tokenizer)
    turns = _turns(messages, folds_system=folds_system)
    parts = ["<bos>" if tokenizer.bos_id is not None else ""]
    parts += [f"{START_OF_TURN}{turn.role}\n{turn.content}{END_OF_TURN}\n" for turn in turns]
    return "".join(parts) + (f"{START_OF_TURN}model\n" if add_generation_prompt else "")


def chat_ids(
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    tokenizer: Tokenizer,
    folds_system: bool = False,
    add_generation_prompt: bool = True,
    escape: bool = False,
) -> list[int]:
    """Token ids of `chat_text`.

    The ids of a conversation that ends with the user's turn start those of every longer one, so its cache can be used
    again. That does not reach over an answer as generated: its white space is trimmed here, and the same text may be
    other tokens than the model chose. A session keeps the generated ids and appends `turn_ids`.

    Args:
        messages: as `chat_text` takes them.
        tokenizer: of the folder.
        folds_system: as for `chat_text`.
        add_generation_prompt: as for `chat_text`.
        escape: special tokens written in a content stay text.

    Raises:
        PromptError: as `chat_text`.
    """
    if not escape:
        text = chat_text(
            messages, tokenizer=tokenizer, folds_system=folds_system, add_generation_prompt=add_generation_prompt
        )
        return tokenizer.encode(text)
    start, end = require_turns(tokenizer)
    newline = tokenizer.encode_plain("\n")
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for turn in _turns(messages, folds_system=folds_system):
        ids += [start, *tokenizer.encode_plain(f"{turn.role}\n{turn.content}"), end, *newline]
    return ids + ([start, *tokenizer.encode_plain("model\n")] if add_generation_prompt else [])


def turn_ids(
    tokenizer: Tokenizer, message: Message | Mapping[str, Any] | str, *, first: bool, escape: bool = False
) -> list[int]:
    """What a session appends to the tokens it holds for the user's next message.

    Args:
        tokenizer: of the folder.
        message: the user's; a string is its content.
        first: the session is empty: starts with the BOS. Otherwise starts by closing the model's turn, whose tokens
            the session holds as generated, without the stop token and whatever ended them.
        escape: special tokens written in the message stay text.

    Raises:
        PromptError: no chat model, or no message of the user's.
    """
    if isinstance(message, str):
        message = Message(role="user", content=message)
    ids = chat_ids([message], tokenizer=tokenizer, escape=escape)
    if first:
        return ids
    _, end = require_turns(tokenizer)
    return [end, *tokenizer.encode_plain("\n"), *ids[tokenizer.bos_id is not None :]]


def require_turns(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of the tokens that start and end a turn.

    Raises:
        PromptError: the tokenizer lacks one: this is no chat model.
    """
    start, end = tokenizer.find(START_OF_TURN), tokenizer.find(END_OF_TURN)
    if start is None or end is None:
        raise PromptError(
            f"--chat needs the tokens {START_OF_TURN} and {END_OF_TURN}; this tokenizer has no "
            f"{START_OF_TURN if start is None else END_OF_TURN}",
            hint="Leave --chat out: this folder's model completes text.",
        )
    return start, end


def _turns(messages: Sequence[Message | Mapping[str, Any]], *, folds_system: bool) -> list[_Turn]:
    read = list(read_messages(messages))
    system = ""
    if read and read[0].role == "system":
        if not folds_system:
            raise PromptError("messages[0]: this model has no system role", hint=_NO_SYSTEM)
        if not read[0].content.strip():
            raise PromptError("messages[0]: the content is empty", hint="Leave an empty system message out.")
        # the template does not trim it
        system = read[0].content + "\n\n"
    turns: list[_Turn] = []
    for index, message in enumerate(read):
        if index == 0 and system:
            continue
        expected = "model" if len(turns) % 2 else "user"
        if message.role != expected:
            raise PromptError(
                f"messages[{index}]: a turn of the {expected} is due, found the role {message.role!r}",
                hint="Turns alternate and start with the user's; join neighbours of one role.",
            )
        content = message.content.strip()
        # a model may have answered nothing
        if not content and expected == "user":
            raise PromptError(f"messages[{index}]: the content is empty", hint="Give a message to answer.")
        turns.append(_Turn(role=expected, content=content if turns else system + content))
    if not turns:
        raise PromptError("the conversation has no turn of the user", hint="Give a message to answer.")
    return turns


def _text_of(content: object, name: str, *, trimmed: bool) -> str:
    """A content that is a text, or parts of text joined as Gemma 3's template does: trimmed, but for the system's."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise PromptError(
            f"{name}: the content must be text, found {type(content).__name__}",
            hint='For example "Hi", or [{"type": "text", "text": "Hi"}].',
        )
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PromptError(
                f"{name}: part {index} of the content must be text, found {_kind_of(part)[:40]}",
                hint="Images and other parts are not taken.",
            )
        lost = [key for key, value in part.items() if key not in ("type", "text") and value is not None]
        if lost:
            raise PromptError(
                f"{name}: part {index} of the content: unknown key {lost[0]!r}", hint="A part has a type and a text."
            )
        texts.append(part["text"].strip() if trimmed else part["text"])
    if not trimmed and len(texts) > 1:
        # the template reads the first alone
        raise PromptError(f"{name}: a system message has one part, found {len(texts)}", hint="Join the texts.")
    return "".join(texts)


def _kind_of(part: object) -> str:
    if not isinstance(part, Mapping):
        return type(part).__name__
    if part.get("type") != "text":
        return repr(part.get("type"))
    return f"text of type {type(part.get('text')).__name__}"


def _read_message(message: object, name: str) -> Message:
    if isinstance(message, Message):
        fields: Mapping[str, Any] = {"role": message.role, "content": message.content}
    elif isinstance(message, Mapping):
        fields = message
    else:
        raise PromptError(
            f"{name} must be a Message or a mapping, found {type(message).__name__}",
            hint='For example {"role": "user", "content": "Hi"}.',
        )
    # other programs' messages carry keys that say nothing; one that says something (tool_calls) must not get lost
    lost = [key for key, value in fields.items() if key not in ("role", "content") and value is not None]
    if lost:
        raise PromptError(f"{name}: unknown key {lost[0]!r}", hint="A message has a role and a content.")
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise PromptError(f"{name}: unknown role {role!r}", hint=f"Roles are {', '.join(_ROLES)}.")
    content = _text_of(content, name, trimmed=role != "system")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"{name}: not valid UTF-8 at character {error.start}", hint="Re-encode it.") from error
    return Message(role=_ROLES[role], content=content)
