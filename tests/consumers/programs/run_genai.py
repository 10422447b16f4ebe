"""onnxruntime-genai: single prompts, then all of them as one batch: padded right, as its tokenizer pads, and left."""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import onnxruntime_genai


def main() -> None:
    request = json.load(sys.stdin)
    model = onnxruntime_genai.Model(request["folder"])
    tokenizer = onnxruntime_genai.Tokenizer(model)
    # off unless asked for: Gemma needs its <bos>
    tokenizer.update_options(add_special_tokens="true")

    def generate(ids: np.ndarray) -> list[list[int]]:
        rows, width = ids.shape
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, batch_size=rows, max_length=width + request["new_tokens"])
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return [[int(token) for token in generator.get_sequence(row)[width:]] for row in range(rows)]

    prompt_ids = [[int(token) for token in tokenizer.encode(prompt)] for prompt in request["prompts"]]
    longest = max(map(len, prompt_ids))
    right = np.full((len(prompt_ids), longest), tokenizer.pad_token_id, np.int32)
    # so much padding that a loader that reads it as text says something else
    left = np.full((len(prompt_ids), longest + 32), tokenizer.pad_token_id, np.int32)
    for row, ids in enumerate(prompt_ids):
        right[row, : len(ids)] = left[row, -len(ids) :] = ids
    config = json.loads(pathlib.Path(request["folder"], "genai_config.json").read_bytes())
    result = {
        "loaded": config["model"]["decoder"]["filename"],
        "prompt_ids": prompt_ids,
        "tokenized": [[int(token) for token in tokenizer.encode(text)] for text in request["texts"]],
        "single": [generate(np.array([ids], np.int32))[0] for ids in prompt_ids],
        "batch": generate(right),
        "limited_batch": generate(left),
        "versions": {name: importlib.metadata.version(name) for name in ("onnxruntime-genai", "onnxruntime")},
    }
    json.dump(result, sys.stdout)


main()
