"""Which distributions are installed, and which of them own an import name. Reads metadata only, imports nothing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution
from pathlib import Path

__all__ = ["Owner", "installed_version", "owners_of", "pip", "repair_commands", "versions"]

# what decides whether and how a folder is exported and run
_PACKAGES = (
    "gemma-export",
    "numpy",
    "tokenizers",
    "sentencepiece",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "transformers",
    "huggingface-hub",
    "onnxruntime-genai",
)
# the distributions that come with an extra of ours; the most capable first: whoever has it wanted it
_EXTRAS = {"onnxruntime-gpu": "cuda", "onnxruntime-directml": "directml", "onnxruntime": "cpu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """A distribution that installs an import package."""

    name: str
    version: str
    # the directory it is installed in
    location: str


def versions() -> dict[str, str | None]:
    """Python and every package that matters; None where a package is not installed."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}}


def installed_version(name: str) -> str | None:
    """The version that a distribution's metadata states; "unknown" for metadata without one."""
    try:
        # untyped in the standard library: metadata without a version gives None
        found: str | None = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    except KeyError:
        found = None
    return found or "unknown"


def owners_of(package: str) -> tuple[Owner, ...]:
    """Every installed distribution whose files or top-level names include the import package, by name."""
    found: dict[str, Owner] = {}
    for distribution, name in _distributions():
        if name not in found and _owns(distribution, package):
            location = str(Path(str(distribution.locate_file(""))))
            found[name] = Owner(name=name, version=distribution.metadata["Version"] or "unknown", location=location)
    return tuple(found[name] for name in sorted(found))


def repair_commands(package: str, owners: Sequence[Owner]) -> tuple[str, ...]:
    """The commands after which exactly one distribution owns the package: all go, since they share files."""
    names = [owner.name for owner in owners]
    wanted = next((name for name in _EXTRAS if name in names), names[0] if names else package)
    install = f"gemma-export[{_EXTRAS[wanted]}]" if wanted in _EXTRAS else wanted
    remove = [*pip("uninstall"), *names]
    return (*([_shown(remove)] if names else []), _shown([*pip("install"), install]))


def pip(action: str) -> list[str]:
    """How this Python's packages are changed; environments that uv made have no pip of their own."""
    python = sys.executable or "python"
    if importlib.util.find_spec("pip") is None:
        return ["uv", "pip", action, "--python", python]
    return [python, "-m", "pip", action, *(["-y"] if action == "uninstall" else [])]


def _shown(command: Sequence[str]) -> str:
    """A command as the user's shell takes it; double quotes for extras, which every shell understands."""
    if sys.platform == "win32":
        return subprocess.list2cmdline(command)
    return " ".join(f'"{word}"' if "[" in word else shlex.quote(word) for word in command)


def _distributions() -> Iterator[tuple[Distribution, str]]:
    """Every distribution with a readable name, normalised; what pip left behind of a failed uninstall is skipped."""
    for distribution in importlib.metadata.distributions():
        folder = getattr(distribution, "_path", None)
        if folder is not None and Path(str(folder)).name.startswith("~"):
            continue
        name = distribution.metadata["Name"]
        if name:
            yield distribution, re.sub(r"[-_.]+", "-", name).lower()


def _owns(distribution: Distribution, package: str) -> bool:
    try:
        top_level = (distribution.read_text("top_level.txt") or "").split()
        if package in top_level:
            return True
        # an editable install lists no files of its own
        record = distribution.read_text("RECORD")
        if record is not None:
            # a path a line; parsed, the lists of torch alone take longer than all of these searches
            return re.search(rf'^"?{re.escape(package)}(/|\.py[",])', record, re.MULTILINE) is not None
        return any(file.parts[0] in (package, f"{package}.py") for file in distribution.files or ())
    except (OSError, UnicodeDecodeError, ValueError):
        # metadata that cannot be read owns nothing that we could name
        return False
