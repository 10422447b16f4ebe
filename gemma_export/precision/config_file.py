"""The TOML file of `--precision-config`: a scheme, its options, and rules for single tensors. Torch-free.

    scheme = "int4"
    embedding_bits = 8

    [[rule]]
    match = "model.layers.[01].mlp.down_proj.weight"
    bits = 8

`match` is a shell-style pattern of stored tensors' names: the checkpoint's, with query, key and value as one
qkv_proj.weight, also where a target stores the three apart (there q_proj.weight and so on are names too). A rule sets
`bits` (4, 8, or "float" to leave the tensor as it is), `block_size`, `symmetric`, `quantizer`; later rules win.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from gemma_export.errors import ConfigError, MissingResourceError
from gemma_export.precision.block_format import BITS
from gemma_export.precision.scheme import Rule

__all__ = ["read_precision_file"]

_MAX_BYTES = 1 << 20
# key of the file -> field of the options, and what it holds
_OPTIONS: dict[str, tuple[str, type]] = {
    "scheme": ("scheme", str),
    "block_size": ("block_size", int),
    "symmetric": ("symmetric", bool),
    "quantizer": ("quantiser", str),
    "embedding_bits": ("embedding_bits", int),
    "format": ("format", str),
    "smoothing": ("smoothing", bool),
    "activation_aware": ("activation_aware", bool),
}
_RULE: dict[str, tuple[str, type]] = {
    "match": ("match", str),
    "block_size": ("block_size", int),
    "symmetric": ("symmetric", bool),
    "quantizer": ("quantiser", str),
}


def read_precision_file(path: Path) -> tuple[dict[str, Any], tuple[Rule, ...]]:
    """The options that the file sets, by their names in WeightOptions, and its rules in order.

    Raises:
        MissingResourceError: the file cannot be read.
        ConfigError: it is not TOML, or has keys or values that mean nothing here.
    """
    try:
        content = path.read_bytes()[: _MAX_BYTES + 1]
    except OSError as error:
        raise MissingResourceError(
            f"{path} cannot be read: {error.strerror}", hint="--precision-config takes a TOML file."
        ) from error
    if len(content) > _MAX_BYTES:
        raise _wrong(path, "expected at most a MiB of TOML", f"{len(content)} bytes and more")
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(path, "expected TOML", str(error)) from error
    rules = document.pop("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise _wrong(path, "expected [[rule]] tables", f"rule = {rules!r}"[:80])
    return _fields(path, document, _OPTIONS), tuple(_rule(path, number, rule) for number, rule in enumerate(rules, 1))


def _rule(path: Path, number: int, table: dict[str, Any]) -> Rule:
    where = Path(f"{path}, rule {number}")
    bits = table.pop("bits", None)
    if bits is not None and bits != "float" and (type(bits) is not int or bits not in BITS):
        raise _wrong(where, 'expected bits of 4, 8 or "float"', repr(bits)[:40])
    fields = _fields(where, table, _RULE)
    if "match" not in fields or (bits is None and len(fields) == 1):
        raise _wrong(where, "expected match and at least one thing to change", ", ".join(sorted(fields)) or "nothing")
    return Rule(**fields, bits=0 if bits == "float" else bits)


def _fields(where: Path, table: dict[str, Any], known: dict[str, tuple[str, type]]) -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        if key not in known:
            raise _wrong(where, f"expected keys of {', '.join(known)}", f"{key[:40]!r}")
        field, kind = known[key]
        if type(value) is not kind:
            raise _wrong(where, f"expected {key} as {kind.__name__}", f"{value!r}"[:80])
        found[field] = value
    return found


def _wrong(where: Path, expected: str, found: str) -> ConfigError:
    return ConfigError(f"{where}: {expected}, found {found}", hint="The README's section on precision files shows one.")
