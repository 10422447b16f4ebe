"""`python validation/benchmarks NAME [OPTIONS]`; without a name, the list of benchmarks."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from types import FrameType

# run as a folder: the package's parent is not on the path, its inside is
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gemma_export.errors import GemmaExportError

_USAGE, _INTERRUPTED = 2, 130
# name -> module with a `main(arguments) -> exit code`, and one line about it
_BENCHMARKS = {
    "export": ("benchmarks.export", "export time, memory and size beside onnxruntime-genai, OpenVINO and llama.cpp"),
    "quality": ("benchmarks.quality", "what 4 and 8 bits lose, beside onnxruntime-genai and llama.cpp"),
    "speed": (
        "benchmarks.speed",
        "decode, prefill, first token and memory beside the same, OpenVINO GenAI and PyTorch",
    ),
    "roofline": ("benchmarks.roofline", "decoding of a folder beside its matrix products alone"),
    "speculation": ("benchmarks.speculation", "guessing tokens ahead beside plain steps"),
    "kernels": ("benchmarks.quantising_kernels", "weights a second that are searched or rounded, and packed"),
    "quantisation": ("benchmarks.quantisation_drift", "every int4 and int8 layout of the built-in model, the same way"),
    "precision": ("benchmarks.precision_drift", "each precision of the built-in model against PyTorch float32"),
}


def main() -> int:
    """Runs one benchmark and turns errors into a message and an exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in _BENCHMARKS:
        print(__doc__.replace("`", ""), *(f"  {key:12}{text}" for key, (_, text) in _BENCHMARKS.items()), sep="\n")
        return 0 if name in ("-h", "--help") else _USAGE
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = importlib.import_module(_BENCHMARKS[name][0]).main(sys.argv[2:])
    except GemmaExportError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted before the first round\nhint: Run the command again.", file=sys.stderr)
        return _INTERRUPTED
    return code


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
