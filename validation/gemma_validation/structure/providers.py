"""Where each node really runs: asking for a provider is no promise, onnxruntime leaves to the CPU what it must."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from gemma_runtime.graph_choice import PROVIDERS
from gemma_runtime.manifest import Manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.findings import Check

__all__ = ["check_providers", "judge_providers"]

_NAME = "providers"
# Arithmetic on shapes and row lengths, which onnxruntime keeps beside the CPU on purpose, and copies to and from it
_SHAPES = frozenset(
    {
        "Add",
        "ArgMax",
        "Cast",
        "Concat",
        "Div",
        "Equal",
        "Gather",
        "Max",
        "Min",
        "Mod",
        "Neg",
        "Range",
        "ReduceSum",
        "Shape",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "MemcpyFromHost",
        "MemcpyToHost",
    }
)


def check_providers(directory: Path, manifest: Manifest, *, provider: str) -> Check:
    """Runs one token of the main graph and reads from onnxruntime's profile which provider ran each node.

    Raises:
        FolderUnreadableError, ProviderUnavailableError: see ArtifactRunner.
    """
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        runner = ArtifactRunner(directory, manifest, provider=provider, role="main", profile=profile)
        runner.step(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64))
        events = json.loads(runner.end_profile().read_text(encoding="utf-8"))
        runner.close()
    ran = Counter(
        (str(event["args"]["provider"]), str(event["args"]["op_name"]))
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    )
    return judge_providers(ran, provider)


def judge_providers(ran: Counter[tuple[str, str]], provider: str) -> Check:
    """The check's outcome.

    Args:
        ran: how many nodes of each (provider, operator) ran, in onnxruntime's names.
        provider: that was asked for, in the manifest's word.
    """
    wanted = PROVIDERS[provider]
    there = sum(count for (name, _), count in ran.items() if name == wanted)
    elsewhere = {key: count for key, count in ran.items() if key[0] != wanted}
    helpers = {key: count for key, count in elsewhere.items() if key[0] == PROVIDERS["cpu"] and key[1] in _SHAPES}
    strange = {key: count for key, count in elsewhere.items() if key not in helpers}
    if strange or not there:
        told = ", ".join(f"{count} {operator} on {name}" for (name, operator), count in sorted(strange.items()))
        message = f"expected all nodes on {wanted}, found {told or 'none there'}"
        return Check(group="structure", name=_NAME, outcome="failed", message=message)
    told = ", ".join(f"{count} {operator}" for (_, operator), count in sorted(helpers.items()))
    message = f"{there} nodes ran on {wanted}" + (f"; beside it on the CPU, shapes and lengths: {told}" if told else "")
    return Check(group="structure", name=_NAME, outcome="passed", message=message)
