"""Reference decoders, checkpoints made from them, and graphs run step by step: shared by the parity tests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import torch
import transformers

# Every trap in one place: head_dim differs from hidden / heads, kv_heads from heads, epsilon and rotary base are odd.
_BASE = {
    # the built-in tokenizer's
    "vocab_size": 3072,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, object]] = {
    "gqa": {**_BASE, "rope_theta": 10000.0},
    "mqa": {**_BASE, "num_key_value_heads": 1, "rope_theta": 10000.0, "rms_norm_eps": 1e-3},
    "mha": {**_BASE, "num_key_value_heads": 4, "rope_theta": 500.0, "head_dim": 16},
    "untied": {**_BASE, "tie_word_embeddings": False, "rope_theta": 10000.0, "hidden_size": 40},
    "odd rotary": {**_BASE, "rope_theta": 777.7, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64},
}


# onnxruntime's name of a state's element type -> numpy's
STATE_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


def reference_model(config: dict[str, object], seed: int = 0) -> transformers.GemmaForCausalLM:
    """The reference implementation in float32 with weights large enough that mistakes show."""
    torch.manual_seed(seed)
    arguments = {key: value for key, value in config.items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**arguments, rope_parameters=rope))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.ndim == 2 else 0.3))
    return model.eval()


def builtin_reference(name: str = "tiny", **config: object) -> transformers.PreTrainedModel:
    """The reference implementation with built-in weights, in float32; `config` changes keys of its config.json."""
    from gemma_export.checkpoint import BUILTIN_DIRECTORIES

    # torch's fused attention has no soft-capping
    attention = "sdpa" if name == "tiny" else "eager"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        BUILTIN_DIRECTORIES[name], dtype=torch.float32, attn_implementation=attention, **config
    )
    return model.eval()


def write_checkpoint(
    model: transformers.GemmaForCausalLM,
    directory: Path,
    config: dict[str, object],
    tokenizer_from: Path,
    **options: object,
) -> Path:
    """Saves a checkpoint whose config.json is exactly `config`, with tokenizer files from another checkpoint."""
    model.save_pretrained(directory, **options)
    (directory / "config.json").write_text(json.dumps({"model_type": "gemma", **config}))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, directory / name)
    return directory


class Graph:
    """One exported graph on onnxruntime's CPU provider, fed step by step.

    Args:
        model: path or serialized bytes.
        optimised: False keeps products of DequantizeLinear in float32, which sessions fold into MatMulNBits.
    """

    # rows of window-sized caches
    window_capacity = 0

    def __init__(self, model: Path | bytes, *, optimised: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.past_names = [value.name for value in self.session.get_inputs()[2:]]
        past = self.session.get_inputs()[2]
        self.dtype = STATE_DTYPES[past.type]
        self.state_shape = past.shape

    def empty_cache(self, batch_size: int) -> list[np.ndarray]:
        """State before the first token."""
        shapes = [value.shape for value in self.session.get_inputs()[2:]]
        lengths = [self.window_capacity if shape[2] == "window_capacity" else 0 for shape in shapes]
        return [
            np.zeros((batch_size, shape[1], length, shape[3]), self.dtype)
            for shape, length in zip(shapes, lengths, strict=True)
        ]

    def step(
        self, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Runs one step; ids [B, S], mask [B, T].

        Returns:
            float32 logits and the new state.
        """
        past = self.empty_cache(len(ids)) if past is None else past
        feeds = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
        logits, *present = self.session.run(None, feeds | dict(zip(self.past_names, past, strict=True)))
        return logits.astype(np.float32), present

    def chunks(self, ids: np.ndarray, size: int) -> np.ndarray:
        """Logits of every position, prefilled `size` tokens at a time."""
        past, logits = None, []
        for start in range(0, ids.shape[1], size):
            chunk = ids[:, start : start + size]
            out, past = self.step(chunk, np.ones((len(ids), start + chunk.shape[1])), past)
            logits.append(out)
        return np.concatenate(logits, axis=1)

    def greedy(self, ids: np.ndarray, count: int) -> list[int]:
        """`count` greedy tokens after one prompt [1, S]."""
        logits, past = self.step(ids, np.ones_like(ids))
        tokens = [int(logits[0, -1].argmax())]
        while len(tokens) < count:
            total = ids.shape[1] + len(tokens)
            logits, past = self.step(np.array([[tokens[-1]]]), np.ones((1, total)), past)
            tokens.append(int(logits[0, -1].argmax()))
        return tokens


@torch.no_grad()
def reference_logits(model: transformers.GemmaForCausalLM, ids: np.ndarray) -> np.ndarray:
    """[B, S, vocab] in float32."""
    return model(input_ids=torch.from_numpy(ids)).logits.numpy()


def reference_choices(model: transformers.GemmaForCausalLM, prompt: np.ndarray, tokens: list[int]) -> list[int]:
    """What the reference chooses greedily after the prompt and after each of the tokens but the last.

    If these are the tokens, the reference's own greedy generation is the tokens too, without its cache.
    """
    sequence = np.concatenate((prompt, [tokens[:-1]]), axis=1)
    return reference_logits(model, sequence)[0, prompt.shape[1] - 1 :].argmax(-1).tolist()
