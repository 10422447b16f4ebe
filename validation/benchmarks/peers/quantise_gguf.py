"""Quantises a GGUF file with llama.cpp's own library; runs in the peer's environment, which has no executable for it.

quantise_gguf.py FROM TO q4_0|q4_k_m|q8_0
"""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp

_TYPES = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}


def main() -> None:
    """All other parameters are llama.cpp's defaults."""
    source, target, name = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = _TYPES[name]
    parameters.nthread = os.cpu_count() or 1
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    if code != 0:
        sys.exit(f"llama_model_quantize ended with {code}")


if __name__ == "__main__":
    main()
