"""Reads config.json keys strictly: no default for an architecture number, every refusal says expected and found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_export.errors import ConfigError

__all__ = ["ConfigReader"]

_HINT = "Compare the file with the one published for this model, or re-download the checkpoint."


class ConfigReader:
    """Reads one config.json and remembers which keys were read.

    Args:
        config: the parsed JSON object.
        file: its name, for messages.
    """

    def __init__(self, config: Mapping[str, Any], file: str = "config.json") -> None:
        self._config, self._file = config, file
        self._read: set[str] = set()

    def integer(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high]; without a default the key must be there."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(key, f"an integer from {low} to {high}", value)
        if not low <= value <= high:
            raise self._error(key, f"an integer from {low} to {high}", value)
        return value

    def number(self, key: str, *, low: float, high: float) -> float:
        """A finite number with low < value <= high."""
        return self.check_number(key, self._value(key, None), low=low, high=high)

    def check_number(self, key: str, value: Any, *, low: float, high: float) -> float:
        """Checks a value that was found under `key` (nested keys use dots)."""
        # the range is false for NaN and exact for integers of any size
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            raise self._error(key, f"a number above {low} and up to {high}", value)
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """A boolean whose absence means the reference implementation's default."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._error(key, "true or false", value)
        return value

    def token_ids(self, key: str, *, vocab_size: int, default: tuple[int, ...]) -> tuple[int, ...]:
        """One token id or a list of them, each below the vocabulary's size."""
        value = self.optional(key)
        ids = list(default) if value is None else value if isinstance(value, list) else [value]
        if not ids:
            raise self._error(key, "at least one token id", value)
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self._error(key, f"token ids from 0 to {vocab_size - 1}", value)
        return tuple(ids)

    def optional(self, key: str) -> Any:
        """The raw value, or None where the key is absent."""
        self._read.add(key)
        return self._config.get(key)

    def has(self, key: str) -> bool:
        """Whether the key is there, whatever its value."""
        return key in self._config

    def neutral(self, accepted: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses keys that change the mathematics, unless their value says they do not.

        Args:
            accepted: key -> the values under which the mathematics stays as implemented.
        """
        for key, values in accepted.items():
            value = self.optional(key)
            if value is None or any(type(value) is type(allowed) and value == allowed for allowed in values):
                continue
            raise ConfigError(
                f"{self._file}: {key} is {value!r}: it changes the mathematics and is not implemented",
                hint="This checkpoint needs a feature that this version lacks; ignoring it would give wrong numbers.",
            )

    def ignore(self, *keys: str) -> None:
        """Marks keys that are known and mean nothing to an export."""
        self._read.update(keys)

    def unread(self) -> tuple[str, ...]:
        """Keys that nothing asked for, sorted."""
        return tuple(sorted(set(self._config) - self._read))

    def _value(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._config.get(key)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{self._file}: missing key {key!r}, which the architecture needs", hint=_HINT)
        return value

    def _error(self, key: str, expected: str, found: Any) -> ConfigError:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ConfigError(f"{self._file}: {key} must be {expected}, found {shown}", hint=_HINT)
