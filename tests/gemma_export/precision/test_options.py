"""From options and a precision file to a checked scheme; every refusal with its message and exit code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from gemma_export.errors import ConfigError, GemmaExportError, MissingResourceError, UsageError
from gemma_export.precision import (
    PRECISIONS,
    SCHEMES,
    WeightOptions,
    check_packing,
    check_rules,
    quantised,
    undivided_blocks,
    weight_scheme,
)
from gemma_export.precision.block_format import BlockFormat
from gemma_export.precision.scheme import Rule, WeightScheme

_DOWN = "model.layers.3.mlp.down_proj.weight"
_TABLE = "model.embed_tokens.weight"
_QKV = "model.layers.3.self_attn.qkv_proj.weight"
_STORED = (
    (_TABLE, (99, 64)),
    (_QKV, (96, 64)),
    (_DOWN, (64, 128)),
    ("model.norm.weight", (64,)),
    ("cos_cache", (8, 16)),
)


def _file(folder: Path, text: str) -> Path:
    path = folder / "precision.toml"
    path.write_text(text)
    return path


def _scheme(folder: Path, text: str, **options: object) -> WeightScheme:
    scheme = weight_scheme(WeightOptions(config=_file(folder, text), **options))  # type: ignore[arg-type]
    assert scheme is not None
    return scheme


def test_no_scheme_means_floating_point() -> None:
    assert weight_scheme(WeightOptions()) is None


def test_options_change_a_scheme() -> None:
    found = weight_scheme(
        WeightOptions(scheme="int4", block_size=32, symmetric=True, quantiser="rtn", embedding_bits=8)
    )
    assert found is not None
    assert found.format_of(_DOWN, (64, 128)) == BlockFormat(bits=4, block_size=32, symmetric=True)
    assert found.format_of(_TABLE, (99, 64)) == BlockFormat(bits=8, block_size=32, symmetric=True)
    assert found.format_of("lm_head.weight", (99, 64)) == BlockFormat(bits=8, block_size=32, symmetric=True)
    assert (found.quantiser_of(_DOWN), found.suffix) == ("rtn", "_q4")


@pytest.mark.parametrize(("name", "shape"), [("model.norm.weight", (64,)), ("cos_cache", (8, 16))])
def test_only_matrices_are_quantised(name: str, shape: tuple[int, ...]) -> None:
    assert SCHEMES["int4"].format_of(name, shape) is None
    assert quantised(PRECISIONS["fp16"], SCHEMES["int4"]).stored(name, shape) == (
        (name, 2 * 64 if shape == (64,) else 256),
    )


def test_a_table_with_an_odd_number_of_blocks_has_no_zero_points() -> None:
    """Its rows' packed zero points would end in half a byte, which kernels and releases read differently."""
    scheme = SCHEMES["int4"]
    layouts = {columns: scheme.format_of(_TABLE, (99, columns)) for columns in (128, 129, 256, 640)}
    assert {columns: layout.symmetric for columns, layout in layouts.items() if layout} == {
        128: True,
        129: False,
        256: False,
        640: True,
    }
    eight = SCHEMES["int8"]
    assert not weight_scheme(WeightOptions(scheme="int8", symmetric=False)).format_of(_TABLE, (99, 128)).symmetric  # type: ignore[union-attr]
    assert eight.format_of(_DOWN, (99, 128)) == BlockFormat(bits=8, block_size=128, symmetric=True)


@pytest.mark.parametrize(
    ("scheme", "activations", "name", "suffix"),
    [
        ("int4", "fp32", "int4", "_q4"),
        ("int4", "fp16", "int4-fp16", "_q4f16"),
        ("int8", "fp32", "int8", "_int8"),
        ("int8", "fp16", "int8-fp16", "_int8f16"),
    ],
)
def test_composed_names(scheme: str, activations: str, name: str, suffix: str) -> None:
    precision = quantised(PRECISIONS[activations], SCHEMES[scheme])
    assert (precision.name, precision.suffix, precision.weight_dtype) == (name, suffix, scheme)
    assert precision.activation_dtype == PRECISIONS[activations].activation_dtype


def test_a_precision_file(tmp_path: Path) -> None:
    text = f"""
        scheme = "int4"
        symmetric = true
        [[rule]]
        match = "*.down_proj.weight"
        bits = 8
        block_size = 32
        [[rule]]
        match = "{_DOWN}"
        symmetric = false
        quantizer = "rtn"
        [[rule]]
        match = "*.embed_tokens.weight"
        bits = "float"
    """
    scheme = _scheme(tmp_path, text)
    check_rules(scheme, _STORED)
    assert scheme.format_of(_DOWN, (64, 128)) == BlockFormat(bits=8, block_size=32, symmetric=False)
    other = _DOWN.replace("3", "4")
    assert scheme.format_of(other, (64, 128)) == BlockFormat(bits=8, block_size=32, symmetric=True)
    assert scheme.format_of(_TABLE, (99, 64)) is None
    assert (scheme.quantiser_of(_DOWN), scheme.quantiser_of(other)) == ("rtn", "search")
    assert scheme.options()["rules"][1] == {"match": _DOWN, "symmetric": False, "quantizer": "rtn"}
    assert scheme.options()["rules"][2] == {"match": "*.embed_tokens.weight", "bits": "float"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("scheme = int4", "expected TOML"),
        ("\x00", "expected TOML"),
        ('sheme = "int4"', "'sheme'"),
        ('block_size = "64"', "expected block_size as int, found '64'"),
        ("symmetric = 1", "expected symmetric as bool"),
        ("rule = 3", r"expected \[\[rule\]\] tables"),
        ("[[rule]]\nbits = 8", "expected match and at least one thing to change"),
        ('[[rule]]\nmatch = "*"', "expected match and at least one thing to change, found match"),
        ('[[rule]]\nmatch = "*"\nbits = 5', r'rule 1: expected bits of 4, 8 or "float", found 5'),
        ('[[rule]]\nmatch = "*"\nbits = true', "found True"),
        ('[[rule]]\nmatch = "*"\nbits = 4.0', r"found 4\.0"),
        ('[[rule]]\nmatch = "*"\nbits = 4\ngroup = 32', "rule 1: expected keys of match, .*'group'"),
    ],
)
def test_files_that_are_none(text: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        _scheme(tmp_path, text, scheme="int4")
    assert caught.value.exit_code == 3


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"none\.toml cannot be read"):
        weight_scheme(WeightOptions(scheme="int4", config=tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 32}, "--block-size is about quantised weights"),
        ({"symmetric": False}, "--symmetric or --asymmetric is about quantised weights"),
        ({"scheme": "int4", "block_size": 48}, "unknown block size 48, expected one of: 32, 64, 128, 256"),
        ({"scheme": "int4", "embedding_bits": 6}, "unknown embedding bits 6, expected one of: 4, 8"),
        ({"scheme": "int4", "quantiser": "gptk"}, "unknown quantizer 'gptk', expected one of: rtn, search"),
        ({"scheme": "int3"}, "unknown scheme 'int3', expected one of: int4, int8"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        weight_scheme(WeightOptions(**options))  # type: ignore[arg-type]
    assert caught.value.message.startswith(message)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ['[[rule]]\nmatch = "*"\nblock_size = 100', '[[rule]]\nmatch = "*"\nquantizer = "none"']
)
def test_rules_are_checked_too(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown"):
        _scheme(tmp_path, text, scheme="int4")


def test_rules_need_a_scheme(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--precision-config is about quantised weights"):
        weight_scheme(WeightOptions(config=_file(tmp_path, '[[rule]]\nmatch = "*"\nbits = 8')))


def test_flag_and_file_must_agree(tmp_path: Path) -> None:
    assert _scheme(tmp_path, "block_size = 64", scheme="int4", block_size=64).block_size == 64
    with pytest.raises(UsageError, match=r"--block-size contradicts .*: block_size is 64 there, 32 here"):
        _scheme(tmp_path, "block_size = 64", scheme="int4", block_size=32)
    with pytest.raises(UsageError, match="--int4, --int8 or --int8-dynamic contradicts"):
        _scheme(tmp_path, 'scheme = "int8"', scheme="int4")


def test_rules_of_a_dynamic_scheme_take_matrices_out_of_it(tmp_path: Path) -> None:
    rules = (
        '[[rule]]\nmatch = "*.down_proj.weight"\nblock_size = 32\n[[rule]]\nmatch = "*.o_proj.weight"\nbits = "float"'
    )
    scheme = _scheme(tmp_path, rules, scheme="int8-dynamic")
    names = ("a.up_proj.weight", "a.down_proj.weight", "a.o_proj.weight", "lm_head.weight")
    layouts = [scheme.format_of(name, (64, 64)) for name in names]
    assert [type(layout).__name__ for layout in layouts] == ["RowFormat", "BlockFormat", "NoneType", "BlockFormat"]
    tables = _scheme(tmp_path, '[[rule]]\nmatch = "*embed_tokens*"\nsymmetric = false', scheme="int8-dynamic")
    layout = tables.format_of("model.embed_tokens.weight", (64, 64))
    assert layout is not None
    assert not layout.symmetric
    with pytest.raises(UsageError, match=r"rule for '\*' changes nothing with --int8-dynamic"):
        _scheme(tmp_path, '[[rule]]\nmatch = "*"\nbits = 8', scheme="int8-dynamic")


@pytest.mark.parametrize(
    ("text", "embedding_bits", "bits"),
    [
        ('[[rule]]\nmatch = "model.embed_tokens.weight"\nbits = 8', 4, 8),
        ('[[rule]]\nmatch = "*embed*"\nbits = 4\n[[rule]]\nmatch = "*embed*"\nbits = 8', 8, 8),
        ('[[rule]]\nmatch = "*embed*"\nbits = "float"\n[[rule]]\nmatch = "*embed*"\nbits = 8', 8, 8),
    ],
)
def test_a_dynamic_schemes_table_has_bits_of_its_own(text: str, embedding_bits: int, bits: int, tmp_path: Path) -> None:
    scheme = _scheme(tmp_path, text, scheme="int8-dynamic", embedding_bits=embedding_bits)
    layout = scheme.format_of("model.embed_tokens.weight", (64, 64))
    assert isinstance(layout, BlockFormat)
    assert layout.bits == bits


@pytest.mark.parametrize("embedding_bits", [None, 8])
def test_a_rule_that_repeats_the_tables_bits_changes_nothing(embedding_bits: int | None, tmp_path: Path) -> None:
    text = '[[rule]]\nmatch = "model.embed_tokens.weight"\nbits = 8'
    with pytest.raises(UsageError, match="changes nothing with --int8-dynamic") as caught:
        _scheme(tmp_path, text, scheme="int8-dynamic", embedding_bits=embedding_bits)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("block_size", "expected"),
    [
        (256, "blocks of 256 do not divide the 1152 columns of {qkv} and 1 more: .*; --block-size 128 divides all$"),
        (128, None),
        (32, None),
    ],
)
def test_blocks_that_openvino_does_not_load(block_size: int, expected: str | None) -> None:
    """Those of gemma3-1b; the other format pads."""
    stored = ((_QKV, (1536, 1152)), (_DOWN, (1152, 6912)), ("model.norm.weight", (1152,)), (_TABLE, (4096, 1152)))
    scheme = weight_scheme(WeightOptions(scheme="int4", block_size=block_size))
    assert scheme is not None
    found = undivided_blocks(dataclasses.replace(scheme, format="qdq"), stored)
    if expected is None:
        assert found == ()
    else:
        assert re.match(expected.format(qkv=_QKV), found[0])
        assert "OpenVINO does not load it" in found[0]
    assert undivided_blocks(dataclasses.replace(scheme, format="nbits"), stored) == ()


def test_no_block_size_is_named_where_none_helps(tmp_path: Path) -> None:
    """Rows of 48, which no block divides; blocks that a rule asks for, or a checkpoint has."""
    (narrow,) = undivided_blocks(_qdq(_scheme(tmp_path, "", scheme="int4")), ((_DOWN, (64, 48)),))
    rule = f'[[rule]]\nmatch = "{_DOWN}"\nblock_size = 256'
    (ruled,) = undivided_blocks(_qdq(_scheme(tmp_path, rule, scheme="int4")), ((_DOWN, (64, 128)),))
    own = dataclasses.replace(_scheme(tmp_path, "", scheme="int4"), checkpoint="GPTQ")
    (stored,) = undivided_blocks(_qdq(own), ((_DOWN, (64, 96)),))
    for warning in (narrow, ruled, stored):
        assert warning.endswith("OpenVINO does not load it")


def _qdq(scheme: WeightScheme) -> WeightScheme:
    return dataclasses.replace(scheme, format="qdq")


def test_activation_aware_is_an_option_of_the_file_too(tmp_path: Path) -> None:
    assert not _scheme(tmp_path, "", scheme="int4").calibrates("local")
    for source in ("synthetic", "local"):
        assert _scheme(tmp_path, "activation_aware = true", scheme="int4").calibrates(source)
        assert _scheme(tmp_path, "", scheme="int8", activation_aware=True).calibrates(source)
    with pytest.raises(UsageError, match=r"--activation-aware contradicts .*: activation_aware is False there"):
        _scheme(tmp_path, "activation_aware = false", scheme="int4", activation_aware=True)


@pytest.mark.parametrize(
    ("source", "smooths"), [("synthetic", False), ("builtin", True), ("local", True), ("hub", True)]
)
def test_random_weights_are_not_calibrated_unless_asked(source: str, smooths: bool, tmp_path: Path) -> None:
    assert _scheme(tmp_path, "", scheme="int8-dynamic").calibrates(source) == smooths
    assert _scheme(tmp_path, "smoothing = true", scheme="int8-dynamic").calibrates(source)
    assert not _scheme(tmp_path, "smoothing = false", scheme="int8-dynamic").calibrates(source)
    assert not _scheme(tmp_path, "", scheme="int8").calibrates(source)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("*.layers.4.*", "A name here is"),
        ("model.norm.weight", "A name here is"),
        ("*.self_attn.q_proj.weight", "qkv_proj.weight"),
    ],
)
def test_a_pattern_that_matches_nothing(pattern: str, hint: str) -> None:
    scheme = dataclasses.replace(SCHEMES["int4"], rules=(Rule(match="*", bits=8), Rule(match=pattern, bits=8)))
    with pytest.raises(GemmaExportError, match="matches no matrix of this model") as caught:
        check_rules(scheme, _STORED)
    assert pattern in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_one_file_names_packed_and_unpacked_projections() -> None:
    """Targets that store query, key and value apart take the rules that others take, and their own names besides."""
    parts = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    stored = [(name, (64, 128)) for name in (*parts, _DOWN)]
    scheme = dataclasses.replace(SCHEMES["int4"], rules=(Rule(match="*.0.self_attn.qkv_proj.weight", bits=8),))
    check_rules(scheme, stored)
    assert [layout.bits for name, shape in stored if (layout := scheme.format_of(name, shape))] == [8, 8, 8, 4]
    one = dataclasses.replace(SCHEMES["int4"], rules=(Rule(match="*.0.self_attn.k_proj.weight", bits=8),))
    check_rules(one, stored)
    assert [layout.bits for name, shape in stored if (layout := one.format_of(name, shape))] == [4, 8, 4, 4]
    none = dataclasses.replace(SCHEMES["int4"], rules=(Rule(match="*.9.self_attn.k_proj.weight", bits=8),))
    with pytest.raises(UsageError) as caught:
        check_rules(none, stored)
    assert caught.value.hint.startswith("A name here is model.layers.0.self_attn.")


def test_the_format_only_moves_the_numbers(tmp_path: Path) -> None:
    scheme = _scheme(tmp_path, 'scheme = "int4"\nformat = "qdq"')
    layout = scheme.format_of(_DOWN, (64, 128))
    plain = SCHEMES["int4"].format_of(_DOWN, (64, 128))
    assert layout is not None
    assert plain is not None
    assert (layout.transposed, plain.transposed) == (True, False)
    # two blocks a row: MatMulNBits pads an odd number of zero points to a whole byte
    assert layout.stored("w", (64, 256), 2) == plain.stored("w", (64, 256), 2)
    assert scheme.options()["format"] == "qdq"


def test_two_tokens_share_a_byte_of_a_standard_table() -> None:
    stored = ((_TABLE, (99, 64)),)
    scheme = weight_scheme(WeightOptions(scheme="int4", format="qdq"))
    assert scheme is not None
    with pytest.raises(UsageError, match=r"packs two tokens .* this vocabulary has 99") as caught:
        check_packing(scheme, stored)
    assert (caught.value.exit_code, caught.value.hint) == (2, "Add --embedding-bits 8.")
    eight = weight_scheme(WeightOptions(scheme="int4", format="qdq", embedding_bits=8))
    assert eight is not None
    check_packing(eight, stored)
    check_packing(SCHEMES["int4"], stored)
