"""Answers that must match a JSON schema, a regular expression or a grammar, by the package llguidance.

llguidance (https://github.com/guidance-ai/llguidance) parses along and says before each token which tokens may come.
It is given this package's own view of the vocabulary, so folders with tokenizer.json and with tokenizer.model alone
work alike: byte tokens are bytes, SentencePiece's mark is a space, and steering and reserved tokens are no text.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_runtime.errors import MissingPackageError, PromptError
from gemma_runtime.tokenizer import Tokenizer

__all__ = ["Constraint", "ConstraintState"]

# Between two parts of a JSON text: nothing, a space, or one new line with its indentation. llguidance allows any number
# by default, and a small model that has begun with spaces goes on with them until its tokens are used up.
_JSON_WHITESPACE = " |\\n[ ]{0,40}"
# compiled grammars that a tokenizer keeps; one takes up to some megabytes
_KEPT = 32
# vocabularies, one for each set of stop tokens: some ten megabytes for 256,000 pieces
_KEPT_VOCABULARIES = 4
_REASON_LENGTH = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraint:
    """What the answer must match as a whole. Made by its class methods; usable with any folder."""

    # "JSON schema", "regular expression" or "Lark grammar"
    kind: str
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Constraint:
        """A JSON text that is valid under a schema (https://json-schema.org).

        Keywords that llguidance does not know are refused when the constraint is first used, never ignored.

        Raises:
            PromptError: no JSON, or not an object.
        """
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(dict(found) if isinstance(found, Mapping) else found, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _refusal("JSON schema", str(error)) from error
        if not isinstance(found, Mapping):
            raise _refusal("JSON schema", f"it must be an object, found {text[:40]}")
        return cls(kind="JSON schema", source=text)

    @classmethod
    def json(cls) -> Constraint:
        """Any JSON text."""
        return cls.json_schema({})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that matches from beginning to end, in the syntax of https://docs.rs/regex (no look-around)."""
        return cls(kind="regular expression", source=_text("regular expression", pattern))

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """A text of a context-free grammar in Lark's syntax, from its rule `start`.

        The syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
        """
        return cls(kind="Lark grammar", source=_text("Lark grammar", grammar))

    def matcher(self, tokenizer: Tokenizer, eos_ids: Iterable[int]) -> ConstraintState:
        """The state of one answer, before its first token.

        Args:
            tokenizer: the folder's; the vocabulary and the grammar are compiled for it once.
            eos_ids: the tokens that end an answer, at least one.

        Raises:
            MissingPackageError: llguidance is not installed.
            PromptError: the grammar is wrong, or llguidance cannot enforce it.
        """
        with _LOCK:
            compiled = _VOCABULARIES.setdefault(tokenizer, _Compiled())
            ends = tuple(sorted(set(eos_ids)))
            return ConstraintState(compiled.matcher(self, tokenizer, ends), constraint=self, eos_ids=frozenset(ends))

    def grammar(self, library: Any) -> str:
        """llguidance's own form of it.

        Args:
            library: llguidance's `LLMatcher`.
        """
        if self.kind == "JSON schema":
            options = {"whitespace_pattern": _JSON_WHITESPACE}
            return str(library.grammar_from_json_schema(self.source, overrides=options))
        if self.kind == "regular expression":
            return str(library.grammar_from_regex(self.source))
        return str(library.grammar_from_lark(self.source))


class ConstraintState:
    """Where in its grammar one answer is.

    Args:
        matcher: llguidance's, used by this state alone.
        constraint: for messages.
        eos_ids: the tokens that end the answer.
    """

    def __init__(self, matcher: Any, *, constraint: Constraint, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._constraint = constraint
        self._eos_ids = eos_ids
        # llguidance counts a stop token as one to roll back only where more text could have come: it never hears of one
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether only the end may come."""
        return self._ended or bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """Whether the answer so far matches, so that the end may come."""
        return bool(self._matcher.is_accepting())

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Bans what may not come next, in place.

        Args:
            logits: float32 [n]; ids beyond the tokenizer's are banned.

        Raises:
            PromptError: the grammar is too complex to go on.
        """
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
        self._check()
        logits[len(allowed) :] = -np.inf
        allowed = allowed[: len(logits)]
        ids = np.flatnonzero(allowed)
        # by index, whichever side is shorter: a boolean mask of a whole vocabulary costs five times as much
        if 2 * len(ids) < len(allowed):
            values = logits[ids]
            logits.fill(-np.inf)
            logits[ids] = values
        else:
            logits[np.flatnonzero(allowed == 0)] = -np.inf

    def accept(self, token: int) -> None:
        """The answer has one more token.

        Raises:
            ValueError: a token that may not come here.
            PromptError: the grammar is too complex to go on.
        """
        if token in self._eos_ids and self.complete and not self._ended:
            self._ended = True
        elif self._ended or self._matcher.try_consume_tokens([token]) != 1:
            self._check()
            raise ValueError(f"token {token} does not continue the {self._constraint.kind}")

    def rollback(self, count: int) -> None:
        """Takes the last `count` accepted tokens back.

        Raises:
            ValueError: more than there are.
        """
        if count and self._ended:
            self._ended = False
            count -= 1
        if count and not self._matcher.rollback(count):
            raise ValueError(f"cannot take {count} tokens back: {self._matcher.get_error()}")

    def copy(self) -> ConstraintState:
        """A state that goes on by itself from here."""
        state = ConstraintState(self._matcher.deep_copy(), constraint=self._constraint, eos_ids=self._eos_ids)
        state._ended = self._ended
        return state

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refusal(self._constraint.kind, self._matcher.get_error())


class _Compiled:
    """What llguidance has made of one tokenizer: its vocabulary by stop tokens, and grammars."""

    def __init__(self) -> None:
        self._vocabularies: dict[tuple[int, ...], Any] = {}
        self._matchers: OrderedDict[tuple[Constraint, tuple[int, ...]], Any] = OrderedDict()

    def matcher(self, constraint: Constraint, tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> Any:
        """A matcher of llguidance at the beginning."""
        key = constraint, eos_ids
        if key not in self._matchers:
            self._matchers[key] = self._compile(constraint, tokenizer, eos_ids)
            if len(self._matchers) > _KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(key)
        return self._matchers[key].deep_copy()

    def _compile(self, constraint: Constraint, tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> Any:
        try:
            import llguidance
        except ImportError as error:
            raise MissingPackageError(
                f"a {constraint.kind} for the answer needs the package llguidance: {error}",
                hint="pip install llguidance",
            ) from error
        if eos_ids not in self._vocabularies:
            wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, eos_ids))
            self._vocabularies[eos_ids] = llguidance.LLTokenizer(wrapper, eos_token=list(eos_ids))
            while len(self._vocabularies) > _KEPT_VOCABULARIES:
                # the oldest; grammars made with it keep it
                del self._vocabularies[next(iter(self._vocabularies))]
        limits = llguidance.LLParserLimits(verbose_errors=False)
        try:
            grammar = constraint.grammar(llguidance.LLMatcher)
        except ValueError as error:
            raise _refusal(constraint.kind, str(error)) from error
        matcher = llguidance.LLMatcher(self._vocabularies[eos_ids], grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refusal(constraint.kind, matcher.get_error())
        return matcher


_VOCABULARIES: weakref.WeakKeyDictionary[Tokenizer, _Compiled] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


class _Vocabulary:
    """A tokenizer as llguidance wants it: bytes of every token, and a way to write a text in tokens."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> None:
        special = tokenizer.special_tokens()
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = tokenizer.bos_id
        # of a special token, llguidance knows the name only: a grammar can ask for it, no text contains it
        self.tokens = [
            special[token].encode() if token in special else tokenizer.token_bytes(token)
            for token in range(tokenizer.size)
        ]
        self.special_token_ids = sorted(special)
        self._names = sorted(special.values(), key=len, reverse=True)
        # the cache of vocabularies must not keep the tokenizer alive
        self._tokenizer = weakref.ref(tokenizer)

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text in which the names of special tokens are text like any other."""
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return []
        rest = text.decode() if isinstance(text, bytes) else text
        ids: list[int] = []
        while rest:
            # in two parts, a name is no longer recognised
            places = [place + 1 for name in self._names if (place := rest.find(name)) >= 0]
            cut = min(places, default=len(rest))
            part = tokenizer.encode(rest[:cut])
            ids += part[1:] if part[:1] == [self.bos_token_id] else part
            rest = rest[cut:]
        return ids


def _text(kind: str, source: object) -> str:
    if not isinstance(source, str):
        raise _refusal(kind, f"it must be text, found {type(source).__name__}")
    return source


def _refusal(kind: str, reason: str) -> PromptError:
    # lines in between draw the place in the grammar
    lines = reason.strip().splitlines() or ["unknown"]
    causes = [line.strip() for line in lines[1:] if line.startswith("error:")]
    shown = " ".join((lines[0], *causes))[:_REASON_LENGTH]
    return PromptError(f"the {kind} cannot be used: {shown}", hint="Correct it, or ask for something simpler.")
