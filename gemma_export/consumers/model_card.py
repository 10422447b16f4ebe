"""README.md of the folder: what it is, where it comes from, how to run it."""

from __future__ import annotations

from pathlib import Path

from gemma_export.consumers.consumer import Consumer, FolderFacts

__all__ = ["MODEL_CARD"]


def _files(facts: FolderFacts) -> dict[str, bytes | Path]:
    spec = facts.spec
    graphs = "\n".join(f"| `{path}` | {role} | {logits} |" for path, (role, logits) in sorted(facts.graphs.items()))
    header = ["---", "library_name: onnxruntime"]
    if facts.source_kind in ("local", "hub"):
        header.append("license: gemma")
    if facts.repository is not None:
        header.append(f"base_model: {facts.repository}")
    integers = "" if facts.quantised_by is None else f", the checkpoint's own integers ({facts.quantised_by})"
    card = f"""{chr(10).join(header)}
tags: [onnx, gemma]
---

# {facts.title}

An ONNX export of {facts.source}, made by gemma-export.

- architecture: {spec.family}, {spec.num_hidden_layers} layers, hidden size {spec.hidden_size}, {spec.num_attention_heads} query heads, {spec.num_key_value_heads} key-value heads of {spec.head_dim}, vocabulary {spec.vocab_size}
- precision: {facts.precision}{integers}, keys and values in {facts.state_dtype}; target: {facts.target}; execution providers: {", ".join(facts.providers)}
- context: {spec.max_position_embeddings} tokens
- licence of the weights: {facts.license_url}; see `NOTICE`

| graph | role | logits |
|---|---|---|
{graphs}

All graphs read one data file. `gemma_export.json` lists every file with its size and SHA-256.

```
gemma-run . "Your prompt"
gemma-export verify .
```
"""
    return {"README.md": card.encode()}


MODEL_CARD = Consumer(name="model card", files=_files)
