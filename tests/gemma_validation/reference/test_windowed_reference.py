"""Families with windows: the reference is transformers', past the window, with its cache and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from local_references import parting
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference

from gemma_runtime.manifest import read_manifest
from gemma_validation.artifact import ArtifactRunner
from gemma_validation.documents import Document
from gemma_validation.errors import MismatchError, ReferenceMissingError
from gemma_validation.reference import (
    FoundReference,
    TransformersReference,
    ask_injection,
    find_reference,
    open_reference,
    open_source,
)
from gemma_validation.reference import transformers_reference as module

# the same operations in float32, cut into other pieces
SAME = 1e-5
# several windows of each
IDS = tuple(int(token) for token in np.random.default_rng(4).integers(3, 3000, 40))
DOCUMENT = Document(slice="code", name="x", token_ids=IDS)


def of(checkpoint: Path) -> TransformersReference:
    return TransformersReference(open_reference(FoundReference(kind="checkpoint", path=checkpoint, name="x")))


def whole(config: str) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = windowed_reference(WINDOWED_CONFIGS[config])(torch.tensor([IDS])).logits[0].numpy()
    return logits


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < SAME * wanted.std()


@pytest.mark.parametrize("config", WINDOWED_CONFIGS)
def test_logits_are_transformers_own(
    config: str, windowed_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece, in pieces shorter than the window, and behind a cache of all positions."""
    source, expected = of(windowed_checkpoint(config)), whole(config)
    source.prepare([DOCUMENT])
    assert_same(source.logits(0, 0, len(IDS)), expected)
    monkeypatch.setattr(module, "_CHUNK", 5)
    source.prepare([DOCUMENT])
    assert_same(source.logits(0, 0, len(IDS)), expected)
    cache = source.cache_after(IDS[:30])
    # those outside a window too: an exported graph has them all
    assert {part.shape[2] for part in cache} == {30}
    assert_same(source.logits_after(cache, IDS[30:]), expected[30:])


def test_noise_is_the_same_model_in_bfloat16(windowed_checkpoint: Callable[[str], Path]) -> None:
    source, expected = of(windowed_checkpoint("gemma2")), whole("gemma2")
    noise = source.noise()
    assert noise is not None
    noise.prepare([DOCUMENT])
    found = noise.logits(0, 0, len(IDS))
    # soft-capped too
    assert np.abs(found).max() <= WINDOWED_CONFIGS["gemma2"]["final_logit_softcapping"]
    assert 1e-3 < np.abs(found - expected).max() / expected.std() < 1


@pytest.mark.parametrize("config", ["gemma2", "gemma3"])
def test_both_sides_write_and_exchange_caches(
    config: str, windowed_folder: Callable[..., Path], windowed_checkpoint: Callable[[str], Path]
) -> None:
    """Greedy text goes past the window, and so do caches."""
    folder = windowed_folder(config)
    manifest = read_manifest(folder)
    found = find_reference(folder, manifest, windowed_checkpoint(config))
    source = open_source(found, folder, manifest)
    with ArtifactRunner(folder, manifest) as runner:
        (written,) = parting(source, runner, [DOCUMENT], 20)
        assert (written.tokens, written.first) == (20, None)
        checks = ask_injection(source, runner, DOCUMENT)()
    assert [check.outcome for check in checks] == ["passed", "passed"], [check.message for check in checks]
    assert all(check.measured is not None and check.measured < SAME for check in checks)


def test_a_config_that_differs_in_its_windows_is_another_model(
    windowed_folder: Callable[..., Path], windowed_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, other = windowed_folder("gemma2"), tmp_path / "other"
    other.mkdir()
    for file in windowed_checkpoint("gemma2").iterdir():
        content = file.read_bytes()
        (other / file.name).write_bytes(content.replace(b'"sliding_window": 9', b'"sliding_window": 8'))
    found = find_reference(folder, read_manifest(folder), other)
    with pytest.raises(MismatchError, match=r"is not what the folder was exported from: config\.json") as error:
        open_source(found, folder, read_manifest(folder))
    assert error.value.exit_code == 3


def test_weights_that_transformers_does_not_find_are_no_reference(
    windowed_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill them in at random and say so on a console that nobody reads."""
    load = transformers.Gemma3ForCausalLM.from_pretrained

    def partly(*arguments: object, **options: object) -> object:
        model, told = load(*arguments, **options)
        return model, {**told, "missing_keys": {"model.norm.weight"}}

    monkeypatch.setattr(transformers.Gemma3ForCausalLM, "from_pretrained", partly)
    with pytest.raises(ReferenceMissingError, match=r"it finds no tensor for \['model\.norm\.weight'\]"):
        of(windowed_checkpoint("gemma3"))
