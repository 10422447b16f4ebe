"""Imports onnxruntime and runs a minuscule graph on one provider. Runs in a process of its own: an extension module
that crashes, hangs or was built for another machine must not take the diagnosis with it.

`python probe.py` prints what the import gives; `python probe.py PROVIDER` what a session on that provider gives.
Either is one JSON object on the last line of stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["GRAPH", "look_at_import", "start_provider"]

# y = x @ x, float32 [4, 4], opset 13, IR version 8: every onnxruntime since 1.10 reads it. Made with onnx.helper:
# make_model(make_graph([make_node("MatMul", ["x", "x"], ["y"])], "g", [x], [y]), opset_imports=[13], ir_version=8),
# where x and y are make_tensor_value_info(name, FLOAT, [4, 4]). A product, since OpenVINO leaves a lone Add to the CPU.
GRAPH = bytes.fromhex(
    "08083a400a110a01780a017812017922064d61744d756c1201675a130a0178120e0a0c080112080a0208040a02080462130a0179120e0a"
    "0c080112080a0208040a02080442040a00100d"
)
# a rotation of the four elements, doubled: its square is exact in any precision
_INPUT = [[0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2], [2, 0, 0, 0]]
_OUTPUT = [[0, 0, 4, 0], [0, 0, 0, 4], [4, 0, 0, 0], [0, 4, 0, 0]]


def look_at_import() -> dict[str, Any]:
    """Version, providers built in, and where the module lies.

    Raises:
        Exception: whatever a broken installation raises.
    """
    import onnxruntime

    return {
        # absent where only the empty folder of an uninstalled package is left
        "version": getattr(onnxruntime, "__version__", None),
        "available": getattr(onnxruntime, "get_available_providers", list)(),
        "complete": hasattr(onnxruntime, "InferenceSession"),
        "file": getattr(onnxruntime, "__file__", None) or str(next(iter(onnxruntime.__path__), "")),
    }


def start_provider(provider: str) -> dict[str, Any]:
    """Runs the graph on one provider, refusing any other.

    Raises:
        Exception: whatever onnxruntime raises; its own exceptions share no base class.
    """
    import numpy as np
    import onnxruntime

    if provider == "CUDAExecutionProvider":
        # finds the CUDA and cuDNN libraries that pip installed
        getattr(onnxruntime, "preload_dlls", lambda: None)()
    session = onnxruntime.InferenceSession(GRAPH, _options(onnxruntime, provider), providers=[provider])
    providers = session.get_providers()
    (result,) = session.run(None, {"x": np.asarray(_INPUT, np.float32)})
    return {
        "session_providers": providers,
        "node_provider": _node_provider(session, provider),
        "right": result.tolist() == _OUTPUT,
    }


def _options(onnxruntime: Any, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    # errors only: why a provider's library does not load is told nowhere else
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider != "CPUExecutionProvider":
        # a graph that would run elsewhere is an error
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _node_provider(session: Any, provider: str) -> str:
    """Where the node ran. Releases before 1.24 do not tell, but then no other provider was allowed."""
    told = getattr(session, "get_provider_graph_assignment_info", None)
    if told is None:
        return provider
    assigned = told()
    return str(assigned[0].ep_name) if assigned else provider


def _main() -> None:
    try:
        found = start_provider(sys.argv[1]) if len(sys.argv) > 1 else look_at_import()
    except Exception as error:  # noqa: BLE001  a broken installation raises anything: it is what is asked for
        found = {"failure": f"{type(error).__name__}: {error}"}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    _main()
