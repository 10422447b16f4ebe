"""Reading the manifest's JSON strictly: every refusal names the key, what was expected and what was found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gemma_runtime.errors import ManifestError

__all__ = ["HINT", "MANIFEST_FILE", "JsonObject", "load_json", "wrong_value"]

MANIFEST_FILE = "gemma_export.json"
HINT = "The folder was altered, damaged or not fully copied: copy or export it again."

_T = TypeVar("_T")


def load_json(text: str) -> JsonObject:
    """The document, an object without doubled keys, NaN or infinity.

    Raises:
        ManifestError: it is not such JSON.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_FILE} is not JSON: {error}", hint=HINT) from error
    return JsonObject(content, "")


class JsonObject:
    """One JSON object, read key by key; every refusal names the key, what was expected and what was found."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise wrong_value(where or "the document", "an object", content)
        self._content, self._where, self._read = content, where, set[str]()

    def value(self, key: str) -> Any:
        """The key's value, of any type."""
        if key not in self._content:
            raise ManifestError(f"{MANIFEST_FILE}: {self._path(key)} is missing", hint=HINT)
        self._read.add(key)
        return self._content[key]

    def integer(self, key: str, low: int = 0, high: int | None = None) -> int:
        """An integer from `low` to `high`, or to 2^63 - 1."""
        value, most = self.value(key), (1 << 63) - 1 if high is None else high
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= most:
            raise wrong_value(self._path(key), f"an integer from {low}{'' if high is None else f' to {high}'}", value)
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None, among: Sequence[str] = ()) -> str:
        """A text of 1 to 4,096 characters that is as the pattern says, or one of several."""
        value = self.value(key)
        expected = f"one of {', '.join(among)}" if among else f"text like {pattern.pattern}" if pattern else "text"
        if not isinstance(value, str) or not value or len(value) > 4096:
            raise wrong_value(self._path(key), expected, value)
        if (among and value not in among) or (pattern is not None and not pattern.fullmatch(value)):
            raise wrong_value(self._path(key), expected, value)
        return value

    def optional(self, key: str, read: Callable[[str], _T]) -> _T | None:
        """None for null, or what `read` makes of the key."""
        return None if self.value(key) is None else read(key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object with any keys."""
        value = self.value(key)
        if not isinstance(value, dict):
            raise wrong_value(self._path(key), "an object", value)
        return value

    def items(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self.value(key)
        if not isinstance(value, list):
            raise wrong_value(self._path(key), "a list", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, none of them empty."""
        values = self.items(key)
        if not all(isinstance(value, str) and value for value in values):
            raise wrong_value(self._path(key), "a list of texts", values)
        return tuple(values)

    def objects(self, key: str, read: Callable[[JsonObject], _T]) -> tuple[_T, ...]:
        """A list of objects that `read` reads completely."""
        found = []
        for index, content in enumerate(self.items(key)):
            reader = JsonObject(content, f"{self._path(key)}[{index}]")
            found.append(read(reader))
            reader.done()
        return tuple(found)

    def object(self, key: str, read: Callable[[JsonObject], _T]) -> _T:
        """An object that `read` reads completely."""
        reader = JsonObject(self.value(key), self._path(key))
        found = read(reader)
        reader.done()
        return found

    def done(self) -> None:
        """Refuses keys that nothing read: a later schema says so by its version."""
        unknown = sorted(set(self._content) - self._read)
        if unknown:
            raise ManifestError(f"{MANIFEST_FILE}: unknown key {self._path(unknown[0])}", hint=HINT)

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def wrong_value(where: str, expected: str, found: object) -> ManifestError:
    """The error for a value that is not what the schema says."""
    shown = repr(found)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ManifestError(f"{MANIFEST_FILE}: {where}: expected {expected}, found {shown}", hint=HINT)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is beyond a float")
    return number
