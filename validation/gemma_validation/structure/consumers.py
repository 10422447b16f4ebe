"""Files for other readers of the folder: are they what the exporter would write from the folder's own configuration?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemma_export.checkpoint.json_file import read_json
from gemma_export.consumers import CONSUMERS, Consumer
from gemma_export.consumers import FolderFacts as ConsumerFacts
from gemma_export.consumers.tokenizer_check import check_ids, read_tokenizer_json
from gemma_export.errors import GemmaExportError
from gemma_export.families import check_generation_config, family_of
from gemma_runtime.errors import GemmaRuntimeError
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation.structure.facts import FolderFacts

__all__ = ["consumer_configuration", "generation_configuration", "tokenizer_configuration"]

_GENERATION, _TOKENIZER = "generation_config.json", "tokenizer_config.json"
# tokens that no text ends with, though the tokenizer calls them special
_NO_END = re.compile(r"<unused\d+>|<unk>|<mask>|<bos>|<pad>|<start_of_turn>")
# transformers' own tag around what an assistant says: https://huggingface.co/docs/transformers/chat_templating_writing
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
# a file in which everything is wrong needs no more lines than this
_MOST = 20


def consumer_configuration(facts: FolderFacts) -> Iterator[str]:
    """config.json and genai_config.json: names, lengths, ids and sampling, as the exporter derives them."""
    try:
        told = _consumer_facts(facts)
        files = _made("transformers", told) | _made("onnxruntime-genai", told)
    except GemmaExportError as error:
        yield error.message
        return
    for name in ("config.json", "genai_config.json"):
        if not (facts.directory / name).is_file():
            continue
        try:
            found = read_json(facts.directory / name)
        except GemmaExportError as error:
            yield error.message
            continue
        if name not in files:
            yield f"{name}: expected none, its format has no words for this model's state"
            continue
        for count, line in enumerate(_differences(found, json.loads(files[name]), "")):
            if count < _MOST:
                yield f"{name}: {line}"


def generation_configuration(facts: FolderFacts) -> Iterator[str]:
    """generation_config.json: ids that exist, config.json's BOS, and ends of text that are ends of text."""
    try:
        content = _optional_json(facts.directory / _GENERATION)
        if content is None:
            return
        check_generation_config(content, vocab_size=facts.spec.vocab_size)
    except GemmaExportError as error:
        yield error.message
        return
    bos = content.get("bos_token_id", facts.spec.bos_token_id)
    if bos != facts.spec.bos_token_id:
        yield f"{_GENERATION}: bos_token_id is {bos}, config.json has {facts.spec.bos_token_id}"
    found = content.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    allowed = _ends(facts)
    wrong = [] if allowed is None else [token for token in ids if token not in allowed]
    if wrong:
        yield f"{_GENERATION}: eos_token_id has {wrong}, neither config.json's nor special tokens of the tokenizer"


def tokenizer_configuration(facts: FolderFacts) -> Iterator[str]:
    """tokenizer_config.json: BOS is added and is config.json's, the chat template is one."""
    try:
        content = _optional_json(facts.directory / _TOKENIZER)
        if content is None:
            return
        if (facts.directory / "tokenizer.json").is_file():
            summary = read_tokenizer_json(facts.directory / "tokenizer.json")
            check_ids(summary, facts.spec, content, _optional_json(facts.directory / _GENERATION) or {})
    except GemmaExportError as error:
        yield error.message
        return
    if _is_source_file(facts, _TOKENIZER):
        # what the checkpoint itself says is no defect of the export
        return
    # Gemma is trained with it: https://ai.google.dev/gemma/docs/core/prompt-structure
    if content.get("add_bos_token") is not True:
        yield f"{_TOKENIZER}: add_bos_token is {content.get('add_bos_token')}, expected True"
    length = content.get("model_max_length")
    if not isinstance(length, int | float) or not 0 < length <= facts.spec.max_position_embeddings:
        yield f"{_TOKENIZER}: model_max_length is {length}, expected at most {facts.spec.max_position_embeddings}"
    templates = _templates(content.get("chat_template"))
    for template in templates:
        problem = _template_problem(template)
        if problem is not None:
            yield f"{_TOKENIZER}: chat_template {problem}"


def _is_source_file(facts: FolderFacts, name: str) -> bool:
    """Whether the folder's file is the checkpoint's, byte by byte."""
    found = {entry.sha256 for entry in facts.manifest.files if entry.path == name}
    return any(entry.name == name and entry.sha256 in found for entry in facts.manifest.source.files)


def _consumer_facts(facts: FolderFacts) -> ConsumerFacts:
    """What the exporter knew when it wrote the files, as far as they depend on it."""
    manifest, spec = facts.manifest, facts.spec
    main = manifest.graph("main")
    config = read_json(facts.directory / "config.json")
    return ConsumerFacts(
        title=manifest.variant or manifest.family,
        repository=manifest.source.repository,
        source_kind=manifest.source.kind,
        source="",
        adapter=None,
        license_url="",
        spec=spec,
        states=family_of(config).cache_states(spec),
        config=config,
        generation_config=_optional_json(facts.directory / _GENERATION),
        tokenizer_files={},
        target=manifest.target,
        cache_layout=manifest.cache_layout,
        precision=manifest.precision.name,
        quantised_by=None,
        activation_dtype=manifest.precision.activation_dtype,
        state_dtype=main.state[0].dtype if main.state else manifest.precision.activation_dtype,
        providers=manifest.providers,
        graphs={graph.file: (graph.role, str(graph.logits)) for graph in manifest.graphs},
        data_files=main.data_files,
    )


def _made(name: str, facts: ConsumerFacts) -> dict[str, Any]:
    consumer: Consumer = next(consumer for consumer in CONSUMERS if consumer.name == name)
    return dict(consumer.files(facts))


def _optional_json(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.is_file() else None


def _differences(found: Any, expected: Any, place: str) -> Iterator[str]:
    """Where two JSON values differ, a line each."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            below = f"{place}.{key}" if place else str(key)
            if key not in found:
                yield f"{below:.80} is missing, expected {expected[key]!r:.80}"
            elif key not in expected:
                yield f"{below:.80} is {found[key]!r:.80}, expected no such key"
            else:
                yield from _differences(found[key], expected[key], below)
    # True is 1
    elif found != expected or isinstance(found, bool) is not isinstance(expected, bool):
        yield f"{place:.80} is {found!r:.80}, expected {expected!r:.80}"


def _ends(facts: FolderFacts) -> set[int] | None:
    """Ids at which a text may end; None where no tokenizer can be asked."""
    try:
        tokenizer = load_tokenizer(facts.directory)
    except GemmaRuntimeError:
        return None
    special = {token for token, text in tokenizer.special_tokens().items() if not _NO_END.fullmatch(text)}
    try:
        own = (_optional_json(facts.directory / _TOKENIZER) or {}).get("eos_token")
    except GemmaExportError:
        own = None
    named = tokenizer.find(str(own.get("content") if isinstance(own, Mapping) else own)) if own else None
    return special | set(facts.spec.eos_token_ids) | (set() if named is None else {named})


def _templates(found: Any) -> list[Any]:
    """One template, or several with names: https://huggingface.co/docs/transformers/chat_templating."""
    if found is None:
        return []
    if isinstance(found, list):
        return [entry.get("template") if isinstance(entry, Mapping) else entry for entry in found]
    return [found]


def _template_problem(template: Any) -> str | None:
    """What is wrong with a chat template; it is parsed and not run, because whoever wrote it may be hostile."""
    if not isinstance(template, str):
        return f"is {template!r:.60}, expected a text"
    try:
        import jinja2
        import jinja2.meta
    except ImportError:
        return None if "messages" in template else "does not read messages"
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
    try:
        tree = environment.parse(_GENERATION_TAG.sub("", template))
    except jinja2.TemplateError as error:
        return f"is no Jinja template: {error!s:.120}"
    return None if "messages" in jinja2.meta.find_undeclared_variables(tree) else "does not read messages"
