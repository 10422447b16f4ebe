"""Export speed and memory beside llama.cpp's converter, on the same safetensors files in the same run.

    pip download --no-deps --no-binary :all: llama-cpp-python    # its vendor/llama.cpp holds the converter
    pip install gguf
    python validation/benchmarks/export_vs_llama_cpp.py --llama-cpp DIR --work /tmp/bench [--repeat 3]

Writes a bfloat16 checkpoint of the true 2B shape (5 GB, synthetic numbers) once, then runs
`gemma-export --fp16` and `convert_hf_to_gguf.py --outtype bf16` in turn and prints times, peak memory and the ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measure import Measured, run

from gemma_export.checkpoint import BUILTIN_DIRECTORY, SyntheticSource
from gemma_export.families import FAMILIES

_CONFIG_2B = {
    "architectures": ["GemmaForCausalLM"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}
_SHARDS = 2


def write_checkpoint(directory: Path) -> None:
    """A sharded checkpoint of the 2B's shape, streamed."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(_CONFIG_2B, indent=2))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(BUILTIN_DIRECTORY / name, directory / name)
    family = FAMILIES["gemma"]
    spec, _ = family.parse_config(_CONFIG_2B)
    source = SyntheticSource(family.tensor_shapes(spec), seed=0)
    names = list(source.tensors)
    index = {}
    for shard in range(_SHARDS):
        file = f"model-{shard + 1:05}-of-{_SHARDS:05}.safetensors"
        part = names[shard * len(names) // _SHARDS : (shard + 1) * len(names) // _SHARDS]
        _write_shard(directory / file, source, part)
        index.update(dict.fromkeys(part, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _write_shard(path: Path, source: SyntheticSource, names: list[str]) -> None:
    header, offset = {}, 0
    for name in names:
        tensor = source.tensors[name]
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    buffer = bytearray(4 << 20)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for start in range(0, source.tensors[name].nbytes, len(buffer)):
                view = memoryview(buffer)[: min(len(buffer), source.tensors[name].nbytes - start)]
                source.read_into(name, start, view)
                file.write(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of convert_hf_to_gguf.py")
    parser.add_argument("--work", type=Path, required=True, help="needs 15 GB")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    checkpoint = arguments.work / "checkpoint-2b"
    if not checkpoint.exists():
        write_checkpoint(checkpoint)
    ours, theirs = [], []
    for _ in range(arguments.repeat):
        ours.append(_ours(checkpoint, arguments.work / "onnx"))
        theirs.append(_theirs(checkpoint, arguments.llama_cpp, arguments.work / "model.gguf"))
        print(f"gemma-export {_text(ours[-1])}   convert_hf_to_gguf {_text(theirs[-1])}", flush=True)
    ratio = statistics.median(first.seconds / second.seconds for first, second in zip(ours, theirs, strict=True))
    print(f"wall time, gemma-export / llama.cpp: {ratio:.2f} (median of {arguments.repeat} pairs)")


def _ours(checkpoint: Path, output: Path) -> Measured:
    shutil.rmtree(output, ignore_errors=True)
    program = [sys.executable, "-m", "gemma_export"]
    measured = run([*program, "--checkpoint", str(checkpoint), "--fp16", "--output", str(output), "--json"])
    stages = json.loads(measured.stdout)["seconds"]
    print("  stages:", ", ".join(f"{stage} {value:.1f} s" for stage, value in stages.items()))
    shutil.rmtree(output)
    return measured


def _theirs(checkpoint: Path, llama_cpp: Path, output: Path) -> Measured:
    output.unlink(missing_ok=True)
    script = str(llama_cpp / "convert_hf_to_gguf.py")
    measured = run([sys.executable, script, str(checkpoint), "--outtype", "bf16", "--outfile", str(output)])
    output.unlink()
    return measured


def _text(measured: Measured) -> str:
    return f"{measured.seconds:5.1f} s, {measured.peak_bytes / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
