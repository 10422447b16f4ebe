"""The reference is what transformers computes, whatever the weights are stored as."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import quantised_checkpoints
import torch
import transformers
from decoders import CONFIGS, builtin_reference, reference_logits, reference_model, write_checkpoint
from peft_adapters import ALL, make_adapter, merged_by_peft
from reference_exports import exported

from gemma_export.checkpoint import BUILTIN_DIRECTORY, GENERATOR_VERSION
from gemma_runtime import read_manifest
from gemma_validation.documents import Document
from gemma_validation.errors import MissingPackageError, ReferenceMissingError
from gemma_validation.reference import (
    FoundReference,
    ReferenceSource,
    TransformersReference,
    find_reference,
    open_reference,
    open_source,
)
from gemma_validation.reference import transformers_reference as module
from gemma_validation.reference.packages import quiet_transformers

# the same operations in float32, cut into other pieces
SAME = 1e-5
IDS = tuple(int(token) for token in np.random.default_rng(4).integers(3, 3000, 40))


def document(ids: tuple[int, ...] = IDS) -> Document:
    return Document(slice="code", name="x", token_ids=ids)


def every_logit(source: ReferenceSource, ids: tuple[int, ...] = IDS) -> np.ndarray:
    source.prepare([document(ids)])
    return source.logits(0, 0, len(ids))


def expected(model: transformers.GemmaForCausalLM, ids: tuple[int, ...] = IDS) -> np.ndarray:
    return reference_logits(model, np.array([ids]))[0]


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < SAME * wanted.std()


@pytest.fixture(scope="module")
def tiny(tiny_fp32: Path) -> TransformersReference:
    manifest = read_manifest(tiny_fp32)
    return TransformersReference(open_reference(find_reference(tiny_fp32, manifest), manifest))


def test_logits_are_transformers_own(tiny: TransformersReference) -> None:
    assert (tiny.about.kind, tiny.about.name, tiny.about.dtype) == ("transformers", "built-in", "float32")
    assert set(tiny.about.versions) == {"torch", "transformers"}
    assert tiny.vocab_size == 3072
    assert_same(every_logit(tiny), expected(builtin_reference()))


def test_blocks_of_rows_and_several_documents(tiny: TransformersReference) -> None:
    whole = every_logit(tiny)
    tiny.prepare([document(IDS[:7]), document(IDS)])
    parts = [tiny.logits(1, first, min(first + 9, len(IDS))) for first in range(0, len(IDS), 9)]
    assert_same(np.concatenate(parts), whole)
    assert_same(tiny.logits(0, 2, 5), whole[2:5])


def test_long_documents_run_in_chunks(tiny: TransformersReference, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = every_logit(tiny)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert_same(every_logit(tiny), whole)


def test_noise_is_the_same_model_in_bfloat16(tiny: TransformersReference) -> None:
    noise = tiny.noise()
    assert noise is not None
    assert noise.about.dtype == "bfloat16"
    assert noise.noise() is None
    whole = every_logit(tiny)
    distance = np.abs(every_logit(noise) - whole).max() / whole.std()
    assert 1e-3 < distance < 0.3


def test_a_cache_goes_in_and_out(tiny: TransformersReference) -> None:
    cache = tiny.cache_after(IDS[:30])
    assert len(cache) == 8
    assert cache[0].shape == (1, 2, 30, 64)
    assert_same(tiny.logits_after(cache, IDS[30:]), every_logit(tiny)[30:])
    exchanged = tuple(cache[index ^ 1] for index in range(8))
    assert np.abs(tiny.logits_after(exchanged, IDS[30:]) - every_logit(tiny)[30:]).max() > 0.1


@pytest.mark.parametrize(
    "layout",
    [
        quantised_checkpoints.Layout(desc_act=True),
        quantised_checkpoints.Layout(method="awq"),
    ],
)
def test_quantised_checkpoints_are_multiplied_out(tmp_path: Path, layout: quantised_checkpoints.Layout) -> None:
    made = quantised_checkpoints.write(tmp_path / "base", layout)
    export = exported(tmp_path, made.directory, precision="fp32")
    source = open_source(find_reference(export.folder, export.manifest), export.folder, export.manifest)
    assert_same(every_logit(source), expected(made.model))


@pytest.mark.parametrize(
    "arguments",
    [{"target_modules": ALL, "use_dora": True}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
)
def test_adapters_are_merged(tmp_path: Path, arguments: dict[str, Any]) -> None:
    base = reference_model(CONFIGS["gqa"])
    checkpoint = write_checkpoint(base, tmp_path / "base", CONFIGS["gqa"], BUILTIN_DIRECTORY)
    lora = make_adapter(base, tmp_path / "lora", arguments)
    export = exported(tmp_path, checkpoint, adapter=str(lora))
    source = open_source(find_reference(export.folder, export.manifest), export.folder, export.manifest)
    wanted = expected(merged_by_peft(base, lora))
    assert np.abs(every_logit(source) - wanted).max() < 10 * SAME * wanted.std()
    assert np.abs(wanted - expected(base)).max() > 0.1 * wanted.std()


def test_synthetic_weights(local: Any, tmp_path: Path) -> None:
    export = exported(tmp_path, shutil.copytree(local.checkpoint, tmp_path / "base"), synthetic_seed=5)
    assert export.manifest.source.generator_version == GENERATOR_VERSION
    source = open_source(find_reference(export.folder, export.manifest), export.folder, export.manifest)
    opened = open_reference(find_reference(export.folder, export.manifest), export.manifest)
    assert isinstance(source, TransformersReference)
    for name, parameter in source.model.named_parameters():
        assert torch.equal(parameter, opened.weight(name).tensor()), name
    assert source.noise() is not None


def test_an_untied_head(tmp_path: Path) -> None:
    base = reference_model(CONFIGS["untied"])
    checkpoint = write_checkpoint(base, tmp_path / "base", CONFIGS["untied"], BUILTIN_DIRECTORY)
    export = exported(tmp_path, checkpoint)
    source = open_source(find_reference(export.folder, export.manifest), export.folder, export.manifest)
    assert_same(every_logit(source), expected(base))


@pytest.fixture
def talkative() -> Iterator[None]:
    """transformers as it is for a user, and more so."""
    logging = transformers.utils.logging
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    yield
    logging.set_verbosity_error()


@pytest.mark.usefixtures("talkative")
def test_nothing_is_printed(local: Any, capfd: pytest.CaptureFixture[str]) -> None:
    source = open_source(find_reference(local.folder, local.manifest), local.folder, local.manifest)
    every_logit(source)
    source.exchange(IDS[:4], source.cache_after(IDS[:2]))
    source.exchanged()
    noise = source.noise()
    assert noise is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("talkative")
def test_transformers_is_as_loud_afterwards_as_before() -> None:
    logging = transformers.utils.logging
    with quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == logging.INFO
    assert logging.is_progress_bar_enabled()


def test_missing_packages(tiny: TransformersReference, monkeypatch: pytest.MonkeyPatch, tiny_fp32: Path) -> None:
    manifest = read_manifest(tiny_fp32)
    opened = open_reference(find_reference(tiny_fp32, manifest), manifest)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match="computed by PyTorch and transformers") as error:
        TransformersReference(opened)
    assert "gemma-export[validate]" in error.value.hint
    assert error.value.exit_code == 4


def test_damaged_weights(local: Any, tmp_path: Path) -> None:
    weights = checkpoints.tensors(checkpoints.CONFIG)
    del weights["model.norm.weight"]
    broken = checkpoints.write(tmp_path / "base", weights=weights)
    found = FoundReference(kind="checkpoint", path=broken, name="base")
    with pytest.raises(ReferenceMissingError, match=r"reference base cannot be used: .*model.norm.weight"):
        open_reference(found, local.manifest)


def test_weights_that_transformers_cannot_load(local: Any, tmp_path: Path) -> None:
    opened = open_reference(find_reference(local.folder, local.manifest), local.manifest)
    empty = tmp_path / "gone"
    empty.mkdir()
    with pytest.raises(ReferenceMissingError, match="cannot load base: "):
        TransformersReference(dataclasses.replace(opened, directory=empty))
    not_finite = quantised_checkpoints.write(
        tmp_path / "quantised",
        quantised_checkpoints.Layout(),
        change=lambda tensors: tensors["model.layers.0.mlp.up_proj.scales"].fill(np.nan),
    )
    found = FoundReference(kind="checkpoint", path=not_finite.directory, name="quantised")
    with pytest.raises(ReferenceMissingError, match=r"cannot load quantised: tensor model.layers.0.mlp.up_proj.scales"):
        TransformersReference(open_reference(found, local.manifest))


def test_closing_lets_go_of_the_model(local: Any) -> None:
    source = open_source(find_reference(local.folder, local.manifest), local.folder, local.manifest)
    assert isinstance(source, TransformersReference)
    source.close()
    assert source.model is None
