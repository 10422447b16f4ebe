"""What transformers.js reads of config.json: which graph, and how many data files belong to it.

It loads `onnx/model{suffix}.onnx`, the suffix chosen by a data type, and expects data files with the graph's own name.
Source: https://huggingface.co/docs/transformers.js/api/configs and .../guides/dtypes.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from gemma_export.consumers.consumer import FolderFacts

__all__ = ["SECTION", "transformers_js_config"]

SECTION = "transformers.js_config"
# file name of the graph -> transformers.js's data type; other precisions have no name there
_DATA_TYPES = {
    "model.onnx": "fp32",
    "model_fp16.onnx": "fp16",
    "model_int8.onnx": "int8",
    "model_q4.onnx": "q4",
    "model_q4f16.onnx": "q4f16",
}


def transformers_js_config(facts: FolderFacts) -> dict[str, Any] | None:
    """The section of config.json, or None where transformers.js has no name for the precision.

    Only the main graph is listed: twins share its data file, and a browser looks for data under each graph's own name.
    """
    main = next(PurePosixPath(path).name for path, (role, _) in facts.graphs.items() if role == "main")
    if main not in _DATA_TYPES:
        return None
    section: dict[str, Any] = {
        # without it a folder of one precision needs the same `dtype` in every call
        "dtype": _DATA_TYPES[main],
        "use_external_data_format": {main: len(facts.data_files)},
    }
    if facts.state_dtype == "float16":
        # releases before 4 make an empty cache of this type; later ones ask the session, for int8 too
        section["kv_cache_dtype"] = {_DATA_TYPES[main]: "float16"}
    return section
