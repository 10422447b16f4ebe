"""The command line of gemma-validate."""

from __future__ import annotations

from gemma_validation.cli.command import cli, main

__all__ = ["cli", "main"]
