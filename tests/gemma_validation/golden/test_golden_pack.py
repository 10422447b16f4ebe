"""The file: what comes back, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drift_formulas as formulas
import numpy as np
import pytest
from folders import altered, swapped_ids
from golden_packs import ArraySource, identity

from gemma_runtime.manifest import AdapterSource, Manifest, read_manifest
from gemma_validation.errors import GoldenPackError
from gemma_validation.findings import ReferenceAbout
from gemma_validation.golden import GoldenReference, identity_of, make_golden

_VOCABULARY = 300


def _make(file: Path, **options: Any) -> Path:
    reference = (np.random.default_rng(0).standard_normal((12, _VOCABULARY)) * 3).astype(np.float32)
    documents = [formulas.document(12, vocab_size=_VOCABULARY, slice="code", name="one")]
    make_golden(file, ArraySource([reference]), documents, identity(_VOCABULARY), **options)
    return file


def _hashed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def _changed(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the header, with a right hash."""
    content = file.read_bytes()[:-32]
    magic, version, length = struct.unpack_from("<8sII", content)
    header = json.loads(content[16 : 16 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    file.write_bytes(_hashed(struct.pack("<8sII", magic, version, len(text)) + text + content[16 + length :]))


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    pack = GoldenReference.read(_make(tmp_path / "pack"))
    assert pack.identity == identity(_VOCABULARY)
    assert pack.about == ReferenceAbout(kind="golden", name="pack", dtype="float32", versions={"numpy": "2"})
    assert pack.counts == (11,)
    assert pack.documents[0] == formulas.document(12, vocab_size=_VOCABULARY)
    assert pack.rows.positions.tolist() == list(range(11))
    reference = (np.random.default_rng(0).standard_normal((12, _VOCABULARY)) * 3).astype(np.float32)
    for row in range(11):
        logs = formulas.log_softmax(reference[row])
        assert pack.rows.ids[row].tolist() == formulas.best(reference[row], 256)
        known = pack.rows.logits[row] - pack.rows.log_sum[row]
        assert known == pytest.approx(logs[pack.rows.ids[row]], abs=1e-12)
        tail = np.exp(pack.rows.log_tail[row] - pack.rows.log_sum[row])
        assert np.exp(known).sum() + tail == pytest.approx(1, abs=1e-12)
        token = pack.documents[0].token_ids[row + 1]
        assert pack.rows.next_logit[row] - pack.rows.log_sum[row] == pytest.approx(logs[token], abs=1e-12)


def test_the_same_reference_gives_the_same_bytes(tmp_path: Path) -> None:
    assert _make(tmp_path / "first").read_bytes() == _make(tmp_path / "second").read_bytes()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    content = _make(tmp_path / "pack").read_bytes()
    places = [*range(0, 64), *range(64, len(content), 997), *range(len(content) - 33, len(content))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(GoldenPackError):
            GoldenReference.read(tmp_path / "damaged")


def test_every_cut_is_found(tmp_path: Path) -> None:
    content = _make(tmp_path / "pack").read_bytes()
    for length in (0, 7, 8, 15, 16, 47, 48, 200, len(content) // 2, len(content) - 32, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(GoldenPackError):
            GoldenReference.read(tmp_path / "cut")
    (tmp_path / "longer").write_bytes(content + b"\0")
    with pytest.raises(GoldenPackError, match="it is damaged"):
        GoldenReference.read(tmp_path / "longer")


def test_messages_say_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _make(tmp_path / "pack")
    content = file.read_bytes()
    with pytest.raises(GoldenPackError, match=r"missing: No such file") as failure:
        GoldenReference.read(tmp_path / "missing")
    assert failure.value.exit_code == 3
    file.write_bytes(b"PK" + content[2:])
    with pytest.raises(GoldenPackError, match="no golden pack"):
        GoldenReference.read(file)
    file.write_bytes(_hashed(content[:8] + struct.pack("<I", 3) + content[12:-32]))
    with pytest.raises(GoldenPackError, match="format version 3, expected 2") as failure:
        GoldenReference.read(file)
    assert "with this release" in failure.value.hint
    file.write_bytes(_hashed(content[:12] + struct.pack("<I", 1 << 31) + content[16:-32]))
    with pytest.raises(GoldenPackError, match="a header of 2147483648 bytes"):
        GoldenReference.read(file)
    file.write_bytes(_hashed(content[:-36]))
    with pytest.raises(GoldenPackError, match=r"bytes of arrays, expected \d+ for 11 rows"):
        GoldenReference.read(file)
    monkeypatch.setattr("gemma_validation.golden.pack._LARGEST_FILE", 1000)
    with pytest.raises(GoldenPackError, match="larger than 1000 bytes"):
        GoldenReference.read(file)


def _replace(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_replace(extra=1), "expected an object of"),
        (lambda header: [header], "expected an object of"),
        (_replace(top=0), "expected an integer from 1"),
        (_replace(top=True), "expected an integer from 1"),
        (_replace(top=1e9), "expected an integer from 1"),
        (_replace(top=301), "outside the vocabulary"),
        (_replace(top=255), "bytes of arrays, expected"),
        (_replace(rows=[1 << 30]), "bytes of arrays, expected"),
        (_replace(rows=[-1]), "expected an integer from 1"),
        (_replace(rows=[]), "1 documents, rows of 0"),
        (_replace(rows={"0": 1}), "expected a list"),
        (_replace(documents=[], rows=[]), "0 documents"),
        (lambda header: header["documents"][0].update(token_ids=[1, "2"]), "expected an integer"),
        (lambda header: header["documents"][0].update(token_ids=[300] * 12), "outside the vocabulary"),
        (lambda header: header["documents"][0].update(token_ids=[1] * 11), "positions of one that it does not have"),
        (lambda header: header["documents"][0].update(name=5), "expected text"),
        (lambda header: header.update(documents=header["documents"] * 2, rows=[5, 6]), "documents of one name"),
        (lambda header: header["identity"].update(weights_sha256="abc"), "expected a SHA-256"),
        (lambda header: header["identity"].update(vocab_size=10**30), "expected an integer"),
        (lambda header: header["reference"].update(kind="golden"), "expected one of"),
        (lambda header: header["reference"].update(versions=[]), "expected versions of packages"),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    """With a right hash: whoever made it made it so."""
    file = _make(tmp_path / "pack")
    _changed(file, change)
    with pytest.raises(GoldenPackError, match=words):
        GoldenReference.read(file)


def test_a_header_that_nests_without_end(tmp_path: Path) -> None:
    file = _make(tmp_path / "pack")
    text = b"[" * 200_000
    file.write_bytes(_hashed(struct.pack("<8sII", b"GEMMAGLD", 2, len(text)) + text))
    with pytest.raises(GoldenPackError, match="cannot be read"):
        GoldenReference.read(file)


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        ("logits", lambda array: array.fill(np.nan), "not finite"),
        ("log_sum", lambda array: array.fill(np.inf), "not finite"),
        ("log_tail", lambda array: array.fill(np.nan), "a tail is no number"),
        ("ids", lambda array: array.fill(3), "repeat"),
        ("ids", lambda array: array[0].fill(-1), "repeat or are outside"),
        ("ids", lambda array: array[0, :1].fill(300), "outside the vocabulary"),
        ("logits", lambda array: array[0, 1:2].fill(99), "order of their logits"),
        ("positions", lambda array: array.fill(3), "does not have"),
        ("positions", lambda array: array[:1].fill(-1), "does not have"),
        ("positions", lambda array: array[-1:].fill(11), "does not have"),
    ],
)
def test_numbers_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, change: Callable[[Any], None], words: str
) -> None:
    from gemma_validation.golden import make
    from gemma_validation.golden.pack import GoldenRows, write_pack

    def write(file: Path, header: Any, rows: GoldenRows) -> None:
        array = getattr(rows, column).copy()
        change(array)
        write_pack(file, header, dataclasses.replace(rows, **{column: array}))

    monkeypatch.setattr(make, "write_pack", write)
    with pytest.raises(GoldenPackError, match=words):
        GoldenReference.read(_make(tmp_path / "pack"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(GoldenPackError, match="No such file"):
        _make(tmp_path / "missing" / "pack")


def test_identity_is_the_checkpoints(tiny_fp32: Path, tiny_fp16: Path, tmp_path: Path) -> None:
    """The same for each precision of a checkpoint; another for other weights, another tokenizer or another seed."""
    manifest = read_manifest(tiny_fp32)
    assert identity_of(tiny_fp32, manifest) == identity_of(tiny_fp16, read_manifest(tiny_fp16))
    pack = dataclasses.replace(
        GoldenReference.read(_make(tmp_path / "pack")), identity=identity_of(tiny_fp32, manifest)
    )
    pack.require(tiny_fp16, read_manifest(tiny_fp16))
    files = manifest.source.files
    others: list[tuple[Manifest, str]] = [
        (dataclasses.replace(manifest, vocab_size=3073), "whose vocabulary is 3072; the export is of tiny: 3073"),
        (dataclasses.replace(manifest, family="gemma2"), "whose family is gemma; the export is of tiny: gemma2"),
    ]
    for name, words in (("model.safetensors", "weights hash to"), ("tokenizer.model", "tokenizer hashes to")):
        changed = tuple(dataclasses.replace(entry, sha256="f" * 64) if entry.name == name else entry for entry in files)
        assert changed != files
        source = dataclasses.replace(manifest.source, files=changed)
        others.append((dataclasses.replace(manifest, source=source), words))
    for other, words in others:
        with pytest.raises(GoldenPackError, match=words):
            pack.require(tiny_fp32, other)
    # synthetic weights have a seed in the place of files, tuned ones an adapter beside them
    seeds = [dataclasses.replace(manifest.source, seed=seed, files=()) for seed in (5, 6)]
    adapter = AdapterSource(repository=None, revision=None, name="tuned", ranks=(8,), files=files[:1])
    sources = [manifest.source, *seeds, dataclasses.replace(manifest.source, adapter=adapter)]
    assert len({identity_of(tiny_fp32, dataclasses.replace(manifest, source=source)) for source in sources}) == 4


def test_a_pack_is_of_the_folders_tokenizer(tiny_fp32: Path, tmp_path: Path) -> None:
    """The source's hashes say nothing of the folder's files: two ids that no text needs are enough."""
    manifest = read_manifest(tiny_fp32)
    pack = dataclasses.replace(
        GoldenReference.read(_make(tmp_path / "pack")), identity=identity_of(tiny_fp32, manifest)
    )
    content = swapped_ids((tiny_fp32 / "tokenizer.json").read_bytes())
    folder = altered(tiny_fp32, tmp_path / "swapped", {"tokenizer.json": content})
    with pytest.raises(GoldenPackError, match="whose tokens hash to"):
        pack.require(folder, read_manifest(folder))
    # tokenizer.model alone gives the same tokens
    pack.require(folder := altered(tiny_fp32, tmp_path / "one", {"tokenizer.json": None}), read_manifest(folder))
