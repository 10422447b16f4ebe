"""A golden pack that was read, in the place of a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gemma_runtime.manifest import Manifest
from gemma_validation.documents import Document
from gemma_validation.errors import GoldenPackError
from gemma_validation.findings import ReferenceAbout
from gemma_validation.golden.identity import GoldenIdentity, identity_of
from gemma_validation.golden.pack import GoldenRows, read_pack

__all__ = ["GoldenReference"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenReference:
    """Documents, and what the reference said of them."""

    file: Path
    identity: GoldenIdentity
    # of what computed it
    source: ReferenceAbout
    documents: tuple[Document, ...]
    # chosen positions of each document
    counts: tuple[int, ...]
    rows: GoldenRows

    @classmethod
    def read(cls, file: Path) -> GoldenReference:
        """From a file.

        Raises:
            GoldenPackError: it is no golden pack, of a foreign version, or damaged.
        """
        header, rows = read_pack(file)
        return cls(
            file=file,
            identity=header.identity,
            source=header.reference,
            documents=header.documents,
            counts=header.rows,
            rows=rows,
        )

    @property
    def about(self) -> ReferenceAbout:
        """For a report: the file, and the versions of what computed it."""
        return dataclasses.replace(self.source, kind="golden", name=self.file.name)

    def require(self, directory: Path, manifest: Manifest) -> None:
        """Checks that the pack is of an exported folder's model.

        Raises:
            GoldenPackError: it is of another, or the folder's tokenizer is not the one that cut the pack's texts.
            FolderUnreadableError, MissingPackageError: the folder's tokenizer cannot be read.
        """
        found = identity_of(directory, manifest)
        for field, words in _COMPARED.items():
            expected, here = getattr(self.identity, field), getattr(found, field)
            if expected != here:
                raise GoldenPackError(
                    f"{self.file}: of {self.identity.name}, whose {words} {_short(expected)}; "
                    f"the export is of {found.name}: {_short(here)}",
                    hint="Use the pack of this checkpoint, or make one with gemma-validate --make-golden FILE.",
                )

    def each(self) -> Iterator[tuple[Document, GoldenRows]]:
        """Each document with its rows."""
        end = 0
        for document, count in zip(self.documents, self.counts, strict=True):
            part = slice(end, end + count)
            yield document, GoldenRows(**{name: array[part] for name, array in vars(self.rows).items()})
            end += count


_COMPARED = {
    "family": "family is",
    "vocab_size": "vocabulary is",
    "weights_sha256": "weights hash to",
    "tokenizer_sha256": "tokenizer hashes to",
    "tokens_sha256": "tokens hash to",
}


def _short(value: object) -> str:
    return str(value)[:12]
