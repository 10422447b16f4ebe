"""The manifest: what the exporter writes is read back, schema and parser refuse the same, files are verified."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gemma_runtime.errors import ManifestError
from gemma_runtime.manifest import (
    MANIFEST_FILE,
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
    parse_manifest,
    read_manifest,
    reading,
    verify_hashes,
    verify_structure,
    verifying,
)

SCHEMA: dict[str, Any] = json.loads((importlib.resources.files("gemma_runtime") / "manifest.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# path -> (kind, content)
FILES = {
    "config.json": ("config", b"{}"),
    "tokenizer.json": ("tokenizer", b'{"version": "1.0"}'),
    "README.md": ("document", b""),
    "onnx/model.onnx": ("graph", b"graph"),
    "onnx/model_all.onnx": ("graph", b"graph with all logits"),
    "onnx/model.onnx_data": ("data", bytes(range(256)) * 10),
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def state(layer: int) -> State:
    return State(
        layer=layer,
        kind="attention",
        past=(f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"),
        present=(f"present.{layer}.key", f"present.{layer}.value"),
        shape=("batch_size", 2, "past_sequence_length", 64),
        dtype="float16",
        window=0,
    )


def graph(file: str, role: str, logits: Any) -> Graph:
    return Graph(
        file=file,
        role=role,
        logits=logits,
        opset=21,
        chunks="batched",
        min_onnxruntime="1.20.1",
        inputs=("input_ids", "attention_mask"),
        data_files=("onnx/model.onnx_data",),
        cache_bytes=2 * 2 * 2 * 64 * 2 * 8192,
        state=(state(0), state(1)),
    )


def build(**changes: Any) -> Manifest:
    """A manifest as an export writes it, of FILES."""
    fields: dict[str, Any] = {
        "variant": "2b-it",
        "family": "gemma",
        "source": Source(
            kind="hub",
            repository="google/gemma-2b-it",
            revision="0123456789abcdef" * 2 + "01234567",
            name=None,
            seed=None,
            generator_version=None,
            files=(SourceFile(name="model-00001-of-00002.safetensors", size=4 << 30, sha256=sha256(b"source")),),
            adapter=AdapterSource(
                repository="someone/gemma-2b-lora",
                revision="89abcdef" * 5,
                name=None,
                ranks=(8, 16),
                files=(SourceFile(name="adapter_model.safetensors", size=9, sha256=sha256(b"adapter")),),
            ),
        ),
        "target": "ort",
        "precision": Precision(
            name="fp16", activation_dtype="float16", weight_dtype="float16", options={"block": 32, "scale": 0.5}
        ),
        "providers": ("cpu", "cuda"),
        "min_onnxruntime": "1.20.1",
        "cache_layout": "compacted",
        "context_length": 8192,
        "vocab_size": 256_000,
        "graphs": (graph("onnx/model.onnx", "main", "last"), graph("onnx/model_all.onnx", "all", "all")),
        "files": tuple(
            FileEntry(path=path, size=len(content), sha256=sha256(content), kind=kind)
            for path, (kind, content) in FILES.items()
        ),
        "generator": Generator(version="0.1.0", packages={"torch": "2.13.0+cpu", "onnx-ir": "1.1.0"}),
        "validation": {"verdict": "passed", "mean_kl": 1e-9},
    }
    return Manifest(**fields | changes)


SYNTHETIC = Source(
    kind="synthetic",
    repository=None,
    revision=None,
    name="my-gemma",
    seed=2**63 - 1,
    generator_version=1,
    files=(),
    adapter=None,
)


def windowed(window: int) -> State:
    """A layer whose cache is as long as its window."""
    return dataclasses.replace(state(0), shape=("batch_size", 2, "window_capacity", 64), window=window)


MANIFESTS = {
    "hub": build(),
    "windowed": build(
        graphs=(
            graph("onnx/model.onnx", "main", "last"),
            dataclasses.replace(graph("onnx/model_all.onnx", "windowed", 8), state=(windowed(4096), state(1))),
        )
    ),
    "synthetic": build(variant=None, source=SYNTHETIC, validation=None, cache_layout="columns"),
    "last 8": build(graphs=(graph("onnx/model.onnx", "main", "last"), graph("onnx/model_all.onnx", "last8", 8))),
    "unicode": build(variant="gemma-日本語-é"),
}


def document() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(build().to_json())
    return content


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert caught.value.message.startswith(MANIFEST_FILE)
    return caught.value.message


def parser_accepts(content: object) -> bool:
    try:
        parse_manifest(json.dumps(content))
    except ManifestError:
        return False
    return True


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with one value replaced, or with a key added."""
    content = document()
    *parents, last = path.split("/")
    place: Any = content
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return content


@pytest.mark.parametrize("name", MANIFESTS)
def test_round_trip(name: str) -> None:
    manifest = MANIFESTS[name]
    text = manifest.to_json()
    assert parse_manifest(text) == manifest
    assert parse_manifest(text).to_json() == text
    assert list(VALIDATOR.iter_errors(json.loads(text))) == []


def test_the_text_is_stable() -> None:
    first = build(generator=Generator(version="1", packages={"a": "1", "b": "2"}))
    second = build(generator=Generator(version="1", packages={"b": "2", "a": "1"}))
    assert first.to_json() == second.to_json()
    assert first.to_json().endswith("}\n")
    assert json.loads(first.to_json())["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nothing_is_written_that_is_not_json(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        build(validation={"mean_kl": number}).to_json()


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_the_schema_has_every_field_of_the_dataclasses() -> None:
    kinds = {
        "state": State,
        "graph": Graph,
        "precision": Precision,
        "generator": Generator,
        "adapter_source": AdapterSource,
        "source": Source,
        "source_file": SourceFile,
        "file": FileEntry,
    }
    objects = {name: SCHEMA["$defs"][name] for name in kinds}
    for name, schema in objects.items():
        fields = [field.name for field in dataclasses.fields(kinds[name])]
        assert sorted(schema["properties"]) == sorted(schema["required"]) == sorted(fields), name
    fields = ["schema_version", *(field.name for field in dataclasses.fields(Manifest))]
    assert sorted(SCHEMA["properties"]) == sorted(SCHEMA["required"]) == sorted(fields)
    for schema in (SCHEMA, *objects.values()):
        assert schema["additionalProperties"] is False
    # nothing that a dataclass reaches is left out
    assert set(reachable(Manifest)) == {Manifest, *kinds.values()}


def reachable(kind: Any) -> Iterator[type]:
    """The dataclasses that a type is made of."""
    parts = typing.get_type_hints(kind).values() if dataclasses.is_dataclass(kind) else typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        yield typing.cast(type, kind)
    for part in parts:
        yield from reachable(part)


SHA = "0" * 64
# one change each; both the schema and the parser refuse it
REFUSED_BY_BOTH = [
    ("schema_version", 0),
    ("schema_version", 2),
    ("schema_version", 4),
    ("schema_version", "3"),
    ("schema_version", True),
    ("variant", ""),
    ("variant", 2),
    ("variant", "x" * 4097),
    ("family", None),
    ("target", ""),
    ("providers", []),
    ("providers", "cpu"),
    ("providers", ["cpu", ""]),
    ("providers", [1]),
    ("min_onnxruntime", "1"),
    ("min_onnxruntime", "1.20.1\n"),
    ("min_onnxruntime", "1.20rc1"),
    ("min_onnxruntime", "v1.20"),
    ("min_onnxruntime", "1.20."),
    ("min_onnxruntime", "1.2.3.4.5"),
    ("min_onnxruntime", "12345.0"),
    ("min_onnxruntime", "1.٢"),
    ("min_onnxruntime", 1.2),
    ("cache_layout", "rows"),
    ("cache_layout", None),
    ("context_length", 0),
    ("context_length", -1),
    ("context_length", 1.5),
    ("context_length", True),
    ("context_length", "8192"),
    ("context_length", 1 << 63),
    ("vocab_size", 0),
    ("validation", []),
    ("validation", "passed"),
    ("unknown", None),
    ("source/kind", "web"),
    ("source/repository", ""),
    ("source/revision", "main"),
    ("source/revision", "0" * 39),
    ("source/revision", "0" * 41),
    ("source/revision", "0" * 39 + "G"),
    ("source/revision", "A" * 40),
    ("source/revision", "0" * 40 + "\n"),
    ("source/seed", -1),
    ("source/seed", 1 << 63),
    ("source/seed", 0.5),
    ("source/files", None),
    ("source/files/0/name", ""),
    ("source/files/0/size", -1),
    ("source/files/0/sha256", SHA[1:]),
    ("source/files/0/unknown", 1),
    ("source/unknown", 1),
    ("source/adapter", []),
    ("source/adapter", "my-lora"),
    ("source/adapter/name", ""),
    ("source/adapter/repository", 1),
    ("source/adapter/revision", "main"),
    ("source/adapter/ranks", None),
    ("source/adapter/ranks", [0]),
    ("source/adapter/ranks", [8, True]),
    ("source/adapter/ranks", [8.5]),
    ("source/adapter/ranks", [1 << 63]),
    ("source/adapter/files/0/sha256", SHA[1:]),
    ("source/adapter/unknown", 1),
    ("precision/options", None),
    ("precision/options", []),
    ("precision/name", ""),
    ("precision/unknown", 1),
    ("generator/packages", []),
    ("generator/packages", {"torch": 2}),
    ("generator/version", ""),
    ("generator/unknown", 1),
    ("graphs", []),
    ("graphs", {}),
    ("graphs/0", "onnx/model.onnx"),
    ("graphs/0/role", "first"),
    ("graphs/0/logits", "some"),
    ("graphs/0/logits", 0),
    ("graphs/0/logits", True),
    ("graphs/0/logits", None),
    ("graphs/0/logits", ["last"]),
    ("graphs/0/opset", 0),
    ("graphs/0/chunks", "some"),
    ("graphs/0/chunks", None),
    ("graphs/0/min_onnxruntime", "1.x"),
    ("graphs/0/inputs", ["input_ids", 1]),
    ("graphs/0/data_files", ["../model.onnx_data"]),
    ("graphs/0/file", "/onnx/model.onnx"),
    ("graphs/0/cache_bytes", -1),
    ("graphs/0/cache_bytes", None),
    ("graphs/0/unknown", 1),
    ("graphs/0/state/0/layer", -1),
    ("graphs/0/state/0/past", ["", "x"]),
    ("graphs/0/state/0/window", -1),
    ("graphs/0/state/0/window", None),
    ("graphs/0/state/0/window", "all"),
    ("graphs/0/state/0/shape", ["batch_size", 0]),
    ("graphs/0/state/0/shape", ["batch_size", -1]),
    ("graphs/0/state/0/shape", ["batch_size", True]),
    ("graphs/0/state/0/shape", ["batch_size", ""]),
    ("graphs/0/state/0/shape", ["batch_size", None]),
    ("graphs/0/state/0/shape", ["batch_size", 2.5]),
    ("graphs/0/state/0/shape", 64),
    ("graphs/0/state/0/dtype", 16),
    ("graphs/0/state/0/unknown", 1),
    ("files", {}),
    ("files/0/path", ""),
    ("files/0/path", "/etc/passwd"),
    ("files/0/path", "//server/share"),
    ("files/0/path", "../config.json"),
    ("files/0/path", "onnx/../../config.json"),
    ("files/0/path", "onnx/.."),
    ("files/0/path", ".."),
    ("files/0/path", "."),
    ("files/0/path", "./config.json"),
    ("files/0/path", "onnx/./config.json"),
    ("files/0/path", "onnx//config.json"),
    ("files/0/path", "onnx/"),
    ("files/0/path", "C:config.json"),
    ("files/0/path", "C:/config.json"),
    ("files/0/path", "onnx\\config.json"),
    ("files/0/path", "..\\config.json"),
    ("files/0/path", "config.json\0"),
    ("files/0/path", "config.json\n"),
    ("files/0/path", "\x1b[2J"),
    ("files/0/path", "x" * 4097),
    ("files/0/path", None),
    ("files/0/size", -1),
    ("files/0/size", "2"),
    ("files/0/size", False),
    ("files/0/size", 1 << 63),
    ("files/0/sha256", SHA + "0"),
    ("files/0/sha256", SHA + "\n"),
    ("files/0/sha256", "A" * 64),
    ("files/0/sha256", "g" * 64),
    ("files/0/kind", "weights"),
    ("files/0/unknown", 1),
]


@pytest.mark.parametrize(("path", "value"), REFUSED_BY_BOTH, ids=lambda value: repr(value)[:40])
def test_schema_and_parser_refuse(path: str, value: Any) -> None:
    content = changed(path, value)
    assert not VALIDATOR.is_valid(content)
    message = refusal(json.dumps(content))
    # the key is in the message, and the text of the file cannot steer a terminal or flood it
    assert path.split("/")[0] in message
    assert message.isprintable()
    assert len(message) < 300


# what a schema cannot say
REFUSED_BY_PARSER = [
    ("context_length", 8192.0, "context_length: expected an integer from 1 to 16777216, found 8192.0"),
    ("schema_version", 3.0, "schema_version: expected an integer from 0, found 3.0"),
    ("graphs/0/logits", 8.0, "graphs.logits: expected last, all or a number of positions, found 8.0"),
    ("graphs/1/role", "main", "one graph of each role, main among them, found ['main', 'main']"),
    ("graphs/0/file", "onnx/other.onnx", "graph files that `files` lists, found 'onnx/other.onnx'"),
    ("graphs/0/file", "config.json", "graph files that `files` lists, found 'config.json'"),
    ("graphs/0/data_files", ["onnx/x.onnx_data"], "data files that `files` lists, found 'onnx/x.onnx_data'"),
    ("graphs/0/data_files", ["onnx/model.onnx"], "data files that `files` lists, found 'onnx/model.onnx'"),
    ("graphs/0/state/0/present", ["present.0.key"], "graphs.state.present: expected 2 names"),
    (
        "graphs/1/state/0/shape",
        ["batch_size", 2, "window_capacity", 64],
        "graphs.state.window: expected from 1 to 8192",
    ),
    ("files/0/path", "tokenizer.json", "a path is listed twice"),
    # one file on Windows and macOS
    ("files/0/path", "ONNX/Model.onnx_data", "a path is listed twice"),
    ("files/0/path", MANIFEST_FILE, "a path is listed twice"),
    ("files/0/path", MANIFEST_FILE.upper(), "a path is listed twice"),
]


@pytest.mark.parametrize(("path", "value", "phrase"), REFUSED_BY_PARSER)
def test_the_parser_refuses_more(path: str, value: Any, phrase: str) -> None:
    content = changed(path, value)
    assert VALIDATOR.is_valid(content)
    assert phrase in refusal(json.dumps(content))


def places(content: Any, path: str = "") -> Iterator[str]:
    """Every key of the document and the first index of its lists, except inside of objects that are free."""
    if path in ("precision/options", "validation", "generator/packages"):
        return
    keys = content if isinstance(content, dict) else range(len(content[:1])) if isinstance(content, list) else ()
    for key in keys:
        yield f"{path}/{key}".strip("/")
        yield from places(content[key], f"{path}/{key}".strip("/"))


JUNK = [None, True, False, -1, 0, 1, 1.5, 10**30, "", "x", "\n", "main", [], [""], ["x"], [1], {}, {"x": 1}, {"x": "1"}]
# the parser's reasons that a schema cannot have
REFERENCES = (
    "a path is listed twice",
    "of each role",
    "files that `files` lists",
    "graphs.state.present: expected",
    "graphs.state.window",
)


def test_schema_and_parser_agree_about_every_replaced_value() -> None:
    agreed = 0
    for path in places(document()):
        for value in JUNK:
            content = changed(path, value)
            message = None if parser_accepts(content) else refusal(json.dumps(content))
            if message is None or not any(reason in message for reason in REFERENCES):
                assert VALIDATOR.is_valid(content) is (message is None), (path, value, message)
                agreed += 1
    assert agreed > 1000


def test_schema_and_parser_agree_about_missing_and_unknown_keys() -> None:
    paths = list(places(document()))
    assert len(paths) > 50
    for path in paths:
        *parents, last = path.split("/")
        content = document()
        place: Any = content
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        if isinstance(place, dict):
            del place[last]
            assert not VALIDATOR.is_valid(content), path
            # "graphs[0].file is missing"
            assert f"{last} is missing" in refusal(json.dumps(content))
            place["unknown_key"] = place[last] = 1
            assert not VALIDATOR.is_valid(content), path


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\N{BYTE ORDER MARK}{}", "is not JSON"),
        ('{"schema_version": 1} x', "is not JSON"),
        ('{"schema_version": 1, "schema_version": 1}', "is not JSON: an object has a key twice"),
        ('{"schema_version": NaN}', "is not JSON: NaN is not a JSON number"),
        ('{"schema_version": -Infinity}', "is not JSON: -Infinity is not a JSON number"),
        ('{"schema_version": 1e999}', "is not JSON: 1e999 is beyond a float"),
        ('{"schema_version": ' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"schema_version":' * 100_000, "is not JSON"),
        ("[]", "the document: expected an object, found []"),
        ("null", "the document: expected an object, found None"),
        ("{}", "schema_version is missing"),
        ('{"schema_version": 4}', "schema_version is 4, expected 3"),
        ('{"schema_version": 2}', "schema_version is 2, expected 3"),
        ('{"schema_version": 3}', "variant is missing"),
    ],
)
def test_text_that_is_no_manifest(text: str, phrase: str) -> None:
    assert phrase in refusal(text)


@pytest.mark.parametrize("depth", range(900, 1000, 7))
def test_nesting_just_below_the_parsers_limit(depth: int) -> None:
    """The value is shown in the message, which nests as deep again."""
    for start, end in (("[", "]"), ('{"a":', "}")):
        assert refusal(f'{{"schema_version": {start * depth}1{end * depth}}}')


def test_keys_twice_are_refused_at_every_level() -> None:
    text = build().to_json()
    for key in ("path", "role", "options", "torch", "layer"):
        position = text.index(f'"{key}":')
        assert "a key twice" in refusal(f'{text[:position]}"{key}": 1, {text[position:]}')


def test_a_later_schema_says_what_to_do() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(document() | {"schema_version": 4, "new": 1}))
    assert "release of gemma-export" in caught.value.hint


def test_graph_by_role() -> None:
    manifest = build()
    assert manifest.graph().file == "onnx/model.onnx"
    assert manifest.graph("all").file == "onnx/model_all.onnx"
    with pytest.raises(ManifestError, match="no graph of role 'last8', found main, all"):
        manifest.graph("last8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is as its manifest says."""
    directory = tmp_path / "folder"
    for path, (_, content) in FILES.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    (directory / MANIFEST_FILE).write_text(build().to_json(), encoding="utf-8")
    return directory


def refused_folder(folder: Path, manifest: Manifest | None = None) -> str:
    with pytest.raises(ManifestError) as caught:
        verify_structure(folder, manifest or build())
    assert caught.value.exit_code == 3
    return caught.value.message


def test_a_sound_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(folder)
    assert manifest == build()
    hashed: list[int] = []
    verify_structure(folder, manifest)
    verify_hashes(folder, manifest, hashed.append)
    assert sum(hashed) == len(FILES["onnx/model.onnx_data"][1])
    monkeypatch.chdir(folder)
    verify_structure(Path(), read_manifest(Path()))
    verify_hashes(Path(), manifest)


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_no_manifest(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "folder"
    if kind == "file":
        path.write_text("x")
    elif kind == "empty":
        path.mkdir()
    ending = {"missing": "does not exist", "file": "is not a folder", "empty": f"has no {MANIFEST_FILE}"}[kind]
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert caught.value.message == f"{path} {ending}"
    assert caught.value.exit_code == 3


def test_a_manifest_that_is_no_text(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b'{"variant": "\xff"}')
    with pytest.raises(ManifestError, match=r"gemma_export.json is not UTF-8 text: invalid start byte"):
        read_manifest(folder)


def test_a_huge_manifest_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (folder / MANIFEST_FILE).stat().st_size
    monkeypatch.setattr(reading, "_MAX_MANIFEST_BYTES", size)
    assert read_manifest(folder) == build()
    monkeypatch.setattr(reading, "_MAX_MANIFEST_BYTES", size - 1)
    with pytest.raises(ManifestError, match=f"expected at most {size - 1} bytes, found {size}"):
        read_manifest(folder)


@pytest.mark.parametrize("path", FILES)
def test_missing_files(folder: Path, path: str) -> None:
    (folder / path).unlink()
    expected = f"{path} is missing: expected a file of {len(FILES[path][1])} bytes"
    assert refused_folder(folder) == expected
    (folder / path).mkdir()
    assert refused_folder(folder) == expected


@pytest.mark.parametrize("path", FILES)
def test_files_of_another_size(folder: Path, path: str) -> None:
    content = FILES[path][1]
    # truncated, where there is something to cut, and grown
    for found in ({content[:-1], content + b"x"}) - {content}:
        (folder / path).write_bytes(found)
        assert refused_folder(folder) == f"{path}: expected {len(content)} bytes, found {len(found)}"


@pytest.mark.parametrize("path", [path for path, (_, content) in FILES.items() if content])
def test_altered_files_of_the_same_size(folder: Path, path: str) -> None:
    kind, content = FILES[path]
    altered = content[:-1] + bytes((content[-1] ^ 1,))
    (folder / path).write_bytes(altered)
    expected = f"{path} was altered: expected SHA-256 {sha256(content)}, found {sha256(altered)}"
    if kind == "data":
        # data is large: only verify_hashes reads it
        verify_structure(folder, build())
        with pytest.raises(ManifestError) as caught:
            verify_hashes(folder, build())
        assert caught.value.message == expected
    else:
        assert refused_folder(folder) == expected
        verify_hashes(folder, build())


def test_hashing_goes_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_CHUNK_BYTES", 1000)
    hashed: list[int] = []
    verify_hashes(folder, build(), hashed.append)
    assert hashed == [1000, 1000, 560]


def test_a_size_that_lies_makes_no_small_chunks(folder: Path) -> None:
    hashed: list[int] = []
    files = tuple(dataclasses.replace(entry, size=min(entry.size, 1)) for entry in build().files)
    verify_hashes(folder, dataclasses.replace(build(), files=files), hashed.append)
    assert hashed == [2560]


def test_data_removed_before_it_is_hashed(folder: Path) -> None:
    (folder / "onnx/model.onnx_data").unlink()
    with pytest.raises(ManifestError, match=r"^onnx/model.onnx_data cannot be read: No such file"):
        verify_hashes(folder, build())


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("this user may not make links")


@pytest.mark.parametrize("path", ["config.json", "onnx/model.onnx", "onnx/model.onnx_data"])
def test_linked_files(folder: Path, tmp_path: Path, path: str) -> None:
    (folder / path).rename(tmp_path / "elsewhere")
    link(folder / path, tmp_path / "elsewhere")
    assert refused_folder(folder) == f"{path} is a symbolic link, expected a regular file"


def test_linked_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "onnx").rename(tmp_path / "elsewhere")
    link(folder / "onnx", tmp_path / "elsewhere")
    expected = "onnx/model.onnx is a symbolic link, expected a regular file"
    assert refused_folder(folder) == expected
    monkeypatch.chdir(folder)
    assert refused_folder(Path()) == expected


def test_a_link_to_the_folder_itself_is_the_users_own(folder: Path, tmp_path: Path) -> None:
    link(tmp_path / "link", folder)
    verify_structure(tmp_path / "link", read_manifest(tmp_path / "link"))


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 2000 + "x", "onnx/\ud800"])
def test_paths_that_no_file_system_takes(folder: Path, path: str) -> None:
    content = document()
    content["files"].append({"path": path, "size": 1, "sha256": SHA, "kind": "document"})
    manifest = parse_manifest(json.dumps(content))
    assert refused_folder(folder, manifest).startswith((f"{path} cannot be read", f"{path} is missing"))


def test_which_caches_are_window_sized() -> None:
    """Those whose shape says so: a window alone says what a layer sees, not how long its cache is."""
    main, twin = MANIFESTS["windowed"].graphs
    assert (main.windowed, twin.windowed) == (False, True)
    assert [each.windowed for each in twin.state] == [True, False]
    assert not dataclasses.replace(state(0), window=7).windowed
    for wrong in (0, 8193):
        content = json.loads(MANIFESTS["windowed"].to_json())
        content["graphs"][1]["state"][0]["window"] = wrong
        assert f"graphs.state.window: expected from 1 to 8192, found {wrong}" in refusal(json.dumps(content))
