"""Threads of a conversion and those of everything else."""

from __future__ import annotations

import os
import subprocess
import sys

_CONVERT = """
from gemma_export.precision.row_pieces import in_order

assert list(in_order(range(20), lambda number: number * number)) == [number * number for number in range(20)]
"""
_THREADS = """
import re
import torch

print(torch.get_num_threads(), re.findall(r"mkl_get_max_threads\\(\\) : (\\d+)", torch.__config__.parallel_info()))
"""


def _threads(program: str) -> str:
    """Those of torch and MKL in a process that is new to both; the tests' own have one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


def test_torch_has_its_threads_back() -> None:
    """What runs behind a conversion is not left with the one thread of its workers."""
    assert _threads(_CONVERT + _THREADS) == _threads(_THREADS)
