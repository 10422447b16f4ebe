"""OpenVINO's ONNX front end on the CPU: a plain greedy loop, single prompts and one batch padded left."""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import openvino


def main() -> None:
    request = json.load(sys.stdin)
    folder = pathlib.Path(request["folder"])
    manifest = json.loads((folder / "gemma_export.json").read_bytes())
    graph = next(graph for graph in manifest["graphs"] if graph["file"] == request["graph"])
    core = openvino.Core()
    # the CPU's own choice may be bfloat16 arithmetic
    model = core.compile_model(folder / graph["file"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def empty(rows: int) -> dict[str, np.ndarray]:
        sizes = {"batch_size": rows, "past_sequence_length": 0}
        return {
            name: np.zeros([sizes.get(size, size) for size in state["shape"]], state["dtype"])
            for state in graph["state"]
            for name in state["past"]
        }

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = np.array([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = np.array([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        past, tokens = empty(len(prompts)), []
        for _ in range(request["new_tokens"]):
            output = model({"input_ids": ids, "attention_mask": mask, **past})
            ids = output["logits"][:, -1].argmax(-1)[:, None]
            mask = np.concatenate((mask, np.ones_like(ids)), axis=1)
            tokens.append(ids)
            pairs = [pair for state in graph["state"] for pair in zip(state["past"], state["present"], strict=True)]
            past = {name: output[present] for name, present in pairs}
        return np.concatenate(tokens, axis=1).tolist()

    result = {
        "loaded": graph["file"],
        "single": [generate([prompt])[0] for prompt in request["prompt_ids"]],
        "batch": generate(request["prompt_ids"]),
        "versions": {"openvino": importlib.metadata.version("openvino")},
    }
    json.dump(result, sys.stdout)


main()
