"""The one place where the benchmark meets the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_runtime.graph_choice import choose_provider
from gemma_runtime.manifest import Manifest, read_manifest, verify_structure
from gemma_runtime.sequence import TokenSequence
from gemma_runtime.session import OpenedGraph

__all__ = ["Engine"]


class Engine:
    """A loaded folder that runs one sequence at a time, without tokenizer and sampling.

    Args:
        directory: an exported folder.
        provider: "cpu", "cuda", "directml" or "auto".
        threads: of the CPU's kernels; None for the engine's own choice.
        profile: beginning of the name of a file for onnxruntime's profile.

    Raises:
        GemmaRuntimeError: any subclass.
    """

    def __init__(self, directory: Path, *, provider: str, threads: int | None, profile: Path | None = None) -> None:
        self.manifest: Manifest = read_manifest(directory)
        verify_structure(directory, self.manifest)
        # what runs it, and why that
        self.provider, self.provider_reason = choose_provider(self.manifest, provider)
        self._opened = OpenedGraph(directory, self.manifest, provider=self.provider, threads=threads, profile=profile)
        self.graph = self._opened.graph
        self._sequence: TokenSequence | None = None

    def start(self, ids: Sequence[int], capacity: int) -> int:
        """Reads the prompt of a new sequence of at most `capacity` tokens; the most likely next token."""
        # the old cache goes before the new one comes: there is only ever one
        self._sequence = None
        self._sequence = TokenSequence(self._opened, capacity)
        logits = self._sequence.extend(ids)
        assert logits is not None
        return int(logits[-1].argmax())

    def step(self, token: int) -> int:
        """Appends one token; the most likely next one."""
        assert self._sequence is not None
        return int(self._sequence.step([token])[-1].argmax())

    def end_profile(self) -> Path:
        """Ends the profile that was asked for and says where it is."""
        return self._opened.end_profile()
