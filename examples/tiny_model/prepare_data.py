"""Collects Python documents from the standard library of the running interpreter (PSF licence).

    python prepare_data.py --output build/tiny_model

Writes train.jsonl and held_out.jsonl: one document a line, a whole file in pieces or one function or class.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

# files of which one in this many is held out, chosen by the hash of its relative path
HELD_OUT_ONE_IN = 50
# characters; longer files are cut at line borders
PIECE = 6000
# folders that hold third-party code, or broken code on purpose
EXCLUDED = {"site-packages", "lib2to3", "ensurepip", "__pycache__", "idlelib", "bad_coding", "cjkencodings"}


def python_files(root: Path) -> Iterator[tuple[str, str]]:
    """(relative path, source) of every file that parses, in a fixed order."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED & set(relative.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        if 200 < len(source) < 400_000 and sum(ord(char) > 127 for char in source) < 0.02 * len(source):
            yield relative.as_posix(), source


def pieces(source: str) -> Iterator[str]:
    """The file in pieces of about PIECE characters, cut before a top-level line."""
    lines = source.splitlines(keepends=True)
    piece: list[str] = []
    size = 0
    for line in lines:
        if size > PIECE and line[:1] not in (" ", "\t", "\n", ")", "]", "}"):
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    yield "".join(piece)


def definitions(source: str) -> Iterator[str]:
    """Functions and small classes, dedented, with their decorators left out."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.end_lineno is not None:
            text = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            if 80 <= len(text) <= 1800 and text.startswith(("def ", "class ")):
                yield text.rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    documents: dict[str, list[dict[str, str]]] = {"train": [], "held_out": []}
    for relative, source in python_files(Path(sysconfig.get_paths()["stdlib"])):
        digest = int.from_bytes(hashlib.sha256(relative.encode()).digest()[:4], "little")
        split = "held_out" if digest % HELD_OUT_ONE_IN == 0 else "train"
        documents[split] += [{"kind": "file", "path": relative, "text": text} for text in pieces(source)]
        documents[split] += [{"kind": "definition", "path": relative, "text": text} for text in definitions(source)]
    for split, rows in documents.items():
        random.Random(0).shuffle(rows)
        with (arguments.output / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{split}: {len(rows)} documents, {sum(len(row['text']) for row in rows):,} characters")


if __name__ == "__main__":
    main()
