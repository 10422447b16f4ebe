"""The one place where the benchmark meets the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_runtime.manifest import Manifest, read_manifest, verify_structure
from gemma_runtime.session import DecoderSession

__all__ = ["Engine"]

# as the generation loop does it
_PREFILL_TOKENS = 512


class Engine:
    """A loaded folder that runs one sequence at a time.

    Args:
        directory: an exported folder.
        provider: "cpu", "cuda" or "directml".
        threads: of onnxruntime; None for the engine's own choice.
        profile: start of the name of a file for onnxruntime's profile.

    Raises:
        GemmaRuntimeError: any subclass.
    """

    def __init__(self, directory: Path, *, provider: str, threads: int | None, profile: Path | None = None) -> None:
        self.manifest: Manifest = read_manifest(directory)
        verify_structure(directory, self.manifest)
        self._session = DecoderSession(directory, self.manifest, provider=provider, threads=threads, profile=profile)
        self.graph = self._session.graph

    def start(self, ids: Sequence[int], capacity: int) -> int:
        """Starts a new sequence of at most `capacity` tokens and reads its prompt; the most likely next token."""
        self._session.reset(capacity)
        size = _PREFILL_TOKENS if self._session.chunked else len(ids)
        for begin in range(0, len(ids), size):
            logits = self._session.step(ids[begin : begin + size])
        return int(logits.argmax())

    def step(self, token: int) -> int:
        """Appends one token; the most likely next one."""
        return int(self._session.step([token]).argmax())

    def end_profile(self) -> Path:
        """Ends the profile that was asked for and says where it is."""
        return self._session.end_profiling()
