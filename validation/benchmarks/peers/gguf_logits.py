"""Logits of a GGUF file by llama.cpp, and the bytes of its tensors; runs in the peer's environment.

gguf_logits.py MODEL.gguf IDS.npy LOGITS.npy: int64 [n, length] to float32 [n, length, vocab_size]. Beside them a .json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    """One context for all rows, emptied in between."""
    model_file, ids_file, logits_file = sys.argv[1:4]
    ids = np.load(ids_file)
    length = ids.shape[1]
    model = llama_cpp.Llama(model_path=model_file, n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    rows = []
    for row in ids:
        model.reset()
        model.eval(row.tolist())
        rows.append(np.array(model.scores[:length], dtype=np.float32))
    np.save(logits_file, np.stack(rows))
    found = {"weight_bytes": llama_cpp.llama_model_size(model.model)}
    Path(logits_file).with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
