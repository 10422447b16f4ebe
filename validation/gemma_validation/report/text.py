"""Text and numbers of a validation as people read them, whatever a tokenizer decoded or a graph computed."""

from __future__ import annotations

import math
import re
from pathlib import PurePath, PureWindowsPath

__all__ = ["METRICS", "clean", "count", "measure", "metric", "number", "percent", "public_name", "shortened", "visible"]

# halves of a surrogate pair: no encoding of Unicode can hold them, and byte-level tokenizers do decode to them
_SURROGATES = re.compile("[\ud800-\udfff]")
# overrides and isolates would turn around the text behind them, and zero-width characters hide
_INVISIBLE = re.compile(
    "[\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)
# Persian, Indic scripts and emoji need these between other characters: hidden only where nothing else is there
_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f]")

# name of a metric in gates: words for it, and its unit
METRICS = {
    "kl_mean": ("KL, mean", "nats"),
    "kl_median": ("KL, median", "nats"),
    "kl_p95": ("KL, 95th percentile", "nats"),
    "kl_p99": ("KL, 99th percentile", "nats"),
    "kl_p999": ("KL, 99.9th percentile", "nats"),
    "kl_max": ("KL, largest", "nats"),
    "top1_disagreement": ("Most likely token differs", "share"),
    "decisive_flips": ("Decisive flips", "share"),
    "decisive_flip_count": ("Decisive flips, number", "positions"),
    "top10_misses": ("Ten most likely tokens missed", "share"),
    "perplexity_ratio": ("Perplexity ratio", ""),
    "normalised_mse": ("Normalised squared error", ""),
    "max_difference": ("Largest logit difference", "std. dev."),
    "probability_shift_mean": ("Probability shift, mean", "share"),
    "probability_shift_rms": ("Probability shift, RMS", "share"),
}


def metric(name: str) -> tuple[str, str]:
    """Words and unit of a gate's metric; an unknown one keeps its name and has no unit."""
    return METRICS.get(name, (name, ""))


def clean(text: str) -> str:
    """The text with lone surrogates replaced, so that it can be encoded."""
    return _SURROGATES.sub("\ufffd", text)


def visible(text: str, *, lines: bool = False) -> str:
    """The text with nothing hidden: control characters as pictures, invisible ones and turns of direction as <U+...>.

    Args:
        text: anything.
        lines: keep line breaks behind their picture.
    """
    text = clean(text).replace("\n", "\N{RETURN SYMBOL}\n" if lines else "\N{RETURN SYMBOL}")
    kept = "\n" if lines else ""
    shown = "".join(chr(0x2400 + ord(char)) if char < " " and char not in kept else char for char in text)
    shown = _INVISIBLE.sub(_named, shown)
    return shown if _JOINERS.sub("", shown) else _JOINERS.sub(_named, shown)


def _named(found: re.Match[str]) -> str:
    return f"<U+{ord(found[0]):04X}>"


def shortened(text: str, limit: int, *, keep_end: bool = False) -> str:
    """At most `limit` characters, an ellipsis where some are missing."""
    if len(text) <= limit:
        return text
    return f"\N{HORIZONTAL ELLIPSIS}{text[1 - limit :]}" if keep_end else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def number(value: float | None) -> str:
    """Four significant digits; a dash for None, words for what is not finite."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def measure(name: str, value: float | None) -> str:
    """A number of the metric of that name: ratios differ from 1 far behind the point."""
    if name.endswith("_ratio") and value is not None and math.isfinite(value):
        return f"{value:.6f}"
    return number(value)


def percent(share: float) -> str:
    """A share of one in per cent."""
    return f"{100 * share:.3f} %" if math.isfinite(share) else number(share)


def count(value: int) -> str:
    """A whole number with thousands set apart."""
    return f"{value:,}"


def public_name(name: str) -> str:
    """A repository's name as it is, a local path's last part: a folder that is published names no home directory."""
    if PurePath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith((".", "~")) or "\\" in name:
        return PureWindowsPath(name).name or name
    return name
