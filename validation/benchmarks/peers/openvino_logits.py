"""Logits of an OpenVINO model, and the bytes of its constants; runs in the peer's environment.

openvino_logits.py MODEL.xml IDS.npy LOGITS.npy: int64 [n, length] to float32 [n, length, vocab_size]. Beside them a
.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino


def main() -> None:
    """Every row with an empty cache, at the CPU plugin's defaults."""
    model_file, ids_file, logits_file = sys.argv[1:4]
    core = openvino.Core()
    model = core.read_model(model_file)
    nbytes = sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")
    names = {name for value in model.inputs for name in value.names}
    request = core.compile_model(model, "CPU").create_infer_request()
    rows = []
    for row in np.load(ids_file):
        request.reset_state()
        feeds = {
            "input_ids": row[None],
            "attention_mask": np.ones((1, len(row)), np.int64),
            "position_ids": np.arange(len(row), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request.infer({name: value for name, value in feeds.items() if name in names})
        rows.append(request.get_tensor("logits").data[0].astype(np.float32))
    np.save(logits_file, np.stack(rows))
    Path(logits_file).with_suffix(".json").write_text(json.dumps({"weight_bytes": nbytes}))


if __name__ == "__main__":
    main()
