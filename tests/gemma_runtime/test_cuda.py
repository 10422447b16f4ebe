"""Half-precision folders as gemma-run runs them, prompt and cached steps, near PyTorch float32: CPU, and CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from decoders import builtin_reference, reference_logits

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_export.precision import WeightOptions
from gemma_runtime import Gemma
from gemma_runtime.doctor.providers import start_provider
from gemma_runtime.session import PROVIDERS
from gemma_runtime.tokenizer import load_tokenizer
from gemma_validation import measure_drift

_REQUESTS: dict[str, dict[str, Any]] = {
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "int4 fp16": {"precision": "fp16", "weights": WeightOptions(scheme="int4")},
}
# mean KL in nats
_BOUNDS = {
    "fp16": tolerances.FP16_MEAN_KL,
    "bf16": tolerances.BF16_MEAN_KL,
    "int4 fp16": tolerances.INT4_MEAN_KL,
}
# this file's own text: written after the model was trained
_TEXT = Path(__file__).read_text(encoding="utf-8")
# tokens of the prompt, and of the cached steps after it
_PROMPT, _STEPS = 192, 64


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("fp16", "cpu"),
        pytest.param("fp16", "cuda", marks=pytest.mark.gpu),
        pytest.param("bf16", "cuda", marks=pytest.mark.gpu),
        pytest.param("int4 fp16", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_prompt_and_steps_are_pytorchs(name: str, provider: str, tmp_path: Path) -> None:
    if provider == "cuda":
        started = start_provider(PROVIDERS["cuda"])
        if not started.starts:
            pytest.skip(f"CUDA does not start here: {started.reason}")
    folder = tmp_path / "out"
    export(ExportRequest(variant="tiny", output=folder, **_REQUESTS[name]))
    ids = load_tokenizer(BUILTIN_DIRECTORY).encode(_TEXT)[: _PROMPT + _STEPS]
    model = Gemma(folder, provider=provider)
    # twice: nothing of the first sequence may stay
    for _ in range(2):
        tokens = model.sequence()
        steps = [tokens.step(part)[-1].copy() for part in (ids[:_PROMPT], *([token] for token in ids[_PROMPT:]))]
    expected = reference_logits(builtin_reference(), np.array([ids]))[:, _PROMPT - 1 :]
    drift = measure_drift(expected, np.stack(steps)[None])
    assert 0 < drift.mean_kl <= _BOUNDS[name], drift
    assert model.generate("def read_lines(path):", max_new_tokens=24).text
