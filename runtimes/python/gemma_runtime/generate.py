"""Prompt in, text out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gemma_runtime.chat import END_OF_TURN, chat_prompt
from gemma_runtime.errors import ManifestError, ModelOutputError, PromptError
from gemma_runtime.manifest import Manifest, read_manifest, verify_hashes, verify_structure
from gemma_runtime.sampling import Sampling, TokenChooser
from gemma_runtime.session import DecoderSession
from gemma_runtime.tokenizer import StreamDecoder, load_tokenizer

__all__ = ["Generation", "TextGenerator"]

# A prompt goes through in parts: kernels are as fast as they get from about 128 rows on, and a part's activations
# (the feed-forward width of a 7B is 24,576) stay near 100 MB whatever the prompt's length.
_PREFILL_TOKENS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What came out, and how fast."""

    text: str
    # generated tokens only, without the stop token
    token_ids: tuple[int, ...]
    # "stop": a stop token; "length": as many tokens as asked for; "context": the context is full
    finish_reason: str
    prompt_tokens: int
    prefill_tokens_per_second: float
    # of the steps after the first token; 0 where there were none
    decode_tokens_per_second: float


class TextGenerator:
    """A folder, loaded.

    Args:
        directory: what gemma-export wrote.
        provider: "cpu", "cuda" or "directml".
        verify: also read and hash the weight data before loading it.

    Raises:
        GemmaRuntimeError: any subclass.
    """

    def __init__(self, directory: Path | str, *, provider: str = "cpu", verify: bool = False) -> None:
        directory = Path(directory)
        self.manifest: Manifest = read_manifest(directory)
        verify_structure(directory, self.manifest)
        if verify:
            verify_hashes(directory, self.manifest)
        # only what the manifest lists: a file that was put there later is covered by no hash
        listed = frozenset(entry.path for entry in self.manifest.files)
        self.tokenizer = load_tokenizer(directory, listed=listed)
        self.stop_ids = _stop_ids(directory, listed, self.manifest.vocab_size, self.tokenizer.find(END_OF_TURN))
        self._session = DecoderSession(directory, self.manifest, provider=provider)
        # the graph that runs
        self.graph = self._session.graph

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        chat: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Generates until a stop token, `max_new_tokens` or the end of the context.

        Args:
            prompt: text; special tokens written in it count as such. One BOS is put in front.
            max_new_tokens: at least 1.
            sampling: greedy if not given.
            chat: put the prompt into Gemma's turns.
            on_text: called with each new piece of text; the pieces join to the result's text.

        Raises:
            PromptError: an empty prompt, or one longer than the context.
            ModelOutputError: logits that are NaN or infinite.
        """
        ids = self._encode(prompt, max_new_tokens, chat=chat)
        sampling = sampling or Sampling()
        # the last token of a full context needs no slot: nothing attends to it
        room = min(max_new_tokens, self.manifest.context_length - len(ids) + 1)
        self._session.reset(len(ids) + room - 1)
        began = time.perf_counter()
        logits = self._prefill(ids)
        prefilled = time.perf_counter()
        chooser = TokenChooser(sampling, vocab_size=self.manifest.vocab_size, prompt_ids=ids, stop_ids=self.stop_ids)
        tokens, text, stopped = self._decode(logits, room, chooser, on_text)
        ended = time.perf_counter()
        steps = len(tokens) if stopped else len(tokens) - 1
        full = "length" if room == max_new_tokens else "context"
        return Generation(
            text=text,
            token_ids=tuple(tokens),
            finish_reason="stop" if stopped else full,
            prompt_tokens=len(ids),
            prefill_tokens_per_second=len(ids) / (prefilled - began),
            decode_tokens_per_second=steps / (ended - prefilled) if steps > 0 else 0.0,
        )

    def _encode(self, prompt: str, max_new_tokens: int, *, chat: bool) -> list[int]:
        if max_new_tokens < 1:
            raise PromptError(
                f"max-new-tokens must be 1 or above, found {max_new_tokens}", hint="See gemma-run --help."
            )
        if not prompt:
            raise PromptError("the prompt is empty", hint="Give a text to continue.")
        try:
            # a lone surrogate (from a shell argument that is not UTF-8) has no tokens
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt is not valid UTF-8 at character {error.start}", hint="Re-encode it."
            ) from error
        ids = self.tokenizer.encode(chat_prompt(self.tokenizer, prompt) if chat else prompt)
        limit = self.manifest.context_length
        if len(ids) > limit:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, this folder's context has {limit}",
                hint="Shorten the prompt, or export with a larger --context.",
            )
        # Gather wraps negative ids around and reads past the table for large ones
        wrong = next((token for token in ids if not 0 <= token < self.manifest.vocab_size), None)
        if wrong is not None:
            raise ManifestError(
                f"the tokenizer gives token id {wrong}, the embedding has {self.manifest.vocab_size} rows",
                hint="The tokenizer belongs to another model: export again with the right tokenizer files.",
            )
        return ids

    def _prefill(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        size = _PREFILL_TOKENS if self._session.chunked else len(ids)
        for start in range(0, len(ids), size):
            logits = self._session.step(ids[start : start + size])
        return logits

    def _decode(
        self,
        logits: np.ndarray[Any, np.dtype[np.float32]],
        room: int,
        chooser: TokenChooser,
        on_text: Callable[[str], None] | None,
    ) -> tuple[list[int], str, bool]:
        """(tokens, text, whether a stop token ended it)."""
        decoder = StreamDecoder(self.tokenizer)
        tokens: list[int] = []
        parts: list[str] = []

        def emit(part: str) -> None:
            parts.append(part)
            if part and on_text is not None:
                on_text(part)

        stopped = False
        while True:
            _check_finite(logits, len(tokens))
            token = chooser.choose(logits)
            stopped = token in self.stop_ids
            if stopped:
                break
            chooser.accept(token)
            tokens.append(token)
            emit(decoder.push(token))
            if len(tokens) == room:
                break
            logits = self._session.step([token])
        emit(decoder.flush())
        return tokens, "".join(parts), stopped


def _check_finite(logits: np.ndarray[Any, np.dtype[np.float32]], position: int) -> None:
    # argmax of NaN is silently token 0
    if not np.isfinite(logits).all():
        raise ModelOutputError(
            f"{int((~np.isfinite(logits)).sum())} logits are NaN or infinite at new token {position}",
            hint="float16 overflowed: export with --residual-scale measure or with --fp32, and report the prompt.",
        )


def _stop_ids(directory: Path, listed: frozenset[str], vocab_size: int, end_of_turn: int | None) -> frozenset[int]:
    """eos_token_id of generation_config.json (one or a list), and the end of a turn."""
    path = directory / "generation_config.json"
    if path.name not in listed:
        raise ManifestError(f"the manifest lists no {path.name}", hint="Export the folder again.")
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}", hint="Export the folder again.") from error
    ids = found if isinstance(found, list) and found else [found]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ManifestError(
                f"{path.name}: eos_token_id must be token ids from 0 to {vocab_size - 1}, found {found!r}",
                hint="Correct the checkpoint's generation_config.json and export again.",
            )
    return frozenset(ids) | (frozenset() if end_of_turn is None else {end_of_turn})
