"""The `gemma-export` command: options and commands, what they print, and how errors become exit codes.

A new option is two lines of `commands.py`: its declaration, and the field of the request that it fills.
"""

from __future__ import annotations

from gemma_export.cli.commands import cli
from gemma_export.cli.entry import main

__all__ = ["cli", "main"]
