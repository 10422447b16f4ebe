"""Other people's loaders, each with the environment that `make test-consumers` installs and the program that drives it.

`CONSUMERS` is the registry: to add one, add requirements, a program and a line here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_export.targets import TARGETS

__all__ = ["CONSUMERS", "MODELS", "Answer", "Consumer", "ask"]

# variant of a built-in model -> its family, in the table's words
MODELS = {"tiny": "Gemma 1", "tiny2": "Gemma 2"}

_REPOSITORY = Path(__file__).resolve().parents[2]
_ENVIRONMENTS = _REPOSITORY / ".consumers"
_PROGRAMS = Path(__file__).parent / "programs"
# whatever a loader would like to fetch or send
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}
_SECONDS = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consumer:
    """One loader."""

    name: str
    # what the README's table calls it
    title: str
    # folder in .consumers
    environment: str
    # program in programs/
    program: str
    # the deployment target whose graphs it reads
    target: str = "ort"
    # how it pads a batch: the table's words, None where it takes one row
    batch: str | None = None
    # whether it tokenizes text itself
    tokenizes: bool = True
    # where it is known to differ from the reference, and why: result -> the table's words
    limits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # what its program does for a built-in model beyond loading the folder: variant -> the table's words
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """Interpreter and program."""
        program = str(_PROGRAMS / self.program)
        if self.program.endswith(".mjs"):
            return ["node", program]
        scripts = "Scripts" if os.name == "nt" else "bin"
        return [str(_ENVIRONMENTS / self.environment / scripts / "python"), program]


CONSUMERS = {
    consumer.name: consumer
    for consumer in (
        Consumer(
            name="optimum",
            title="optimum, `ORTModelForCausalLM`",
            environment="optimum",
            program="run_optimum.py",
            batch="padded left",
            needs={"tiny2": "its two head sizes set after loading"},
        ),
        Consumer(
            name="genai",
            title="onnxruntime-genai",
            environment="genai",
            program="run_genai.py",
            batch="padded right",
            limits={
                # its attention mask is 1 for padding on the left; its own tokenizer pads right
                "batch": "padded left: takes padding for text",
                # the longer tokens of spaces are words of the vocabulary that it never looks up
                "text": "splits runs of spaces into other tokens",
            },
        ),
        Consumer(
            name="transformers_js",
            title="transformers.js (Node)",
            environment="node",
            program="run_transformers_js.mjs",
            batch="padded left",
        ),
        Consumer(
            name="onnxruntime_node",
            title="onnxruntime-node, [a loop of one page](examples/node_generate.mjs)",
            environment="node",
            program="run_onnxruntime_node.mjs",
            tokenizes=False,
        ),
        Consumer(
            name="openvino",
            title="OpenVINO, ONNX front end",
            environment="openvino",
            program="run_openvino.py",
            target="portable",
            batch="padded left",
            tokenizes=False,
        ),
    )
    # this package's targets decide which loaders have something to read
    if consumer.target in TARGETS
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a loader made of a folder."""

    # path of the graph that it took, or its last words
    loaded: str
    error: str | None = None
    # token ids of each prompt and of each text, tokenized by the loader; None where it does not tokenize
    prompt_ids: list[list[int]] | None = None
    tokenized: list[list[int]] | None = None
    # new tokens of each prompt, alone and in one batch
    single: list[list[int]] = dataclasses.field(default_factory=list)
    batch: list[list[int]] | None = None
    # the batch padded so as the loader is known not to handle
    limited_batch: list[list[int]] | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


def ask(consumer: Consumer, request: Mapping[str, Any]) -> Answer:
    """Runs a loader in its own environment and process.

    Args:
        consumer: which.
        request: for the program on stdin: folder, graph, prompts, prompt_ids, texts, new_tokens.
    """
    environment = _ENVIRONMENTS / consumer.environment
    if not (environment / ".installed").exists():
        raise AssertionError(f"{environment} is not installed: make test-consumers does it")
    process = subprocess.run(
        _isolated(consumer.command),
        input=json.dumps(request),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_SECONDS,
        cwd=environment,
        # neither this interpreter's packages nor the user's
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | _OFFLINE,
        check=False,
    )
    if process.returncode:
        return Answer(loaded="", error=_reason(process.stderr) or f"exit code {process.returncode}")
    return Answer(**json.loads(process.stdout))


def _reason(stderr: str) -> str:
    """The last line that names an error (OpenVINO: an operator); what follows it in Node is the stack."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"error|exception|no conversion rule", line, re.IGNORECASE)] or lines
    return named[-1][:400] if named else ""


def _isolated(command: Sequence[str]) -> list[str]:
    return [command[0], "-I", *command[1:]] if "python" in Path(command[0]).name else list(command)
