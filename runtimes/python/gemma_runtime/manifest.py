"""The manifest of an exported folder: its schema, reader and verifier. The one contract of exporter and runtimes.

The JSON Schema is `manifest.schema.json` beside this file; `Manifest.parse` is as strict as it, without needing a
schema library, and adds what a schema cannot say (paths that stay inside the folder, references between entries).
Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeVar

from gemma_runtime.errors import ManifestError

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "AdapterSource",
    "FileEntry",
    "Generator",
    "Graph",
    "Manifest",
    "Precision",
    "Source",
    "SourceFile",
    "State",
    "read_manifest",
    "verify_hashes",
    "verify_structure",
]

MANIFEST_FILE = "gemma_export.json"
SCHEMA_VERSION = 2

# a 27B's manifest has about 100 kB; parsing must not be where a hostile folder spends the memory
_MAX_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_RELEASE = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}")
_UNSAFE = re.compile(r"[\\\x00-\x1f\x7f]")
_KINDS = ("graph", "data", "tokenizer", "config", "document")
_SOURCES = ("builtin", "local", "hub", "synthetic")
_LAYOUTS = ("compacted", "columns")
_CHUNKS = ("batched", "single", "none")
_HINT = "The folder was altered, damaged or not fully copied: copy or export it again."

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the folder: its path with forward slashes, size in bytes, SHA-256 in hexadecimal, and kind."""

    path: str
    size: int
    sha256: str
    # graph, data, tokenizer, config or document
    kind: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file that the weights came from, by base name."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """A LoRA adapter that was merged into the weights."""

    # Hub repository and 40-hex commit, where there is one
    repository: str | None
    revision: str | None
    # base name of a local adapter's folder
    name: str | None
    # the ranks that occur, ascending; none where modules are only replaced
    ranks: tuple[int, ...]
    files: tuple[SourceFile, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where the weights came from."""

    # builtin, local, hub or synthetic
    kind: str
    # Hub repository and 40-hex commit, where there is one
    repository: str | None
    revision: str | None
    # base name of a local checkpoint's folder
    name: str | None
    # of synthetic weights: seed, and the version of the generator that defines the numbers
    seed: int | None
    generator_version: int | None
    files: tuple[SourceFile, ...]
    adapter: AdapterSource | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """What made the folder: release of gemma-export and of the packages that decide the bytes."""

    version: str
    packages: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """The number format and its options."""

    name: str
    activation_dtype: str
    weight_dtype: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """One layer's decoder state: the tensors that go in and come out of every step, in matching order."""

    layer: int
    kind: str
    past: tuple[str, ...]
    present: tuple[str, ...]
    # of each past tensor: numbers, and symbols such as batch_size
    shape: tuple[int | str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """One graph of the folder."""

    file: str
    # "main", or what a twin offers: "all", "last8", "batched" (chunks of several rows), ...
    role: str
    # positions that get logits
    logits: Literal["last", "all"] | int
    opset: int
    # steps of several tokens with a cache: "batched", "single" row only, or "none"; one token is always possible
    chunks: str
    # first onnxruntime release whose schemas know every operator, input and attribute used
    min_onnxruntime: str
    # inputs besides the state
    inputs: tuple[str, ...]
    data_files: tuple[str, ...]
    state: tuple[State, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader may rely on."""

    variant: str | None
    family: str
    source: Source
    target: str
    precision: Precision
    # execution providers that this precision runs on: cpu, cuda, directml
    providers: tuple[str, ...]
    # first onnxruntime release that can run the folder: the least of its graphs'
    min_onnxruntime: str
    # "compacted": row b of present holds its real tokens at [0, T_b); "columns": it keeps the mask's columns
    cache_layout: str
    # tokens that the rotary tables cover
    context_length: int
    # rows of the embedding table
    vocab_size: int
    graphs: tuple[Graph, ...]
    files: tuple[FileEntry, ...]
    generator: Generator
    # verdict of gemma-validate once there is one
    validation: Mapping[str, Any] | None = None

    def graph(self, role: str = "main") -> Graph:
        """The graph of a role.

        Raises:
            ManifestError: the folder has none.
        """
        for graph in self.graphs:
            if graph.role == role:
                return graph
        raise ManifestError(
            f"{MANIFEST_FILE}: no graph of role {role!r}, found {', '.join(g.role for g in self.graphs)}", hint=_HINT
        )

    def to_json(self) -> str:
        """The text of gemma_export.json; the same manifest gives the same text."""
        content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def parse(text: str) -> Manifest:
        """Reads and checks the text of gemma_export.json.

        Raises:
            ManifestError: names the key, what was expected and what was found.
        """
        try:
            content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{MANIFEST_FILE} is not JSON: {error}", hint=_HINT) from error
        top = _Reader(content, "")
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
        return Manifest.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}", hint="Check the folder's rights.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text: {error.reason}", hint=_HINT) from error


def verify_structure(directory: Path, manifest: Manifest) -> None:
    """Checks that every file is there with its size, and the hash of every file that is not weight data.

    Raises:
        ManifestError: names the file, what was expected and what was found.
    """
    for entry in manifest.files:
        _check_file(Path(directory), entry)
        if entry.kind != "data":
            _check_hash(Path(directory), entry, None)


def verify_hashes(directory: Path, manifest: Manifest, advance: Callable[[int], None] | None = None) -> None:
    """Reads all weight data and checks its hashes.

    Args:
        directory: the folder; `verify_structure` covers everything else.
        manifest: its manifest.
        advance: told the bytes as they are hashed.

    Raises:
        ManifestError: names the file whose content changed.
    """
    for entry in manifest.files:
        if entry.kind == "data":
            _check_hash(Path(directory), entry, advance)


def _check_file(directory: Path, entry: FileEntry) -> None:
    path = directory
    try:
        for part in entry.path.split("/"):
            path /= part
            # a link inside the folder could point anywhere, and what it points to can change
            if path.is_symlink():
                raise ManifestError(f"{entry.path} is a symbolic link, expected a regular file", hint=_HINT)
        found = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise ManifestError(f"{entry.path} cannot be read: {error.strerror}", hint="Check its rights.") from error
    if found is None:
        raise ManifestError(f"{entry.path} is missing: expected a file of {entry.size} bytes", hint=_HINT)
    if found != entry.size:
        raise ManifestError(f"{entry.path}: expected {entry.size} bytes, found {found}", hint=_HINT)


def _check_hash(directory: Path, entry: FileEntry, advance: Callable[[int], None] | None) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    try:
        with (directory / entry.path).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if advance is not None:
                    advance(count)
    except OSError as error:
        raise ManifestError(f"{entry.path} cannot be read: {error.strerror}", hint="Check its rights.") from error
    if digest.hexdigest() != entry.sha256:
        raise ManifestError(
            f"{entry.path} was altered: expected SHA-256 {entry.sha256}, found {digest.hexdigest()}", hint=_HINT
        )


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is beyond a float")
    return number


class _Reader:
    """One JSON object, read key by key; every refusal names the key, what was expected and what was found."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise _error(where or "the document", "an object", content)
        self._content, self._where, self._read = content, where, set[str]()

    def value(self, key: str) -> Any:
        if key not in self._content:
            raise ManifestError(f"{MANIFEST_FILE}: {self._path(key)} is missing", hint=_HINT)
        self._read.add(key)
        return self._content[key]

    def integer(self, key: str, low: int = 0) -> int:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 63:
            raise _error(self._path(key), f"an integer from {low}", value)
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None, among: Sequence[str] = ()) -> str:
        value = self.value(key)
        expected = f"one of {', '.join(among)}" if among else f"text like {pattern.pattern}" if pattern else "text"
        if not isinstance(value, str) or not value or len(value) > 4096:
            raise _error(self._path(key), expected, value)
        if (among and value not in among) or (pattern is not None and not pattern.fullmatch(value)):
            raise _error(self._path(key), expected, value)
        return value

    def optional(self, key: str, read: Callable[[str], _T]) -> _T | None:
        return None if self.value(key) is None else read(key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.value(key)
        if not isinstance(value, dict):
            raise _error(self._path(key), "an object", value)
        return value

    def items(self, key: str) -> list[Any]:
        value = self.value(key)
        if not isinstance(value, list):
            raise _error(self._path(key), "a list", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) and value for value in values):
            raise _error(self._path(key), "a list of texts", values)
        return tuple(values)

    def objects(self, key: str, read: Callable[[_Reader], _T]) -> tuple[_T, ...]:
        found = []
        for index, content in enumerate(self.items(key)):
            reader = _Reader(content, f"{self._path(key)}[{index}]")
            found.append(read(reader))
            reader.done()
        return tuple(found)

    def object(self, key: str, read: Callable[[_Reader], _T]) -> _T:
        reader = _Reader(self.value(key), self._path(key))
        found = read(reader)
        reader.done()
        return found

    def done(self) -> None:
        """Refuses keys that nothing read: a later schema says so by its version."""
        unknown = sorted(set(self._content) - self._read)
        if unknown:
            raise ManifestError(f"{MANIFEST_FILE}: unknown key {self._path(unknown[0])}", hint=_HINT)

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _error(where: str, expected: str, found: object) -> ManifestError:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ManifestError(f"{MANIFEST_FILE}: {where}: expected {expected}, found {shown}", hint=_HINT)


def _manifest(top: _Reader) -> Manifest:
    return Manifest(
        variant=top.optional("variant", top.text),
        family=top.text("family"),
        source=top.object("source", _source),
        target=top.text("target"),
        precision=top.object("precision", _precision),
        providers=top.texts("providers"),
        min_onnxruntime=top.text("min_onnxruntime", _RELEASE),
        cache_layout=top.text("cache_layout", among=_LAYOUTS),
        context_length=top.integer("context_length", 1),
        vocab_size=top.integer("vocab_size", 1),
        graphs=top.objects("graphs", _graph),
        files=top.objects("files", _file),
        generator=top.object("generator", _generator),
        validation=top.optional("validation", top.mapping),
    )


def _source(read: _Reader) -> Source:
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


def _adapter(read: _Reader) -> AdapterSource:
    ranks = read.items("ranks")
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank < 1 << 63 for rank in ranks):
        raise _error("source.adapter.ranks", "integers from 1", ranks)
    return AdapterSource(
        repository=read.optional("repository", read.text),
        revision=read.optional("revision", lambda key: read.text(key, _REVISION)),
        name=read.optional("name", read.text),
        ranks=tuple(ranks),
        files=read.objects("files", _source_file),
    )


def _source_file(read: _Reader) -> SourceFile:
    return SourceFile(name=read.text("name"), size=read.integer("size"), sha256=read.text("sha256", _SHA256))


def _generator(read: _Reader) -> Generator:
    packages = read.mapping("packages")
    if not all(isinstance(version, str) for version in packages.values()):
        raise _error("generator.packages", "version texts", packages)
    return Generator(version=read.text("version"), packages=packages)


def _precision(read: _Reader) -> Precision:
    return Precision(
        name=read.text("name"),
        activation_dtype=read.text("activation_dtype"),
        weight_dtype=read.text("weight_dtype"),
        options=read.mapping("options"),
    )


def _graph(read: _Reader) -> Graph:
    logits = read.value("logits")
    number = isinstance(logits, int) and not isinstance(logits, bool) and logits >= 1
    if logits not in ("last", "all") and not number:
        raise _error("graphs.logits", "last, all or a number of positions", logits)
    return Graph(
        file=read.text("file"),
        role=read.text("role"),
        logits=logits,
        opset=read.integer("opset", 1),
        chunks=read.text("chunks", among=_CHUNKS),
        min_onnxruntime=read.text("min_onnxruntime", _RELEASE),
        inputs=read.texts("inputs"),
        data_files=read.texts("data_files"),
        state=read.objects("state", _state),
    )


def _state(read: _Reader) -> State:
    shape = read.items("shape")
    for dim in shape:
        number = isinstance(dim, int) and not isinstance(dim, bool) and dim >= 1
        if not number and not (isinstance(dim, str) and dim):
            raise _error("graphs.state.shape", "positive numbers and symbols", shape)
    state = State(
        layer=read.integer("layer"),
        kind=read.text("kind"),
        past=read.texts("past"),
        present=read.texts("present"),
        shape=tuple(shape),
        dtype=read.text("dtype"),
    )
    if len(state.past) != len(state.present):
        raise _error("graphs.state.present", f"{len(state.past)} names", list(state.present))
    return state


def _file(read: _Reader) -> FileEntry:
    path = read.text("path")
    parts = path.split("/")
    # control characters: messages and terminals show paths as they are
    outside = _UNSAFE.search(path) is not None or bool(PureWindowsPath(path).drive)
    if outside or any(part in ("", ".", "..") for part in parts):
        raise _error("files.path", "a path inside the folder", path)
    return FileEntry(
        path=path,
        size=read.integer("size"),
        sha256=read.text("sha256", _SHA256),
        kind=read.text("kind", among=_KINDS),
    )


def _check_references(manifest: Manifest) -> None:
    if not manifest.providers:
        raise _error("providers", "at least one provider", [])
    kinds = {entry.path: entry.kind for entry in manifest.files}
    folded = {path.casefold() for path in kinds}
    if len(folded) != len(manifest.files) or MANIFEST_FILE in folded:
        raise ManifestError(f"{MANIFEST_FILE}: files: a path is listed twice", hint=_HINT)
    roles = [graph.role for graph in manifest.graphs]
    if "main" not in roles or len(set(roles)) != len(roles):
        raise _error("graphs", "one graph of each role, main among them", roles)
    for graph in manifest.graphs:
        for path, kind in ((graph.file, "graph"), *((path, "data") for path in graph.data_files)):
            if kinds.get(path) != kind:
                raise _error("graphs", f"{kind} files that `files` lists", path)
