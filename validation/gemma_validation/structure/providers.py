"""Where each node really runs: asking for a provider is no promise, onnxruntime leaves to the CPU what it must."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from gemma_runtime.graph_choice import PROVIDERS
from gemma_runtime.manifest import Graph, Manifest
from gemma_validation.artifact import ArtifactRunner, graph_of_role
from gemma_validation.errors import FolderUnreadableError, ProviderUnavailableError
from gemma_validation.findings import Check

__all__ = ["PROVIDERS_CHECK", "ProfiledSessions", "judge_providers"]

PROVIDERS_CHECK = "providers"
# tokens of a static graph's cache: a little more than are run
_CAPACITY = 4
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


class ProfiledSessions:
    """A folder's graphs, opened one at a time, and who runs the nodes of each.

    A session has the weights in memory and takes seconds to open where they are large. So there is one of them, whoever
    needs it gets it from `open` and leaves it open, and the first of each graph is profiled over two tokens. `close`
    gives the memory back; what is asked for afterwards is opened again.

    Args:
        directory: the exported folder.
        manifest: its manifest.
        provider: "cpu", "cuda" or "directml".
    """

    def __init__(self, directory: Path, manifest: Manifest, *, provider: str) -> None:
        self._directory, self._manifest, self._provider = directory, manifest, provider
        # file -> how many nodes of each (provider, operator) ran, in onnxruntime's names
        self._ran: dict[str, Counter[tuple[str, str]]] = {}
        self._open: ArtifactRunner | None = None

    def open(self, role: str) -> ArtifactRunner:
        """The graph of a role: its session if it is the last one, else a new one, for which the last is closed.

        Raises:
            FolderUnreadableError, ProviderUnavailableError: see ArtifactRunner.
        """
        graph = graph_of_role(self._manifest, role)
        if self._open is None or self._open.graph != graph:
            self.close()
            self._open = self._new(graph)
        return self._open

    def close(self) -> None:
        """Gives the memory of the session that is open back."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _new(self, graph: Graph) -> ArtifactRunner:
        make = functools.partial(
            ArtifactRunner, self._directory, self._manifest, provider=self._provider, role=graph.role
        )
        if graph.file in self._ran:
            return make()
        with tempfile.TemporaryDirectory() as folder:
            runner = make(profile=Path(folder) / "profile")
            try:
                self._ran[graph.file] = _ran(runner)
            except BaseException:
                runner.close()
                raise
        return runner

    def check(self) -> Check:
        """Whether all nodes ran on the provider; graphs that nobody has opened are opened for it.

        A twin that needs a later onnxruntime is left out, and named.

        Raises:
            ProviderUnavailableError: the main graph's provider does not start.
        """
        left_out = []
        # the main graph first: where the provider does not start, there is nothing to look at
        for graph in sorted(self._manifest.graphs, key=lambda graph: graph.role != "main"):
            if graph.file in self._ran:
                continue
            try:
                self.open(graph.role)
            except ProviderUnavailableError:
                if graph.role == "main":
                    raise
                left_out.append(graph.file)
            except FolderUnreadableError as error:
                return Check(group="structure", name=PROVIDERS_CHECK, outcome="failed", message=error.message)
        found = {graph.file: self._ran[graph.file] for graph in self._manifest.graphs if graph.file in self._ran}
        for file, ran in found.items():
            judged = judge_providers(ran, self._provider)
            if judged.outcome == "failed":
                return dataclasses.replace(judged, message=f"{file}: {judged.message}")
        judged = judge_providers(sum(found.values(), Counter()), self._provider)
        told = f"{len(found)} graphs, two tokens each: {judged.message}"
        not_run = f"; not run by this onnxruntime: {', '.join(left_out)}" if left_out else ""
        return dataclasses.replace(judged, message=f"{told}{not_run}")


def _ran(runner: ArtifactRunner) -> Counter[tuple[str, str]]:
    """How many nodes of each (provider, operator) run for two tokens."""
    _two_tokens(runner)
    events = json.loads(runner.end_profile().read_text(encoding="utf-8"))
    return Counter(
        (str(event["args"]["provider"]), str(event["args"]["op_name"]))
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    )


def _two_tokens(runner: ArtifactRunner) -> None:
    """A prompt of one token, and a token behind its cache, which kernels may run elsewhere than a prompt."""
    token = np.zeros((1, 1), np.int64)
    if runner.graph.role == "static":
        state = runner.state_in_place(1, _CAPACITY)
        for index in range(2):
            runner.step_in_place(token, (np.arange(_CAPACITY) <= index).astype(np.int64)[None], state)
        return
    past = None
    for index in range(2):
        past = runner.step(token, np.ones((1, index + 1), np.int64), past).present


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
