"""Headers of safetensors files: what the library writes is read, everything that lies is refused with a reason."""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from gemma_export.checkpoint import header
from gemma_export.checkpoint.header import HeaderEntry, read_header
from gemma_export.errors import CheckpointError

# our name of every element type -> (torch's, bytes)
DTYPES = {
    "float32": (torch.float32, 4),
    "float16": (torch.float16, 2),
    "bfloat16": (torch.bfloat16, 2),
    "float64": (torch.float64, 8),
    "int64": (torch.int64, 8),
    "int32": (torch.int32, 4),
    "int16": (torch.int16, 2),
    "int8": (torch.int8, 1),
    "uint64": (torch.uint64, 8),
    "uint32": (torch.uint32, 4),
    "uint16": (torch.uint16, 2),
    "uint8": (torch.uint8, 1),
    "bool": (torch.bool, 1),
    "float8_e4m3": (torch.float8_e4m3fn, 1),
    "float8_e5m2": (torch.float8_e5m2, 1),
}
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
# two tensors of 8 and 12 bytes, as the library writes them
VALID = save({"a": torch.ones(2, 2, dtype=torch.bfloat16), "b.c": torch.arange(3.0)}, {"format": "pt"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model-00001-of-00002.safetensors"


def write(path: Path, content: object, data: bytes | int = b"", length: int | None = None) -> Path:
    """A file by hand: `content` is JSON text as it is, or becomes JSON; `data` is bytes or their number."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    tail = bytes(data) if isinstance(data, int) else data
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + tail)
    return path


def refusal(path: Path) -> str:
    """The message of the refusal, which every caller then looks at."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    message = caught.value.message
    assert message.startswith(path.name)
    assert len(message) < 400
    return message


def assert_inside(entries: dict[str, HeaderEntry], size: int) -> None:
    for entry in entries.values():
        end = entry.start + math.prod(entry.tensor.shape) * DTYPES[entry.tensor.dtype][1]
        assert 8 <= entry.start <= end <= size


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_the_library_writes(path: Path, dtype: str) -> None:
    element, width = DTYPES[dtype]
    tensors = {
        "matrix": torch.arange(12).reshape(3, 4).to(element),
        "vector": torch.arange(5).to(element),
        "scalar": torch.ones((), dtype=element),
        "empty": torch.ones(0, 4, dtype=element),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    entries = read_header(path)
    assert set(entries) == set(tensors)
    content = path.read_bytes()
    for name, tensor in tensors.items():
        entry = entries[name]
        assert (entry.tensor.dtype, entry.tensor.shape) == (dtype, tuple(tensor.shape))
        expected = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert len(expected) == width * tensor.numel()
        assert content[entry.start : entry.start + len(expected)] == expected


def test_every_dtype_is_covered() -> None:
    assert dict(header._DTYPES.values()) == {name: DTYPES[name][1] for name in DTYPES}


def test_no_tensors_at_all(path: Path) -> None:
    assert read_header(write(path, {})) == {}


def test_entries_may_come_in_any_order(path: Path) -> None:
    later = {"dtype": "U8", "shape": [3], "data_offsets": [4, 7]}
    earlier = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    write(path, {"later": later, "earlier": earlier}, 7)
    entries = read_header(path)
    assert entries["later"].start == entries["earlier"].start + 4
    assert entries["later"].start + 3 == path.stat().st_size


def test_refuses_a_cut_at_every_byte(path: Path) -> None:
    for cut in range(len(VALID)):
        path.write_bytes(VALID[:cut])
        message = refusal(path)
        assert "truncated or corrupt" in message
        assert f" {cut}" in message, "the message gives the size found"
    path.write_bytes(VALID)
    assert set(read_header(path)) == {"a", "b.c"}


def test_refuses_trailing_bytes(path: Path) -> None:
    path.write_bytes(VALID + b"\0")
    assert f"describes {len(VALID)} bytes, the file has {len(VALID) + 1}" in refusal(path)


@pytest.mark.parametrize("length", [3, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_refuses_a_header_longer_than_the_file(path: Path, length: int) -> None:
    assert f"claims {length} bytes, the file has 10" in refusal(write(path, b"{}", length=length))


def test_refuses_a_huge_header_without_reading_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_MAX_HEADER_BYTES", 1 << 10)
    write(path, b"{}" + b" " * ((1 << 10) - 2))
    assert read_header(path) == {}
    write(path, b"{}" + b" " * ((1 << 10) - 1))
    assert "claims 1025 bytes" in refusal(path)


def test_the_header_limit_is_what_parsing_can_afford(path: Path) -> None:
    length = (16 << 20) + 1
    path.write_bytes(struct.pack("<Q", length))
    # a hole in the file: nothing is written or read
    os.truncate(path, 1 << 25)
    assert f"claims {length} bytes, the file has {1 << 25}" in refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"{}}",
        b"nonsense",
        b'{"a": NaN}{',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{}",
        b'{"a\xff": 1}',
        b"\xef\xbb\xbf{}",
        b"{}\0",
        b"PK\x03\x04",
    ],
)
def test_refuses_what_is_not_json(path: Path, text: bytes) -> None:
    assert "is not the JSON of a safetensors file" in refusal(write(path, text))


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"text"', b"true", b"NaN"])
def test_refuses_what_is_not_an_object(path: Path, text: bytes) -> None:
    assert "its header is not a JSON object" in refusal(write(path, text))


@pytest.mark.parametrize("depth", [980, 1_000_000])
@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("field", ["whole", "tensor", "dtype", "shape", "data_offsets"])
def test_refuses_deep_nesting(path: Path, field: str, start: bytes, end: bytes, depth: int) -> None:
    nested = start * depth + b"0" + end * depth
    texts = {"whole": nested, "tensor": b'{"a": ' + nested + b"}"}
    fields = {name: json.dumps(value).encode() for name, value in ENTRY.items()} | {field: nested}
    entry = b", ".join(b'"%s": %s' % (name.encode(), text) for name, text in fields.items())
    assert refusal(write(path, texts.get(field, b'{"a": {' + entry + b"}}"), 24))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"a": %(entry)s, "a": %(entry)s}', "a"),
        (b'{"a": %(entry)s, "\\u0061": %(entry)s}', "a"),
        (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}', "dtype"),
        (b'{"a": {"dtype": "F32", "shape": [9], "shape": [2, 3], "data_offsets": [0, 24]}}', "shape"),
        (b'{"__metadata__": {}, "__metadata__": {}, "a": %(entry)s}', "__metadata__"),
        (b'{"__metadata__": {"k": "1", "k": "2"}, "a": %(entry)s}', "k"),
    ],
)
def test_refuses_duplicate_keys(path: Path, text: bytes, key: str) -> None:
    entry = json.dumps(ENTRY).encode()
    assert f"key {key!r} twice" in refusal(write(path, text.replace(b"%(entry)s", entry), 24))


@pytest.mark.timeout(30)
def test_finding_the_duplicate_takes_linear_time(path: Path) -> None:
    # comparing each of 200,000 names with all others takes ten minutes
    names = [f"k{index}" for index in range(200_000)]
    text = ",".join(f'"{name}":0' for name in [*names, names[-1]])
    assert "key 'k199999' twice" in refusal(write(path, b"{" + text.encode() + b"}"))


@pytest.mark.parametrize("fields", [None, [], "F32", 1, {}, {**ENTRY, "extra": 1}, {"dtype": "F32", "shape": [2, 3]}])
def test_refuses_an_entry_of_other_keys(path: Path, fields: object) -> None:
    assert "tensor 'a' needs exactly dtype, shape and data_offsets" in refusal(write(path, {"a": fields}, 24))


@pytest.mark.parametrize("dtype", ["F33", "f32", "", "FLOAT", "F4", "F8_E8M0", "BF16\0", None, 1, ["F32"], {"F32": 1}])
def test_refuses_unknown_dtypes(path: Path, dtype: object) -> None:
    message = refusal(write(path, {"a": {**ENTRY, "dtype": dtype}}, 24))
    assert f"tensor 'a' has the unknown dtype {str(dtype)!r}" in message


@pytest.mark.parametrize(
    "shape",
    [
        None,
        6,
        "23",
        {"0": 6},
        [-1, -6],
        [-6],
        [2, -3],
        [True, 6],
        [False],
        [2.0, 3],
        [6.5],
        ["6"],
        [None],
        [[2, 3]],
        [1 << 48],
        [10**30],
        [10**4000],
        [1, 1, 1, 1, 1, 1, 1, 2, 3],
        [1] * 100_000,
    ],
)
def test_refuses_impossible_shapes(path: Path, shape: object) -> None:
    assert "tensor 'a' has the impossible shape" in refusal(write(path, {"a": {**ENTRY, "shape": shape}}, 24))


@pytest.mark.parametrize("text", [b"[1e400]", b"[NaN]", b"[-Infinity]", b"[6e0]"])
def test_refuses_shapes_of_no_integers(path: Path, text: bytes) -> None:
    content = b'{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, 24]}}' % text
    assert "tensor 'a' has the impossible shape" in refusal(write(path, content, 24))


@pytest.mark.parametrize(
    "offsets",
    [
        None,
        24,
        [],
        [24],
        [0, 24, 24],
        [24, 0],
        [-24, 0],
        [0, -1],
        [0.0, 24.0],
        [False, 24],
        ["0", "24"],
        [0, 1 << 48],
        [0, 10**4000],
        [[0], [24]],
    ],
)
def test_refuses_impossible_offsets(path: Path, offsets: object) -> None:
    message = refusal(write(path, {"a": {**ENTRY, "data_offsets": offsets}}, 24))
    assert "tensor 'a' has the impossible data_offsets" in message


@pytest.mark.parametrize(
    ("change", "needed", "found"),
    [
        ({"shape": [2, 4]}, 32, 24),
        ({"shape": [5]}, 20, 24),
        ({"shape": []}, 4, 24),
        ({"shape": [0, 6]}, 0, 24),
        ({"dtype": "BF16"}, 12, 24),
        ({"dtype": "I64"}, 48, 24),
        ({"data_offsets": [0, 0]}, 24, 0),
        # products beyond 64 bits are exact too: in 64 bits, both are 0
        ({"shape": [1 << 31, 1 << 31], "data_offsets": [0, 0]}, 1 << 64, 0),
        ({"shape": [1 << 47, 1 << 47, 1 << 47], "data_offsets": [0, 0]}, 1 << 143, 0),
    ],
)
def test_refuses_a_shape_that_is_not_its_bytes(path: Path, change: dict[str, Any], needed: int, found: int) -> None:
    message = refusal(write(path, {"a": {**ENTRY, **change}}, 24))
    assert f"needs {needed} bytes, its offsets say {found}" in message


def bytes_at(begin: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("ranges", "size", "phrase"),
    [
        ([(1, 4)], 4, "tensor 'a' starts at byte 1 of the data, expected 0"),
        ([(0, 4), (5, 8)], 8, "tensor 'b' starts at byte 5 of the data, expected 4"),
        ([(0, 4), (3, 8)], 8, "tensor 'b' starts at byte 3 of the data, expected 4"),
        ([(0, 4), (0, 4)], 8, "tensor 'b' starts at byte 0 of the data, expected 4"),
        ([(0, 8), (2, 4)], 8, "tensor 'b' starts at byte 2 of the data, expected 8"),
        ([(0, 4), (4, 8), (4, 4), (6, 6)], 8, "tensor 'd' starts at byte 6 of the data, expected 8"),
        ([(0, 4)], 5, "describes"),
        ([(0, 4)], 3, "describes"),
        ([(0, 1 << 47)], 4, "describes"),
        ([], 1, "describes"),
    ],
)
def test_refuses_holes_overlaps_and_other_sizes(
    path: Path, ranges: list[tuple[int, int]], size: int, phrase: str
) -> None:
    content = {name: bytes_at(*limits) for name, limits in zip("abcd", ranges, strict=False)}
    assert phrase in refusal(write(path, content, size))


def test_empty_tensors_may_share_a_place(path: Path) -> None:
    content = {"a": bytes_at(0, 4), "b": bytes_at(4, 4), "c": bytes_at(4, 4), "d": bytes_at(4, 8)}
    entries = read_header(write(path, content, 8))
    assert [entry.tensor.shape for entry in entries.values()] == [(4,), (0,), (0,), (4,)]


def test_hostile_names_are_shown_escaped_and_short(path: Path) -> None:
    name = "\x1b[2J\n" + "x" * 10_000
    message = refusal(write(path, {name: {**ENTRY, "dtype": "\x1b[31m" * 1000}}, 24))
    assert message.isprintable()
    write(path, b'{"\\ud800": 1}')
    assert "'\\ud800'" in refusal(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_unreadable_files_have_a_reason(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    assert "cannot be read: " in refusal(path)


EDIT = st.tuples(st.sampled_from(["flip", "insert", "delete"]), st.integers(0, len(VALID)), st.binary(max_size=4))


def edited(content: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for kind, position, new in edits:
        behind = {"flip": position + len(new), "insert": position, "delete": position + 1 + len(new)}[kind]
        content = content[:position] + (b"" if kind == "delete" else new) + content[behind:]
    return content


def read_or_refuse(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        entries = read_header(path)
    except CheckpointError:
        return "refused"
    assert_inside(entries, len(content))
    return "read"


def test_random_bytes_are_read_or_refused(path: Path) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.lists(EDIT, max_size=4))
    def run(edits: list[tuple[str, int, bytes]]) -> None:
        outcomes[read_or_refuse(path, edited(VALID, edits))] += 1

    run()
    assert min(outcomes["read"], outcomes["refused"]) > 10


def laid_out(tensors: list[tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """A correct header of these types and shapes, and the bytes of its data."""
    content, position = {}, 0
    for index, (dtype, shape) in enumerate(tensors):
        end = position + math.prod(shape) * header._DTYPES[dtype][1]
        content[f"t{index}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    return content, position


def test_random_entries_are_read_or_refused(path: Path) -> None:
    outcomes: Counter[str] = Counter()
    shapes = st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 3), max_size=3))
    field = st.sampled_from(["dtype", "shape", "data_offsets", "shape[]", "data_offsets[]"])
    value = st.sampled_from([0, 1, 2, 4, 8, 12, -1, 1 << 47, 1 << 64, True, 1.0, None, "U8", "F16", [], [0], [0, 4]])

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(
        st.lists(shapes, min_size=1, max_size=4),
        st.lists(st.tuples(st.integers(0, 3), field, value), max_size=2),
        st.sampled_from([0, 0, 0, 1, -1]),
    )
    def run(tensors: list[tuple[str, list[int]]], edits: list[tuple[int, str, Any]], extra: int) -> None:
        content, size = laid_out(tensors)
        for index, key, new in edits:
            entry = content[f"t{index % len(tensors)}"]
            name = key.removesuffix("[]")
            # the whole field, or its last number
            last = name != key and isinstance(entry[name], list)
            entry[name] = [*entry[name][:-1], new] if last else new
        write(path, content, max(0, size + extra))
        outcomes[read_or_refuse(path, path.read_bytes())] += 1

    run()
    assert min(outcomes["read"], outcomes["refused"]) > 10
