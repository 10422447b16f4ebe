"""`python -m gemma_runtime` is `gemma-run`."""

from __future__ import annotations

from gemma_runtime.cli import main

main()
