"""optimum's ORTModelForCausalLM: single prompts, then all of them as one left-padded batch."""

import importlib.metadata
import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def main() -> None:
    request = json.load(sys.stdin)
    folder, new_tokens = request["folder"], request["new_tokens"]
    model = ORTModelForCausalLM.from_pretrained(folder, file_name=request["graph"].rpartition("/")[2])
    if model.config.model_type == "gemma2" and request.get("head_sizes", True):
        # optimum 2.1 derives them from the width of the model, as for most architectures but Gemma
        model.num_key_value_heads = model.config.num_key_value_heads
        model.embed_size_per_head = model.config.head_dim
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"

    def generate(prompts: list[str]) -> list[list[int]]:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        return output[:, inputs.input_ids.shape[1] :].tolist()

    result = {
        "loaded": model.path.name,
        "prompt_ids": tokenizer(request["prompts"]).input_ids,
        "tokenized": tokenizer(request["texts"]).input_ids,
        "single": [generate([prompt])[0] for prompt in request["prompts"]],
        "batch": generate(request["prompts"]),
        "versions": {
            name: importlib.metadata.version(name) for name in ("optimum-onnx", "transformers", "onnxruntime")
        },
    }
    json.dump(result, sys.stdout)


main()
