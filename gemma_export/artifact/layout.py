"""Where each file of an exported folder lies. Torch-free and onnx-free."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

from gemma_export.errors import InternalError

__all__ = ["GRAPH_DIRECTORY", "MANIFEST_FILE", "check_relative", "data_file", "file_kind", "graph_file"]

MANIFEST_FILE = "gemma_export.json"
# transformers.js and optimum look for graphs in this subfolder
GRAPH_DIRECTORY = "onnx"

_SUFFIX = re.compile(r"(_[a-z0-9]+)?")
_ROLE = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
# what a measured choice of precisions is told in: for people, no loader reads it
_REPORT_FILES = frozenset({"mixed_precision.json", "mixed_precision.png"})
_TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
)


def graph_file(suffix: str, role: str = "main") -> str:
    """The path of a graph inside the folder, with forward slashes.

    Args:
        suffix: the precision's suffix: "" for fp32, "_fp16", "_q4f16", ...
        role: "main", or what the twin offers beyond it: "all", "last8", "static", "windowed", ...

    Raises:
        InternalError: a suffix or role outside the folder's naming rule.
    """
    if not _SUFFIX.fullmatch(suffix) or not _ROLE.fullmatch(role):
        raise InternalError(
            f"graph file: suffix {suffix!r} and role {role!r} do not fit onnx/model{{suffix}}[_role].onnx",
            hint="A precision or target names its files wrongly. Report this bug.",
        )
    twin = "" if role == "main" else f"_{role}"
    return f"{GRAPH_DIRECTORY}/model{suffix}{twin}.onnx"


def data_file(suffix: str) -> str:
    """The path of the weight store that all graphs of one precision share."""
    return f"{graph_file(suffix)}_data"


def file_kind(path: str) -> str:
    """What a file of the folder is, in the manifest's words: graph, data, tokenizer, config or document."""
    name = PurePosixPath(path).name
    if name.endswith(".onnx"):
        return "graph"
    if ".onnx_data" in name:
        return "data"
    if name in _TOKENIZER_FILES:
        return "tokenizer"
    return "config" if name.endswith(".json") and name not in _REPORT_FILES else "document"


def check_relative(path: str) -> str:
    """The path itself, if it stays inside a folder on every operating system.

    Raises:
        InternalError: an absolute path, a drive, a backslash, "." or "..", or nothing at all.
    """
    parts = path.split("/")
    bad = not path or "\\" in path or "\0" in path or bool(PureWindowsPath(path).drive)
    if bad or any(part in ("", ".", "..") for part in parts):
        raise InternalError(
            f"{path!r} is not a path inside the output folder", hint="A stage names a file wrongly. Report this bug."
        )
    return path
