"""Rotary bases and scaling from config.json: old flat keys, newer nested ones, and both where they agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_export.config import Rotary
from gemma_export.errors import ConfigError
from gemma_export.families.config_reader import ConfigReader
from gemma_export.families.decoder_config import SMALLEST

__all__ = ["flat_rotary", "global_and_local_rotary"]

_NESTED = "rope_parameters"
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def flat_rotary(read: ConfigReader, family: str) -> float:
    """The rotary base of a family without scaling, from the old top-level key or the newer nested one.

    Args:
        read: of the configuration.
        family: its name, for messages.

    Raises:
        ConfigError: there is none, both differ, or something scales it.
    """
    flat, nested = read.optional("rope_theta"), read.optional(_NESTED)
    values = {} if flat is None else {"rope_theta": flat}
    hint = f"Scaled rotary embedding is not part of {family}; exporting it would give wrong numbers."
    if nested is not None:
        if not isinstance(nested, dict) or nested.get("rope_type", "default") != "default":
            raise ConfigError(
                f"config.json: rope_parameters must be an object of rope_type default, found {nested!r}", hint=hint
            )
        unknown = sorted(set(nested) - {"rope_type", "rope_theta"})
        if unknown:
            raise ConfigError(
                f"config.json: rope_parameters has keys that are not implemented: {', '.join(unknown)}", hint=hint
            )
        if "rope_theta" in nested:
            values["rope_parameters.rope_theta"] = nested["rope_theta"]
    bases = {key: read.check_number(key, value, low=SMALLEST, high=1e12) for key, value in values.items()}
    return _one("rotary base", ("rope_theta", "rope_parameters.rope_theta"), bases, "rope_theta 10000")


def global_and_local_rotary(read: ConfigReader) -> tuple[Rotary, Rotary]:
    """The rotary embeddings of layers that see everything and of those with a window.

    Old keys: rope_theta and rope_scaling for the former, rope_local_base_freq for the latter. Newer: rope_parameters
    with an object for each kind of layer.

    Raises:
        ConfigError: one is missing, old and new keys disagree, or the kind of scaling is not implemented.
    """
    flat, flat_local = read.optional("rope_theta"), read.optional("rope_local_base_freq")
    bases = {} if flat is None else {"rope_theta": read.check_number("rope_theta", flat, low=SMALLEST, high=1e12)}
    local_bases = {}
    if flat_local is not None:
        local_bases["rope_local_base_freq"] = read.check_number(
            "rope_local_base_freq", flat_local, low=SMALLEST, high=1e12
        )
    scaling = read.optional("rope_scaling")
    factors = {} if scaling is None else {"rope_scaling": _factor(read, "rope_scaling", scaling)}
    local_factors: dict[str, float] = {}
    nested = read.optional(_NESTED)
    if nested is not None:
        if not isinstance(nested, dict) or not nested or set(nested) - {_GLOBAL, _LOCAL}:
            raise ConfigError(
                f"config.json: rope_parameters must hold objects for {_GLOBAL} and {_LOCAL}, found {nested!r}",
                hint="Take rope_parameters from the published config.json of this model.",
            )
        for kind, thetas, scales in ((_GLOBAL, bases, factors), (_LOCAL, local_bases, local_factors)):
            own = nested.get(kind)
            if own is None:
                continue
            key = f"rope_parameters.{kind}"
            scales[key] = _factor(read, key, own, others=frozenset({"rope_theta"}))
            if own.get("rope_theta") is not None:
                base = f"{key}.rope_theta"
                thetas[base] = read.check_number(base, own["rope_theta"], low=SMALLEST, high=1e12)
    theta = _one("rotary base", ("rope_theta", f"rope_parameters.{_GLOBAL}.rope_theta"), bases, "1000000")
    local_keys = ("rope_local_base_freq", f"rope_parameters.{_LOCAL}.rope_theta")
    local_theta = _one("rotary base of layers with a window", local_keys, local_bases, "10000")
    factor = _one("rotary factor", (), factors or {"default": 1.0}, "")
    local_factor = _one("rotary factor", (), local_factors or {"default": 1.0}, "")
    return Rotary(theta=theta, factor=factor), Rotary(theta=local_theta, factor=local_factor)


def _factor(read: ConfigReader, key: str, value: Any, others: frozenset[str] = frozenset()) -> float:
    """The factor of linear scaling; 1 without scaling."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"config.json: {key} must be an object, found {value!r}", hint="Take it from the published config.json."
        )
    kinds = {str(value[name]) for name in ("rope_type", "type") if value.get(name) is not None} or {"default"}
    unknown = sorted(set(value) - {"rope_type", "type", "factor"} - others)
    if len(kinds) != 1 or not kinds <= {"default", "linear"} or unknown:
        found = f"keys {', '.join(unknown)}" if unknown else f"type {', '.join(sorted(kinds))}"
        raise ConfigError(
            f"config.json: {key}: {found}: it changes the mathematics and is not implemented, expected type linear and "
            "a factor",
            hint="This checkpoint needs a feature that this version lacks; ignoring it would give wrong numbers.",
        )
    if kinds == {"linear"}:
        return read.check_number(f"{key}.factor", value.get("factor"), low=SMALLEST, high=1e6)
    if value.get("factor") not in (None, 1, 1.0):
        raise ConfigError(
            f"config.json: {key} has factor {value['factor']!r} and no type that uses one",
            hint='Write "rope_type": "linear" if positions are to be divided by it, or leave it out.',
        )
    return 1.0


def _one(what: str, keys: tuple[str, ...], values: Mapping[str, float], usual: str) -> float:
    if len(set(values.values())) != 1:
        found = ", ".join(f"{key} = {value:g}" for key, value in values.items()) or "neither"
        where = f" needed in {' or '.join(keys)}" if keys else " needed"
        raise ConfigError(
            f"config.json: one {what}{where}, found {found}",
            hint=f"Released checkpoints use {usual}: correct config.json." if usual else "Keep one of them.",
        )
    return next(iter(values.values()))
