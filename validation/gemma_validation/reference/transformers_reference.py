"""The reference as transformers computes it, whole in memory: eager, float32, or bfloat16 as a noise floor."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemma_export.errors import GemmaExportError
from gemma_validation.documents import Document
from gemma_validation.errors import ReferenceMissingError
from gemma_validation.findings import ReferenceAbout
from gemma_validation.reference.checkpoint import ReferenceCheckpoint
from gemma_validation.reference.packages import quiet_transformers
from gemma_validation.reference.source import Cache, Exchanged
from gemma_validation.softcap import soft_capped

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersReference"]

# Tokens that run at once. Eager attention holds heads * chunk * length scores several times over: 64 MB each for 8
# heads at 4,096 tokens, 512 MB if a document of that length ran in one piece.
_CHUNK = 512
# config.json's model_type -> transformers' configuration and model
_CLASSES = {
    "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "vaultgemma": ("VaultGemmaConfig", "VaultGemmaForCausalLM"),
}
# float32 weights up to which a second thread waits more than it works; on a busy machine far more
_SMALL_BYTES = 256 << 20


class TransformersReference:
    """A ReferenceSource over transformers.

    Args:
        checkpoint: what it computes.
        dtype: "float32" or "bfloat16", of weights and arithmetic.

    Raises:
        MissingPackageError: torch or transformers is not installed.
        ReferenceMissingError: transformers cannot load the weights.
    """

    def __init__(self, checkpoint: ReferenceCheckpoint, *, dtype: str = "float32") -> None:
        self._checkpoint = checkpoint
        with quiet_transformers() as transformers:
            import torch

            from gemma_export.weights import one_thread

            self._torch: Any = torch
            self.model: Any = _model(transformers, checkpoint, getattr(torch, dtype))
        self.vocab_size = checkpoint.spec.vocab_size
        self.about = ReferenceAbout(
            kind="transformers",
            name=checkpoint.name,
            dtype=dtype,
            versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        )
        small = checkpoint.float32_bytes <= _SMALL_BYTES
        self._threads: Callable[[], contextlib.AbstractContextManager[None]] = (
            one_thread if small else contextlib.nullcontext
        )
        # of each document: after the last norm, [tokens, hidden_size]
        self._states: list[torch.Tensor] = []
        self._asked: tuple[Sequence[int], Cache] | None = None

    def prepare(self, documents: Sequence[Document]) -> None:
        """See ReferenceSource; keeps the final hidden states, 4 * hidden_size bytes a token."""
        self._states = [self._run(document.token_ids, None)[0] for document in documents]

    def logits(self, document: int, first: int, last: int) -> npt.NDArray[np.float32]:
        """See ReferenceSource; the head runs on these rows only."""
        return self._head(self._states[document][first:last])

    def noise(self) -> TransformersReference | None:
        """See ReferenceSource."""
        return TransformersReference(self._checkpoint, dtype="bfloat16") if self.about.dtype == "float32" else None

    def exchange(self, token_ids: Sequence[int], past: Cache) -> None:
        """See CacheSource."""
        self._asked = (token_ids, past)

    def exchanged(self) -> Exchanged:
        """See CacheSource."""
        assert self._asked is not None, "exchange() comes first"
        token_ids, past = self._asked
        split = past[0].shape[2]
        cache = self.cache_after(token_ids[:split])
        plain, behind = (self.logits_after(before, token_ids[split:]) for before in (cache, past))
        return Exchanged(cache=cache, plain=plain, behind=behind)

    def cache_after(self, token_ids: Sequence[int]) -> Cache:
        """Keys and values of a sequence, keys rotated: key, value of layer 0, then of layer 1, ..."""
        with quiet_transformers() as transformers:
            # without a configuration layers with a window keep what is outside it, as exported graphs do
            whole = transformers.DynamicCache()
        _, cache = self._run(token_ids, whole)
        return tuple(part.float().numpy() for layer in cache.layers for part in (layer.keys, layer.values))

    def logits_after(self, past: Cache, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of tokens that follow a cache from elsewhere, [tokens, vocab_size]."""
        with quiet_transformers() as transformers:
            cache = transformers.DynamicCache(config=self.model.config)
            parts = [self._torch.from_numpy(np.array(part)).to(self.model.dtype) for part in past]
            for layer in range(len(parts) // 2):
                cache.update(parts[2 * layer], parts[2 * layer + 1], layer)
        states, _ = self._run(token_ids, cache)
        return self._head(states)

    def close(self) -> None:
        """See ReferenceSource."""
        self._states = []
        self.model = None

    def _run(self, token_ids: Sequence[int], cache: Any) -> tuple[torch.Tensor, Any]:
        """Final hidden states [tokens, hidden_size] of tokens behind a cache, and the cache with them."""
        torch, states = self._torch, []
        with quiet_transformers() as transformers, torch.no_grad(), self._threads():
            cache = transformers.DynamicCache(config=self.model.config) if cache is None else cache
            for start in range(0, len(token_ids), _CHUNK):
                ids = torch.tensor([list(token_ids[start : start + _CHUNK])])
                output = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True)
                states.append(output.last_hidden_state[0])
        return torch.cat(states), cache

    def _head(self, states: torch.Tensor) -> npt.NDArray[np.float32]:
        cap = getattr(self.model.config, "final_logit_softcapping", None) or 0.0
        with self._torch.no_grad(), self._threads():
            logits: npt.NDArray[np.float32] = soft_capped(self.model.lm_head(states), cap).float().numpy()
        return logits


def _model(transformers: Any, checkpoint: ReferenceCheckpoint, dtype: torch.dtype) -> Any:
    config_name, model_name = _CLASSES[checkpoint.family.model_type]
    model_class = getattr(transformers, model_name)
    try:
        config = getattr(transformers, config_name).from_dict(_readable(checkpoint))
        if checkpoint.plain:
            model = _loaded(model_class, config, checkpoint, dtype)
        else:
            model = _assembled(model_class, config, checkpoint, dtype)
    except (GemmaExportError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:300]
        raise ReferenceMissingError(
            f"transformers {transformers.__version__} cannot load {checkpoint.name}: {reason}",
            hint="The checkpoint may be damaged, or too new or too old for this release of transformers.",
        ) from error
    return model.eval()


def _readable(checkpoint: ReferenceCheckpoint) -> dict[str, Any]:
    """config.json, with a window where none is set: transformers makes that mask even if no layer looks at it."""
    config = dict(checkpoint.config)
    if "sliding_window" in config and config["sliding_window"] is None and not any(checkpoint.spec.windows):
        config["sliding_window"] = checkpoint.spec.max_position_embeddings
    return config


def _loaded(model_class: Any, config: Any, checkpoint: ReferenceCheckpoint, dtype: torch.dtype) -> Any:
    """transformers' model by its own loader."""
    model, told = model_class.from_pretrained(
        checkpoint.directory,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        local_files_only=True,
        # never a pickle
        use_safetensors=True,
        output_loading_info=True,
    )
    if told["missing_keys"]:
        # it would go on with random ones
        raise ValueError(f"it finds no tensor for {sorted(told['missing_keys'])[:3]}")
    return model


def _assembled(model_class: Any, config: Any, checkpoint: ReferenceCheckpoint, dtype: torch.dtype) -> Any:
    """transformers' model with weights that its own loader would not give it: merged, multiplied out, generated."""
    import torch

    config._attn_implementation = "eager"
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        model = model_class(config)
    finally:
        torch.set_default_dtype(before)
    weights = {name: checkpoint.weight(name).tensor() for name in checkpoint.shapes}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # a tied head is the embedding and has no tensor of its own
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"its tensors differ from the architecture's: {[*missing, *unexpected][:3]}")
    return model
