"""The manifest of an exported folder: its schema, reader and verifier. The one contract of exporter and runtimes.

entries     what it says
reading     its text, checked
verifying   its files, checked
json_object the strict reader of JSON below these

The JSON Schema is `manifest.schema.json` in the package's folder. Imports nothing heavy.
"""

from gemma_runtime.manifest.entries import (
    SCHEMA_VERSION,
    WINDOW_CAPACITY,
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
from gemma_runtime.manifest.json_object import MANIFEST_FILE
from gemma_runtime.manifest.reading import parse_manifest, read_manifest
from gemma_runtime.manifest.verifying import verify_hashes, verify_structure

__all__ = [
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "WINDOW_CAPACITY",
    "AdapterSource",
    "FileEntry",
    "Generator",
    "Graph",
    "Manifest",
    "Precision",
    "Source",
    "SourceFile",
    "State",
    "parse_manifest",
    "read_manifest",
    "verify_hashes",
    "verify_structure",
]
