"""torch's table of ONNX functions, built once in a process: a second of each of some hundred exports."""

from __future__ import annotations

import functools

__all__ = ["build_torchlib_once"]


def build_torchlib_once() -> None:
    """From here on each export takes a copy of the first one's table; other releases of torch build theirs anew."""
    from torch.onnx._internal.exporter import _registration

    registry = getattr(_registration, "ONNXRegistry", None)
    build = getattr(registry, "from_torchlib", None)
    if build is None or hasattr(build, "__wrapped__"):
        return
    kept = functools.cache(build)

    @functools.wraps(build)
    def from_torchlib(*arguments: object, **options: object) -> object:
        found, copy = kept(*arguments, **options), registry()
        copy.__dict__.update(found.__dict__)
        copy.functions = {target: list(entries) for target, entries in found.functions.items()}
        return copy

    registry.from_torchlib = staticmethod(from_torchlib)
