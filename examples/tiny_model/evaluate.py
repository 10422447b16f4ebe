"""Held-out loss and the quality of 100 greedy completions of the tiny model.

    python evaluate.py --data build/tiny_model --checkpoint build/tiny_model/checkpoint

Prompts are the first two lines of 100 held-out functions; each is completed greedily until the end-of-sequence token
or 256 tokens, then cut after its last whole line when no end came. A completion counts when Python's `tokenize` reads
prompt and completion without an error; how many `ast.parse` takes is told too. Writes evaluation.json and samples.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from pathlib import Path

import sentencepiece
import torch
import transformers
from train import BOS, EOS, held_out_loss, load_tokens

COMPLETIONS, NEW_TOKENS = 100, 256


def prompts(data: Path) -> list[str]:
    """The first two lines of held-out functions, none twice."""
    found: dict[str, None] = {}
    with (data / "held_out.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            lines = row["text"].splitlines(keepends=True)
            if row["kind"] == "definition" and row["text"].startswith("def ") and len(lines) >= 4:
                found.setdefault("".join(lines[:2]))
    return list(found)[:COMPLETIONS]


@torch.no_grad()
def complete(model: torch.nn.Module, ids: list[int]) -> tuple[list[int], bool]:
    """Greedy tokens, and whether the model ended by itself."""
    output = model.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=EOS, pad_token_id=0
    )[0].tolist()[len(ids) :]
    return (output[:-1], True) if output[-1] == EOS else (output, False)


def tokenizes(text: str) -> bool:
    try:
        list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return False
    return True


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(arguments.data / "tokenizer.model"))
    # eager: the fused attention of torch has no soft-capping
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    texts = []
    ended = 0
    for prompt in prompts(arguments.data):
        ids = [BOS, *tokenizer.encode(prompt)]
        tokens, stopped = complete(model, ids)
        text = prompt + tokenizer.decode(tokens)
        texts.append(text if stopped else text[: text.rfind("\n") + 1])
        ended += stopped
    result = {
        "held_out_loss_nats_per_token": held_out_loss(model, load_tokens(arguments.data, "held_out"), 10**9),
        "completions": len(texts),
        "ended_by_themselves": ended,
        "pass_tokenize": sum(map(tokenizes, texts)),
        "pass_ast_parse": sum(map(parses, texts)),
    }
    print(json.dumps(result, indent=2))
    (arguments.data / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.data / "samples.txt").write_text("\n# ----\n".join(texts))


if __name__ == "__main__":
    main()
