"""Turn a Gemma checkpoint into an ONNX folder that onnxruntime runs, and prove that it still computes the same."""

from __future__ import annotations

__version__ = "0.1.0"
# of everything that --json prints: schemas/*.schema.json
JSON_VERSION = 1
