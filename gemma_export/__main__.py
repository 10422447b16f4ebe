"""`python -m gemma_export` is `gemma-export`."""

from __future__ import annotations

from gemma_export.cli import main

main()
