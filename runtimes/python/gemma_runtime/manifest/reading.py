"""From the text of gemma_export.json to a `Manifest`: as strict as manifest.schema.json, without a schema library.

It adds what a schema cannot say: paths that stay inside the folder, references between entries.
"""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from gemma_runtime.errors import ManifestError
from gemma_runtime.manifest.entries import (
    SCHEMA_VERSION,
    AdapterSource,
    FileEntry,
    Generator,
    Graph,
    Manifest,
    Precision,
    Source,
    SourceFile,
    State,
)
from gemma_runtime.manifest.json_object import HINT, MANIFEST_FILE, JsonObject, load_json, wrong_value

__all__ = ["parse_manifest", "read_manifest"]

# a 27B's manifest has about 100 kB; parsing must not be where a hostile folder spends the memory
_MAX_MANIFEST_BYTES = 16 << 20
# more than any model has; buffers are as long as these say
_LONGEST_CONTEXT, _MOST_TOKENS = 1 << 24, 1 << 24
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_RELEASE = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}")
_UNSAFE = re.compile(r"[\\\x00-\x1f\x7f]")
_KINDS = ("graph", "data", "tokenizer", "config", "document")
_SOURCES = ("builtin", "local", "hub", "synthetic")
_LAYOUTS = ("compacted", "columns")
_CHUNKS = ("batched", "single", "none")


def parse_manifest(text: str) -> Manifest:
    """Reads and checks the text of gemma_export.json.

    Raises:
        ManifestError: names the key, what was expected and what was found.
    """
    top = load_json(text)
    version = top.integer("schema_version")
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{MANIFEST_FILE}: schema_version is {version}, expected {SCHEMA_VERSION}",
            hint="Use the release of gemma-export that wrote this folder, or export it again with this one.",
        )
    manifest = _manifest(top)
    top.done()
    _check_references(manifest)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest of a folder.

    Raises:
        ManifestError: the folder or its manifest is missing, unreadable or wrong.
    """
    directory = Path(directory)
    path = directory / MANIFEST_FILE
    try:
        if not path.is_file():
            kind = "is not a folder" if directory.exists() and not directory.is_dir() else f"has no {MANIFEST_FILE}"
            kind = kind if directory.exists() else "does not exist"
            raise ManifestError(f"{directory} {kind}", hint="Give a folder that gemma-export wrote.")
        size = path.stat().st_size
        if size > _MAX_MANIFEST_BYTES:
            raise ManifestError(
                f"{path}: expected at most {_MAX_MANIFEST_BYTES} bytes, found {size}", hint="This is not a manifest."
            )
        return parse_manifest(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}", hint="Check the folder's rights.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text: {error.reason}", hint=HINT) from error


def _manifest(top: JsonObject) -> Manifest:
    return Manifest(
        variant=top.optional("variant", top.text),
        family=top.text("family"),
        source=top.object("source", _source),
        target=top.text("target"),
        precision=top.object("precision", _precision),
        providers=top.texts("providers"),
        min_onnxruntime=top.text("min_onnxruntime", _RELEASE),
        cache_layout=top.text("cache_layout", among=_LAYOUTS),
        context_length=top.integer("context_length", 1, _LONGEST_CONTEXT),
        vocab_size=top.integer("vocab_size", 1, _MOST_TOKENS),
        graphs=top.objects("graphs", _graph),
        files=top.objects("files", _file),
        generator=top.object("generator", _generator),
        validation=top.optional("validation", top.mapping),
    )


def _source(read: JsonObject) -> Source:
    return Source(
        kind=read.text("kind", among=_SOURCES),
        repository=read.optional("repository", read.text),
        revision=read.optional("revision", lambda key: read.text(key, _REVISION)),
        name=read.optional("name", read.text),
        seed=read.optional("seed", read.integer),
        generator_version=read.optional("generator_version", read.integer),
        files=read.objects("files", _source_file),
        adapter=read.optional("adapter", lambda key: read.object(key, _adapter)),
    )


def _adapter(read: JsonObject) -> AdapterSource:
    ranks = read.items("ranks")
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank < 1 << 63 for rank in ranks):
        raise wrong_value("source.adapter.ranks", "integers from 1", ranks)
    return AdapterSource(
        repository=read.optional("repository", read.text),
        revision=read.optional("revision", lambda key: read.text(key, _REVISION)),
        name=read.optional("name", read.text),
        ranks=tuple(ranks),
        files=read.objects("files", _source_file),
    )


def _source_file(read: JsonObject) -> SourceFile:
    return SourceFile(name=read.text("name"), size=read.integer("size"), sha256=read.text("sha256", _SHA256))


def _generator(read: JsonObject) -> Generator:
    packages = read.mapping("packages")
    if not all(isinstance(version, str) for version in packages.values()):
        raise wrong_value("generator.packages", "version texts", packages)
    return Generator(version=read.text("version"), packages=packages)


def _precision(read: JsonObject) -> Precision:
    return Precision(
        name=read.text("name"),
        activation_dtype=read.text("activation_dtype"),
        weight_dtype=read.text("weight_dtype"),
        options=read.mapping("options"),
    )


def _graph(read: JsonObject) -> Graph:
    logits = read.value("logits")
    number = isinstance(logits, int) and not isinstance(logits, bool) and logits >= 1
    if logits not in ("last", "all") and not number:
        raise wrong_value("graphs.logits", "last, all or a number of positions", logits)
    return Graph(
        file=read.text("file"),
        role=read.text("role"),
        logits=logits,
        opset=read.integer("opset", 1),
        chunks=read.text("chunks", among=_CHUNKS),
        min_onnxruntime=read.text("min_onnxruntime", _RELEASE),
        inputs=read.texts("inputs"),
        data_files=read.texts("data_files"),
        cache_bytes=read.integer("cache_bytes"),
        state=read.objects("state", _state),
    )


def _state(read: JsonObject) -> State:
    shape = read.items("shape")
    for dim in shape:
        number = isinstance(dim, int) and not isinstance(dim, bool) and dim >= 1
        if not number and not (isinstance(dim, str) and dim):
            raise wrong_value("graphs.state.shape", "positive numbers and symbols", shape)
    state = State(
        layer=read.integer("layer"),
        kind=read.text("kind"),
        past=read.texts("past"),
        present=read.texts("present"),
        shape=tuple(shape),
        dtype=read.text("dtype"),
        window=read.integer("window"),
    )
    if len(state.past) != len(state.present):
        raise wrong_value("graphs.state.present", f"{len(state.past)} names", list(state.present))
    return state


def _file(read: JsonObject) -> FileEntry:
    path = read.text("path")
    parts = path.split("/")
    # control characters: messages and terminals show paths as they are
    outside = _UNSAFE.search(path) is not None or bool(PureWindowsPath(path).drive)
    if outside or any(part in ("", ".", "..") for part in parts):
        raise wrong_value("files.path", "a path inside the folder", path)
    return FileEntry(
        path=path,
        size=read.integer("size"),
        sha256=read.text("sha256", _SHA256),
        kind=read.text("kind", among=_KINDS),
    )


def _check_references(manifest: Manifest) -> None:
    if not manifest.providers:
        raise wrong_value("providers", "at least one provider", [])
    kinds = {entry.path: entry.kind for entry in manifest.files}
    folded = {path.casefold() for path in kinds}
    if len(folded) != len(manifest.files) or MANIFEST_FILE in folded:
        raise ManifestError(f"{MANIFEST_FILE}: files: a path is listed twice", hint=HINT)
    roles = [graph.role for graph in manifest.graphs]
    if "main" not in roles or len(set(roles)) != len(roles):
        raise wrong_value("graphs", "one graph of each role, main among them", roles)
    for graph in manifest.graphs:
        for path, kind in ((graph.file, "graph"), *((path, "data") for path in graph.data_files)):
            if kinds.get(path) != kind:
                raise wrong_value("graphs", f"{kind} files that `files` lists", path)
        for state in graph.state:
            if state.windowed and not 0 < state.window <= manifest.context_length:
                raise wrong_value("graphs.state.window", f"from 1 to {manifest.context_length}", state.window)
