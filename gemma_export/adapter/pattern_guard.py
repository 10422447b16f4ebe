"""Regular expressions of an adapter, tried in a process that can be ended before this one relies on them.

A few characters, `(.*.*)*x`, keep Python's `re` busy for years, and nothing in the same process can stop it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator

from gemma_export.adapter.config import LAYER_PATTERN, RANK_PATTERN, SAVED_PATTERN, AdapterConfig
from gemma_export.errors import ConfigError, ResourceExhaustedError

__all__ = ["check_patterns"]

# seconds for all of them; a pattern that names each of 400 modules takes a few milliseconds
_LIMIT = 10.0
# letters, digits and dots between PEFT's own expressions are quick
_PLAIN = re.compile(r"[\w.-]*")
# Each expression as `targets` will use it; a line when it is done says which one is not. Memory is bounded where the
# system can do so: a backtracking stack may grow faster than the time runs out.
_PROGRAM = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
except (ImportError, OSError, ValueError):
    pass
work = json.load(sys.stdin)
for whole, expression in work["expressions"]:
    pattern = re.compile(expression)
    for module in work["modules"]:
        (pattern.fullmatch if whole else pattern.match)(module)
    print(flush=True)
"""


def check_patterns(config: AdapterConfig, modules: Collection[str]) -> None:
    """Refuses an adapter one of whose expressions does not come to an end on the names of the base model's modules.

    Args:
        config: the adapter's.
        modules: every name that will be matched.

    Raises:
        ConfigError: names the key and the expression.
        ResourceExhaustedError: no process can be started.
    """
    found = [each for each in _expressions(config) if not _PLAIN.fullmatch(each[1])]
    if not found:
        return
    work = {"expressions": [(whole, full) for _, _, whole, full in found], "modules": list(modules)}
    try:
        finished = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps(work).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_LIMIT,
            check=False,
        )
        done = finished.stdout
    except subprocess.TimeoutExpired as error:
        done = error.stdout or b""
    except OSError as error:
        raise ResourceExhaustedError(
            f"adapter_config.json has regular expressions, and no process can be started to try them: {error.strerror}",
            hint="Close programs, or name the adapter's modules in full.",
        ) from error
    count = done.count(b"\n")
    if count < len(found):
        key, text, _, _ = found[count]
        raise ConfigError(
            f"adapter_config.json: {key}: {text[:80]!r} takes longer than {_LIMIT:.0f} s or too much memory to match "
            f"the names of {len(modules)} modules",
            hint="Name the modules in a list instead; do not merge adapters from sources you do not trust.",
        )


def _expressions(config: AdapterConfig) -> Iterator[tuple[str, str, bool, str]]:
    """Key, text in the file, whether all of a name must match, and the expression, as `targets` uses them."""
    for key, modules in (("target_modules", config.target_modules), ("exclude_modules", config.exclude_modules)):
        if isinstance(modules, str):
            yield key, modules, True, modules
    for key, texts, pattern in (
        ("rank_pattern", config.rank_pattern, RANK_PATTERN),
        ("alpha_pattern", config.alpha_pattern, RANK_PATTERN),
        ("layers_pattern", config.layer_lists, LAYER_PATTERN),
        ("modules_to_save", config.modules_to_save, SAVED_PATTERN),
    ):
        for text in texts:
            yield key, text, False, pattern.format(text)
