"""An answer that a program can read: JSON of a schema. Needs pip install "gemma-export[constraints]".

python examples/structured_output.py FOLDER "A review: the soup was cold, the bread fine."
"""

from __future__ import annotations

import json
import sys

from gemma_runtime import Constraint, Gemma

SCHEMA = {
    "type": "object",
    "properties": {
        "stars": {"enum": [1, 2, 3, 4, 5]},
        # a model that finds no end is stopped by the schema
        "dishes": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["stars", "dishes"],
    "additionalProperties": False,
}


def main(folder: str, text: str) -> None:
    done = Gemma(folder).generate(
        [{"role": "user", "content": f"{text}\nAnswer with JSON: stars, dishes."}],
        constraint=Constraint.json_schema(SCHEMA),
        max_new_tokens=200,
    )
    if done.finish_reason != "stop":
        sys.exit(f"the answer was cut off ({done.finish_reason}): {done.text}")
    review = json.loads(done.text)
    print(review["stars"], "stars:", ", ".join(review["dishes"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
