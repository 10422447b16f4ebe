"""An answer held against the reference, in the words of the README's table."""

from __future__ import annotations

import dataclasses

from consumers.environments import Answer, Consumer
from consumers.reference import NEW_TOKENS, TEXTS, Reference

__all__ = ["SAME", "Outcome", "judge"]

SAME = "same"
_NONE = "—"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row of the table."""

    consumer: str
    # variant of the built-in model
    model: str
    precision: str
    versions: dict[str, str]
    # "same", a limit's words, or what differs and where
    greedy: str
    batch: str
    text: str

    @property
    def words(self) -> tuple[str, str, str]:
        """Greedy, batch, text."""
        return self.greedy, self.batch, self.text


def judge(consumer: Consumer, model: str, precision: str, answer: Answer, expected: Reference) -> Outcome:
    """The row that an answer earns."""
    if answer.error is not None:
        greedy = batch = text = f"fails: {answer.error}"
    else:
        greedy = _tokens(answer.single, expected.tokens)
        batch = _NONE if consumer.batch is None else _tokens(answer.batch, expected.tokens)
        text = _text(consumer, answer, expected)
    return Outcome(
        consumer=consumer.name,
        model=model,
        precision=precision,
        versions=answer.versions,
        greedy=greedy,
        batch=batch,
        text=text,
    )


def _tokens(found: list[list[int]] | None, expected: list[list[int]]) -> str:
    if found is None or len(found) != len(expected):
        return "fails: no answer"
    for row, (tokens, right) in enumerate(zip(found, expected, strict=True)):
        if tokens != right:
            same = next((i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), len(tokens))
            return f"differs: prompt {row}, token {same} of {NEW_TOKENS}"
    return SAME


def _text(consumer: Consumer, answer: Answer, expected: Reference) -> str:
    if not consumer.tokenizes:
        return _NONE
    if answer.prompt_ids != expected.prompt_ids:
        return "differs: the prompts' token ids"
    pairs = zip(TEXTS, answer.tokenized or [], expected.tokenized, strict=True)
    wrong = [text for text, found, right in pairs if found != right]
    if not wrong:
        return SAME
    # a limit covers what it names, and nothing else
    explained = "text" in consumer.limits and all("  " in text for text in wrong)
    return consumer.limits["text"] if explained else f"differs: {wrong[0]!r}"
