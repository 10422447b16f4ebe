"""The shortest way from a checkpoint to text, in Python.

python examples/generate.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Gemma, Sampling


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = export(ExportRequest(variant="tiny", output=Path(root) / "tiny")).folder.directory
        generator = Gemma(folder)
        print(generator.generate("def read_lines(path):\n", max_new_tokens=64).text)
        # fill in the middle, as CodeGemma does it: the model writes what belongs between prefix and suffix
        prompt = "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n<|fim_middle|>"
        print(generator.generate(prompt, max_new_tokens=16, sampling=Sampling(temperature=0.2, seed=1)).text)


if __name__ == "__main__":
    main()
