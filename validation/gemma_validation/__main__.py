"""`python -m gemma_validation` is gemma-validate."""

from __future__ import annotations

from gemma_validation.cli import main

main()
