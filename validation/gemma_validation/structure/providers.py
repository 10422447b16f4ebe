"""Where each node really runs: asking for a provider is no promise, onnxruntime leaves to the CPU what it must."""

from __future__ import annotations

import dataclasses
from collections import Counter

from gemma_runtime.graph_choice import PROVIDERS
from gemma_validation.errors import FolderUnreadableError, ProviderUnavailableError
from gemma_validation.findings import Check
from gemma_validation.structure.sessions import ProfiledSessions

__all__ = ["PROVIDERS_CHECK", "check_providers", "judge_providers"]

PROVIDERS_CHECK = "providers"
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


def check_providers(sessions: ProfiledSessions) -> Check:
    """Whether all nodes ran on the provider; graphs that nobody has opened are opened for it.

    A twin that needs a later onnxruntime is left out, and named.

    Args:
        sessions: of the folder.

    Raises:
        ProviderUnavailableError: the main graph's provider does not start.
    """
    left_out, graphs = [], sessions.manifest.graphs
    # the main graph first: where the provider does not start, there is nothing to look at
    for graph in sorted(graphs, key=lambda graph: graph.role != "main"):
        if graph.file in sessions.ran:
            continue
        try:
            sessions.open(graph.role)
        except ProviderUnavailableError:
            if graph.role == "main":
                raise
            left_out.append(graph.file)
        except FolderUnreadableError as error:
            return Check(group="structure", name=PROVIDERS_CHECK, outcome="failed", message=error.message)
    found = {graph.file: sessions.ran[graph.file] for graph in graphs if graph.file in sessions.ran}
    for file, ran in found.items():
        judged = judge_providers(ran, sessions.provider)
        if judged.outcome == "failed":
            return dataclasses.replace(judged, message=f"{file}: {judged.message}")
    judged = judge_providers(sum(found.values(), Counter()), sessions.provider)
    told = f"{len(found)} graphs, two tokens each: {judged.message}"
    not_run = f"; not run by this onnxruntime: {', '.join(left_out)}" if left_out else ""
    return dataclasses.replace(judged, message=f"{told}{not_run}")


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
        return Check(group="structure", name=PROVIDERS_CHECK, outcome="failed", message=message)
    told = ", ".join(f"{count} {operator}" for (_, operator), count in sorted(helpers.items()))
    message = f"{there} nodes ran on {wanted}" + (f"; beside it on the CPU, shapes and lengths: {told}" if told else "")
    return Check(group="structure", name=PROVIDERS_CHECK, outcome="passed", message=message)
