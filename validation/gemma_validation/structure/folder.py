"""config.json and the tokenizer: do they tell of the same model as the manifest?"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_runtime.errors import GemmaRuntimeError, MissingTokenizerError
from gemma_validation.structure.facts import FolderFacts

__all__ = ["configuration", "tokenizer"]

_FILES = ("tokenizer.json", "tokenizer.model")
# cut by both tokenizer files, where a folder has both: words, indentation, digits, other scripts, byte fallback
_SAMPLE = "def read_lines(path):\n    return [line for line in open(path)]  # 2048\n東京 \u0416 \u0928\u092e \U0001f600"


def configuration(facts: FolderFacts) -> Iterator[str]:
    """config.json against the manifest."""
    manifest, spec = facts.manifest, facts.spec
    pairs = {
        "family": (spec.family, manifest.family),
        "vocab_size": (spec.vocab_size, manifest.vocab_size),
        "max_position_embeddings": (spec.max_position_embeddings, manifest.context_length),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            yield f"config.json: {name} is {found}, the manifest says {expected}"
    for graph in manifest.graphs:
        layers = sorted(state.layer for state in graph.state if state.kind == "key_value")
        if layers != list(range(spec.num_hidden_layers)):
            yield f"{graph.file} has state for {len(layers)} layers, config.json has {spec.num_hidden_layers}"
        for state in graph.state:
            if (state.shape[1], state.shape[3]) != (spec.num_key_value_heads, spec.head_dim):
                yield (
                    f"{graph.file}, {state.past[0]}: {state.shape[1]} heads of {state.shape[3]}, config.json has "
                    f"{spec.num_key_value_heads} of {spec.head_dim}"
                )


def tokenizer(facts: FolderFacts) -> Iterator[str]:
    """Tokenizer files: ids that the embedding table has, config.json's BOS, the source's own, and of one mind."""
    from gemma_runtime.tokenizer import load_tokenizer

    spec = facts.spec
    loaded = {}
    for library, file in (("tokenizers", "tokenizer.json"), ("sentencepiece", "tokenizer.model")):
        try:
            loaded[file] = load_tokenizer(facts.directory, library)
        except MissingTokenizerError:
            continue
        except GemmaRuntimeError as error:
            yield error.message
    for file, found in loaded.items():
        if found.size > spec.vocab_size:
            yield f"{file} has {found.size} tokens, the embedding table {spec.vocab_size} rows"
        if found.bos_id not in (None, spec.bos_token_id):
            yield f"{file}: BOS has id {found.bos_id}, config.json says {spec.bos_token_id}"
    if len(loaded) == 2:
        first, second = (list(found.encode(_SAMPLE)) for found in loaded.values())
        if first != second:
            place = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
            yield f"tokenizer.json and tokenizer.model cut the same text differently, from token {place} on"
    yield from _copied(facts)


def _copied(facts: FolderFacts) -> Iterator[str]:
    """The source's tokenizer files go into the folder as they are, so its hashes are theirs."""
    found = {entry.path: entry.sha256 for entry in facts.manifest.files}
    sources = [entry for entry in facts.manifest.source.files if entry.name in _FILES]
    if sources and not any(name in found for name in _FILES):
        yield f"the folder has no tokenizer, the source had {', '.join(entry.name for entry in sources)}"
    for source in sources:
        if found.get(source.name, source.sha256) != source.sha256:
            yield f"{source.name} is not the one that the weights came with"
