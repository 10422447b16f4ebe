"""Many prompts at once, a line each; answers in the same order.

python examples/batch.py FOLDER < prompts.txt
"""

from __future__ import annotations

import sys

from gemma_runtime import Gemma


def main(folder: str) -> None:
    prompts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    # eight rows share each run of the model; the row of an answer that has ended goes to the next prompt
    answers = Gemma(folder).generate_many(prompts, batch_size=8, max_new_tokens=32, stop=["\n"])
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"{prompt} ->{answer.text}")


if __name__ == "__main__":
    main(sys.argv[1])
