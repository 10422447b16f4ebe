"""A budget file, read strictly: what is not understood would be a bound that nobody checks.

    min_positions = 200

    [all]
    kl_mean = { bound = 0.05, reason = "1.5 times 0.033, measured over ..." }

    [scripts]
    kl_mean = { bound = 0.1, reason = "..." }

`[all]` is about all positions together, a slice's name (`documents.SLICES`) about those of the slice if the text has
any. The metrics are those of `budget.METRICS`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from gemma_validation.budgets.budget import METRICS, Bound, Budget
from gemma_validation.documents import SLICES
from gemma_validation.errors import BudgetFileError

__all__ = ["default_budget", "read_budget"]

_HINT = "gemma_validation/budgets holds complete files: copy the one of your precision and change it."
_SLICES = ("all", *SLICES, "random")
_LARGEST_FILE = 1 << 20


def default_budget(precision_name: str, *, kv_cache: str | None = None, variant: str | None = None) -> Budget:
    """The budget of one of the exporter's number formats.

    Args:
        precision_name: `precision.name` of the manifest: "fp32", "int4-fp16", ...
        kv_cache: integer type of keys and values between steps, where they have one: "int8".
        variant: of the manifest; a few have a budget of their own.

    Raises:
        BudgetFileError: there is none.
    """
    general = precision_name if kv_cache is None else f"{precision_name}-kv-{kv_cache}"
    folder = resources.files("gemma_validation.budgets")
    known = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    name = own if (own := f"{variant}-{general}") in known else general
    if name not in known:
        raise BudgetFileError(
            f"no budget for precision {name!r}, found {', '.join(known)}", hint="Give one with --budget FILE."
        )
    return _parse(f"{name}.toml", (folder / f"{name}.toml").read_bytes())


def read_budget(file: Path) -> Budget:
    """A budget from a file.

    Raises:
        BudgetFileError: it cannot be read, has unknown keys, other types or impossible bounds, or bounds nothing.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise BudgetFileError(f"{file}: {error.strerror or error}", hint="Name a readable TOML file.") from error
    if len(content) > _LARGEST_FILE:
        raise BudgetFileError(f"{file}: larger than {_LARGEST_FILE} bytes, which no budget is", hint=_HINT)
    return _parse(str(file), content)


def _parse(name: str, content: bytes) -> Budget:
    try:
        # RecursionError: brackets nested a thousand deep
        tables = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BudgetFileError(f"{name}: not TOML: {error}", hint=_HINT) from error
    least = tables.pop("min_positions", None)
    if type(least) is not int or least < 1:
        raise _refused(name, "min_positions", f"expected a positive integer, found {_shown(least)}")
    bounds = tuple(bound for key, table in tables.items() for bound in _slice(name, key, table))
    if not bounds:
        raise BudgetFileError(f"{name}: bounds nothing, so that nothing could fail", hint=_HINT)
    return Budget(name=name, min_positions=least, bounds=bounds)


def _slice(name: str, key: str, table: Any) -> list[Bound]:
    if key not in _SLICES:
        raise _refused(name, key, f"unknown, expected min_positions or one of {', '.join(_SLICES)}")
    if not isinstance(table, Mapping):
        raise _refused(name, key, f"expected a table, found {_shown(table)}")
    return [_bound(name, key, metric, entry) for metric, entry in table.items()]


def _bound(name: str, key: str, metric: str, entry: Any) -> Bound:
    where = f"{key}.{metric}"
    if metric not in METRICS:
        raise _refused(name, where, f"unknown metric, expected one of {', '.join(METRICS)}")
    if not isinstance(entry, Mapping):
        raise _refused(name, where, f'expected {{ bound = NUMBER, reason = "..." }}, found {_shown(entry)}')
    for unknown in entry.keys() - {"bound", "reason"}:
        raise _refused(name, f"{where}.{unknown}", "unknown, expected bound and reason")
    bound, reason = _number(name, f"{where}.bound", entry.get("bound")), entry.get("reason")
    least, most = METRICS[metric].least, METRICS[metric].most
    if bound < least or (most is not None and bound > most):
        limits = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"
        raise _refused(name, f"{where}.bound", f"expected {limits}, found {_shown(bound)}")
    if not isinstance(reason, str) or not reason.strip():
        raise _refused(name, f"{where}.reason", f"expected why the bound is what it is, found {_shown(reason)}")
    return Bound(metric=metric, slice=key, bound=bound, reason=reason)


def _number(name: str, key: str, value: Any) -> float:
    # bool is an int
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise _refused(name, key, f"expected a finite number, found {_shown(value)}")


def _refused(name: str, key: str, words: str) -> BudgetFileError:
    return BudgetFileError(f"{name}: {key}: {words}", hint=_HINT)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:
        # an integer of more digits than Python prints
        return "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
