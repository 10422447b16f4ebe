"""Runs Python modules as programs without importing torch and onnxscript anew for each: six seconds a start.

A server imports other people's packages once and forks for each program; the child is a process of its own with the
streams, directory and environment asked for, and runs the module as `python -m` does. No module of ours is imported
before the fork, and none of the packages that read the environment of tests when they are imported (huggingface_hub,
transformers). POSIX only.

Run as a file: forked_programs.py SOCKET, the descriptor of the server's end of a socket pair.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchlib import build_torchlib_once

__all__ = ["run_forked"]

_PACKAGES = (
    "numba",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "sentencepiece",
    # torch imports it when it makes symbols
    "sympy.tensor.tensor",
    "tokenizers",
    "torch",
)
_UNTOUCHED = ("gemma_export", "gemma_runtime", "gemma_validation", "huggingface_hub", "transformers")
# gemma_export's own
_OPSET = 23
_REQUEST_BYTES = 1 << 20


def run_forked(
    module: str,
    arguments: Sequence[str],
    *,
    cwd: Path | None,
    environment: Mapping[str, str],
    seconds: float,
    stdout: int,
    stderr: int,
) -> int:
    """The exit code of `python -m module arguments`, negative for a signal.

    Args:
        module: to run.
        arguments: behind the module.
        cwd: its directory; None for this process's.
        environment: the whole of it.
        seconds: after which it is killed.
        stdout, stderr: descriptors of open files.

    Raises:
        TimeoutError: it was killed.
    """
    request: dict[str, object] = {
        "module": module,
        "arguments": list(arguments),
        "cwd": str(cwd or Path.cwd()),
        "env": dict(environment),
        # a test may have changed it since the server was started
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }
    reading, writing = os.pipe()
    with open(reading, "rb") as answers:
        try:
            socket.send_fds(_server(), [json.dumps(request).encode()], [stdout, stderr, writing])
        finally:
            os.close(writing)
        pid = int(answers.readline())
        if not select.select([answers], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"{module} {' '.join(arguments)} took longer than {seconds} s")
        return os.waitstatus_to_exitcode(int(answers.readline()))


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
    command = [sys.executable, __file__, str(theirs.fileno())]
    compiled = tempfile.mkdtemp(prefix="numba-")
    process = subprocess.Popen(
        command,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # numba reads it when it is imported
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "NUMBA_CACHE_DIR": compiled},
    )
    theirs.close()
    atexit.register(_end, ours, process, compiled)
    return ours


def _end(ours: socket.socket, process: subprocess.Popen[bytes], compiled: str) -> None:
    """The server ends when this end of the pair does."""
    ours.close()
    process.wait()
    shutil.rmtree(compiled, ignore_errors=True)


def _serve(requests: socket.socket) -> str:
    """Returns in the children only, with the name of the module that each is to run."""
    for package in _PACKAGES:
        __import__(package)
    _keep_compiled()
    _export_something()
    if early := sorted(name for name in _UNTOUCHED if name in sys.modules):
        sys.exit(f"imported before the fork: {', '.join(early)}")
    # the collector writes to what it looks at, and so would copy it in every child
    gc.collect()
    gc.freeze()
    # those that only hand on an exit code
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
        if not message:
            sys.exit(0)
        if os.fork() == 0:
            requests.close()
            return _program(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep_compiled() -> None:
    """What numba compiles is compiled by the first program that needs it: two seconds of every other one."""
    import numba

    compile_ = numba.njit

    @functools.wraps(compile_)
    def njit(*functions: object, **options: object) -> object:
        # numba's own are given without options
        return compile_(*functions, **options) if functions else compile_(**options, cache=True)

    numba.njit = njit


def _export_something() -> None:
    """For what torch imports when it is used first; its warnings are not of our tests."""
    import torch

    build_torchlib_once()
    logging.disable()
    layer, inputs = torch.nn.Linear(2, 2).eval(), torch.zeros(3, 4, 2)
    # as programs do: other opsets have a table of their own, and shapes that are not known other parts of torch
    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(layer, (inputs,), dynamic_shapes=(shapes,), opset_version=_OPSET, dynamo=True, verbose=False)
    logging.disable(logging.NOTSET)


def _program(request: dict[str, Any], stdout: int, stderr: int, answers: int) -> str:
    """Forks once more, for a parent that waits; returns in the program's process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.write(answers, f"{pid}\n".encode())
        os.write(answers, f"{os.waitpid(pid, 0)[1]}\n".encode())
        os._exit(0)
    os.close(answers)
    for source, target in ((stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    if request["cores"] is not None:
        os.sched_setaffinity(0, request["cores"])
    os.chdir(str(request["cwd"]))
    # numba reads it again whenever it compiles
    compiled = os.environ["NUMBA_CACHE_DIR"]
    os.environ.clear()
    os.environ.update({"NUMBA_CACHE_DIR": compiled, **request["env"]})
    # as `python -m` has them
    sys.path[0] = os.getcwd()
    sys.argv[1:] = request["arguments"]
    return str(request["module"])


def _run(module: str) -> int:
    """The exit code, without taking apart what was imported before the fork: that takes seconds."""
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not (code is None or isinstance(code, int)):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    os._exit(_run(_serve(socket.socket(fileno=int(sys.argv[1])))))
