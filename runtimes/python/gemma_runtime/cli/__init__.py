"""The `gemma-run` command. Everything heavy is imported inside its functions, so that --help is instant."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    try:
        from gemma_runtime.cli.command import main as run
    except KeyboardInterrupt:
        # pressed before there was anything to interrupt
        sys.exit(130)
    run()
