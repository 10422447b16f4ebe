"""The `gemma-run` command. Everything heavy is imported inside its functions, so that --help is instant."""

from gemma_runtime.cli.command import cli, main

__all__ = ["cli", "main"]
