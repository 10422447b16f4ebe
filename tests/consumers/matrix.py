"""The README's table of other loaders, made from what the contract tests found.

python tests/consumers/matrix.py RESULTS.json accepts new results: it keeps them and rewrites the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# the checkout before its tests, whose folders are called as the packages are
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from consumers.environments import CONSUMERS, MODELS

__all__ = ["RESULTS", "in_readme", "render"]

README = Path(__file__).resolve().parents[2] / "README.md"
RESULTS = Path(__file__).with_name("results.json")
_BEGIN = "<!-- made by `make consumer-matrix`, not by hand -->\n"
_END = "<!-- end of the matrix -->\n"


def render(results: list[dict[str, Any]]) -> str:
    """The table, a row for each loader, model and precision."""
    lines = [
        "| loader | tested with | model | precision | 64 greedy tokens | batch of three lengths | its own tokenizer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        consumer = CONSUMERS[row["consumer"]]
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        batch = f"{row['batch']}, {consumer.batch}" if row["batch"] == "same" else row["batch"]
        if "batch" in consumer.limits:
            batch += f"; {consumer.limits['batch']}"
        greedy = row["greedy"]
        if row["model"] in consumer.needs:
            greedy += f", {consumer.needs[row['model']]}"
        cells = (consumer.title, versions, MODELS[row["model"]], row["precision"], greedy, batch, row["text"])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def in_readme(text: str) -> str:
    """The table as a README has it."""
    return text.split(_BEGIN)[1].split(_END)[0]


def _accept(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    README.write_text(f"{before}{_BEGIN}{render(results)}{_END}{rest.split(_END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    _accept(Path(sys.argv[1]))
