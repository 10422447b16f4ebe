"""Tokenizer files of a planned folder: made, completed, kept, checked, refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import checkpoints
import jinja2
import pytest
import tokenizers
import transformers
from programs import assert_error, gemma_export
from sentencepieces import field, model, piece, train

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.consumers import tokenizer_files, tokenizer_probe
from gemma_export.errors import ConfigError, GemmaExportError, TokenizerError
from gemma_export.planning import ExportPlan, consumer_files, plan_export
from gemma_export.request import ExportRequest
from gemma_runtime.chat import chat_text
from gemma_runtime.chat_template import folds_system
from gemma_runtime.tokenizer import load_tokenizer

TINY_CONFIG = json.loads((BUILTIN_DIRECTORY / "tokenizer_config.json").read_text(encoding="utf-8"))
ROLES = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}


def checkpoint(directory: Path, files: Mapping[str, bytes | str | None] = {}, **changes: Any) -> Path:
    """A checkpoint with the built-in tokenizer, and other tokenizer files (None: without that file)."""
    checkpoints.write(directory, **{**ROLES, **changes})
    for name, content in files.items():
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


ONLY_MODEL: dict[str, bytes | str | None] = {"tokenizer.json": None, "tokenizer_config.json": None}


def plan(directory: Path, **options: Any) -> ExportPlan:
    return plan_export(ExportRequest(checkpoint=directory, **options))


def written(directory: Path, target: Path, **options: Any) -> Path:
    """The small files that an export writes, each as long as planned."""
    planned = plan(directory, **options)
    sizes = {file.path: file.nbytes for file in planned.files if file.exact}
    target.mkdir()
    for name, content in consumer_files(planned.facts).items():
        (target / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        assert (target / name).stat().st_size == sizes[name]
    return target


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return content


def test_made_from_tokenizer_model_alone(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", ONLY_MODEL)
    folder = written(source, tmp_path / "out", context=48)
    assert (folder / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert {key: value for key, value in config_of(folder).items() if key != "chat_template"} == {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "mask_token": "<mask>",
        "model_max_length": 48,
        "pad_token": "<pad>",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    own = tokenizers.Tokenizer.from_file(str(BUILTIN_DIRECTORY / "tokenizer.json"))
    text = "<start_of_turn>user\n  Grüße \u2581 \0\n\n\n<end_of_turn>"
    assert loaded(text).input_ids == own.encode(text).ids == load_tokenizer(folder).encode(text)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (2, 1, 0, 3072)
    assert plan(source).warnings == ()


def test_the_chat_template_is_the_published_format(tmp_path: Path) -> None:
    folder = written(checkpoint(tmp_path / "source", ONLY_MODEL), tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [
        {"role": "user", "content": "  Knock knock.\n"},
        {"role": "assistant", "content": "Who's there?"},
        {"role": "user", "content": "Gemma."},
    ]
    expected = (
        "<bos><start_of_turn>user\nKnock knock.<end_of_turn>\n<start_of_turn>model\nWho's there?<end_of_turn>\n"
        "<start_of_turn>user\nGemma.<end_of_turn>\n"
    )
    assert loaded.apply_chat_template(turns, tokenize=False) == expected
    prompt = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<start_of_turn>model\n"
    as_model = [turns[0], {"role": "model", "content": "Who's there?"}, turns[2]]
    assert loaded.apply_chat_template(as_model, tokenize=False) == expected
    alone = loaded.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert alone == chat_text(turns[:1], tokenizer=load_tokenizer(folder))
    for wrong, reason in (
        ([{"role": "system", "content": "Be brief."}, turns[0]], "no system role"),
        ([turns[1]], "must alternate"),
        ([turns[0], turns[0]], "must alternate"),
        ([turns[0], turns[1], turns[1]], "must alternate"),
        ([turns[0], {"role": "tool", "content": "x"}], "must alternate"),
    ):
        with pytest.raises(jinja2.TemplateError, match=reason):
            loaded.apply_chat_template(wrong, tokenize=False)


def test_gemma_3_has_a_place_for_a_system_message(tmp_path: Path) -> None:
    known = plan(checkpoint(tmp_path / "source", ONLY_MODEL)).facts
    facts = dataclasses.replace(known, spec=dataclasses.replace(known.spec, family="gemma3"))
    for name, content in consumer_files(facts).items():
        if name.startswith("tokenizer"):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert folds_system(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": [{"type": "text", "text": " Knock "}, {"type": "text", "text": "knock."}]},
        {"role": "assistant", "content": "Who's there?"},
    ]
    expected = (
        "<bos><start_of_turn>user\n Be brief.\n\n\nKnockknock.<end_of_turn>\n"
        "<start_of_turn>model\nWho's there?<end_of_turn>\n"
    )
    assert loaded.apply_chat_template(turns, tokenize=False) == expected
    assert chat_text(turns[:2], tokenizer=load_tokenizer(tmp_path), folds_system=True) == (
        loaded.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    )
    for wrong, reason in (
        ([*turns[:2], turns[1]], "must alternate"),
        ([turns[0], turns[2]], "must alternate"),
        ([{"role": "user", "content": [{"type": "image"}]}], "reads text alone"),
    ):
        with pytest.raises(jinja2.TemplateError, match=reason):
            loaded.apply_chat_template(wrong, tokenize=False)


def test_no_chat_template_without_turn_tokens(tmp_path: Path) -> None:
    files = {**ONLY_MODEL, "tokenizer.model": train(user_defined_symbols=["\n\n"])}
    config = config_of(written(checkpoint(tmp_path / "source", files), tmp_path / "out"))
    assert "chat_template" not in config
    # null: the class would add its own as a token beyond the embedding table
    assert config["mask_token"] is None
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == 2000


def test_another_normalizer_gets_the_generic_class(tmp_path: Path) -> None:
    """transformers' Gemma class would leave out the space before a text."""
    files = {**ONLY_MODEL, "tokenizer.model": train(add_dummy_prefix=True, user_defined_symbols=[])}
    folder = written(checkpoint(tmp_path / "source", files), tmp_path / "out")
    (folder / "config.json").unlink()
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert config_of(folder)["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert loaded("def f").input_ids == load_tokenizer(folder, "sentencepiece").encode("def f")


def test_what_a_checkpoint_says_is_kept(tmp_path: Path) -> None:
    said = {
        "bos_token": {"content": "<bos>", "special": True},
        "add_bos_token": False,
        "model_max_length": 10,
        "x": [1],
    }
    source = checkpoint(tmp_path / "source", {"tokenizer_config.json": json.dumps(said)})
    config = config_of(written(source, tmp_path / "out"))
    assert config == {
        **said,
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "tokenizer_class": "GemmaTokenizer",
    }


def test_a_complete_file_is_copied(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", max_position_embeddings=8192)
    folder = written(source, tmp_path / "out")
    for name in checkpoints.TOKENIZER_FILES:
        assert (folder / name).read_bytes() == (BUILTIN_DIRECTORY / name).read_bytes()


@pytest.mark.parametrize("length", [10**30, 1e30, None, 8192, "long"])
def test_no_more_tokens_than_the_graph_takes(tmp_path: Path, length: Any) -> None:
    said = json.dumps({**TINY_CONFIG, "model_max_length": length})
    source = checkpoint(tmp_path / "source", {"tokenizer_config.json": said})
    assert config_of(written(source, tmp_path / "out")) == {**TINY_CONFIG, "model_max_length": 64}


@pytest.mark.parametrize(
    ("name", "content"),
    [("chat_template.jinja", "{{ 'ä' }}\n"), ("chat_template.json", json.dumps({"chat_template": "{{ 'ä' }}\n"}))],
)
def test_a_template_of_its_own_goes_inline(tmp_path: Path, name: str, content: str) -> None:
    said = {key: value for key, value in TINY_CONFIG.items() if key != "chat_template"}
    source = checkpoint(tmp_path / "source", {"tokenizer_config.json": json.dumps(said), name: content})
    folder = written(source, tmp_path / "out")
    assert config_of(folder)["chat_template"] == "{{ 'ä' }}\n"
    assert (folder / name).read_text(encoding="utf-8") == content
    (source / "tokenizer_config.json").write_text(json.dumps(TINY_CONFIG))
    assert config_of(written(source, tmp_path / "again"))["chat_template"] == TINY_CONFIG["chat_template"]


def test_a_base_model_gets_no_template(tmp_path: Path) -> None:
    said = {key: value for key, value in TINY_CONFIG.items() if key != "chat_template"}
    source = checkpoint(tmp_path / "source", {"tokenizer_config.json": json.dumps(said)})
    assert "chat_template" not in config_of(written(source, tmp_path / "out"))


def test_other_files_are_kept(tmp_path: Path) -> None:
    others: dict[str, bytes | str | None] = {
        "special_tokens_map.json": '{"bos_token": "<bos>"}',
        "added_tokens.json": "{}",
    }
    folder = written(checkpoint(tmp_path / "source", others), tmp_path / "out")
    for name, content in others.items():
        assert (folder / name).read_text(encoding="utf-8") == content


DECODER = {
    "2": {"content": "<bos>", "special": True},
    "2000": {"content": "<|im_start|>", "special": True},
    "2001": {"content": "<|im_end|>", "special": True},
}


@pytest.mark.parametrize("said", [{}, {"added_tokens_decoder": DECODER}], ids=["added_tokens.json", "both"])
def test_tokens_on_top_of_tokenizer_model(tmp_path: Path, said: dict[str, Any]) -> None:
    small = train(user_defined_symbols=["<start_of_turn>"])
    files: dict[str, bytes | str | None] = {
        "tokenizer.json": None,
        "tokenizer.model": small,
        "tokenizer_config.json": json.dumps(said),
        "added_tokens.json": json.dumps({"<|im_start|>": 2000, "<|im_end|>": 2001}),
    }
    folder = written(checkpoint(tmp_path / "source", files), tmp_path / "out")
    made = load_tokenizer(folder, "tokenizers")
    assert [made.find(text) for text in ("<|im_start|>", "<|im_end|>")] == [2000, 2001]
    assert transformers.AutoTokenizer.from_pretrained(folder)("<|im_end|>").input_ids == [2, 2001]


REFUSED = {
    "unigram": (train(model_type="unigram"), "it is a unigram model"),
    "charsmap": (train(normalization_rule_name="nmt_nfkc"), "by a compiled table"),
    "gap": (None, "the added tokens' ids have gaps after 3071"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_a_warning(tmp_path: Path, name: str) -> None:
    content, phrase = REFUSED[name]
    files = dict(ONLY_MODEL)
    if content is None:
        files["added_tokens.json"] = '{"<a>": 3080}'
    else:
        files["tokenizer.model"] = content
    source = checkpoint(tmp_path / "source", files)
    (warning,) = plan(source).warnings
    assert warning.startswith("no tokenizer.json can be made from tokenizer.model: ")
    assert phrase in warning
    folder = written(source, tmp_path / "out")
    assert not (folder / "tokenizer.json").exists()
    assert load_tokenizer(folder).encode("abc")


def test_a_disagreement_is_found_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer_files._convert.cache_clear()
    right = tokenizer_files.tokenizer_json

    def wrong(*arguments: Any, **options: Any) -> bytes:
        content = json.loads(right(*arguments, **options))
        content["model"]["merges"].reverse()
        return json.dumps(content).encode()

    monkeypatch.setattr(tokenizer_files, "tokenizer_json", wrong)
    source = checkpoint(tmp_path / "source", ONLY_MODEL)
    (warning,) = plan(source).warnings
    assert "SentencePiece into" in warning
    assert not (written(source, tmp_path / "out") / "tokenizer.json").exists()
    tokenizer_files._convert.cache_clear()


def test_there_are_a_few_hundred_probes() -> None:
    content = (BUILTIN_DIRECTORY / "tokenizer.model").read_bytes()
    assert 300 < len(list(tokenizer_probe.probes(tokenizer_files.parse_sentencepiece(content)))) < 1000


def failure(directory: Path, kind: type[GemmaExportError]) -> str:
    with pytest.raises(kind) as caught:
        plan(directory)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.message


def test_more_pieces_than_rows(tmp_path: Path) -> None:
    pieces = [piece(f"p{index}", -index) for index in range(3000)]
    source = checkpoint(tmp_path / "source", {**ONLY_MODEL, "tokenizer.model": model(pieces)})
    assert failure(source, ConfigError) == "tokenizer.model has 3260 pieces, the embedding table has 3072 rows"


def test_another_start_of_text(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", ONLY_MODEL, bos_token_id=1, eos_token_id=2)
    expected = "'<bos>' has id 2 in tokenizer.model, bos_token_id is 1 in config.json"
    assert failure(source, ConfigError) == expected
    source = checkpoint(tmp_path / "json", bos_token_id=1, eos_token_id=2)
    assert failure(source, ConfigError) == "bos_token has id 2 in tokenizer.json, bos_token_id is 1 in config.json"


def tiny_json(**changes: Any) -> str:
    content = json.loads((BUILTIN_DIRECTORY / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] |= changes.pop("vocab", {})
    content["added_tokens"] += changes.pop("added", [])
    return json.dumps({**content, **changes})


def test_tokenizer_json_beyond_the_table(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", {"tokenizer.json": tiny_json(vocab={"more": 3072})})
    message = "tokenizer.json has token ids up to 3072, the embedding table has 3072 rows"
    assert failure(source, ConfigError) == message


def test_an_added_token_beyond_the_table_is_a_warning(tmp_path: Path) -> None:
    """As Gemma 3's text models have one for images."""
    added = [{"id": 3072, "content": "<image_soft_token>", "special": True, "normalized": False}]
    source = checkpoint(tmp_path / "source", {"tokenizer.json": tiny_json(added=added)})
    warning = "tokenizer.json: token '<image_soft_token>' has id 3072, the embedding table has 3072 rows"
    assert plan(source).warnings == (warning,)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_another_end_of_text_is_a_warning(tmp_path: Path, file: str) -> None:
    """Fine-tunes for chat end with another token than their base."""
    said = json.dumps({**TINY_CONFIG, "eos_token": "<end_of_turn>", "pad_token": "<eos>"})
    source = checkpoint(tmp_path / "source", {"tokenizer_config.json": said})
    if file == "tokenizer.model":
        (source / "tokenizer.json").unlink()
    assert plan(source).warnings == (
        f"eos_token has id 107 in {file}, 1 in the configuration",
        f"pad_token has id 1 in {file}, 0 in the configuration",
    )
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 107], "pad_token_id": 1}')
    assert plan(source).warnings == ()


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "{}", '{"model": {"vocab": 5}}', '{"model": {"vocab": {"a": "b"}}}', "[" * 100_000, b"\xff\xfe\xfd"],
)
def test_broken_tokenizer_json(tmp_path: Path, content: bytes | str) -> None:
    source = checkpoint(tmp_path / "source", {"tokenizer.json": content})
    assert failure(source, TokenizerError).startswith("tokenizer.json is not a tokenizer: ")


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("added_tokens.json", '{"<a>": "x"}', "added_tokens.json: expected texts with ids"),
        ("added_tokens.json", '{"other": 5}', "token 5 is '<unused0>' in tokenizer.model, 'other' as an added token"),
        ("added_tokens.json", '{"<bos>": 3072}', "added token 3072 is '<bos>', which is empty or a token already"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder: expected texts with ids"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": 1}}', "added_tokens_decoder: expected texts with"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json: expected a JSON object"),
        ("chat_template.json", '{"chat_template": 1}', "chat_template.json: expected a text under chat_template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
    ],
)
def test_broken_files_beside_tokenizer_model(tmp_path: Path, name: str, content: bytes | str, phrase: str) -> None:
    source = checkpoint(tmp_path / "source", {**ONLY_MODEL, name: content})
    assert phrase in failure(source, ConfigError)


def test_a_far_too_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "_MAX_MODEL_BYTES", 1000)
    source = checkpoint(tmp_path / "source", ONLY_MODEL)
    assert failure(source, TokenizerError) == "tokenizer.model: expected at most 1000 bytes, found 44954"


def test_a_tampered_model_ends_with_exit_code_3(tmp_path: Path) -> None:
    content = (BUILTIN_DIRECTORY / "tokenizer.model").read_bytes()
    checkpoint(tmp_path / "source", {**ONLY_MODEL, "tokenizer.model": content[:20_000]})
    result = gemma_export("--checkpoint", "source", "--dry-run", cwd=tmp_path)
    assert_error(result, 3, "tokenizer.model cannot be read: ")


def test_a_charsmap_that_sentencepiece_cannot_load_is_no_reason_to_fail(tmp_path: Path) -> None:
    """It is refused before; gemma-run will say what SentencePiece says."""
    source = checkpoint(
        tmp_path / "source", {**ONLY_MODEL, "tokenizer.model": model([piece("a")], normalizer=field(2, bytes(8)))}
    )
    assert "by a compiled table" in plan(source).warnings[0]


def test_dry_run_knows_the_file(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", ONLY_MODEL)
    result = gemma_export("--checkpoint", "source", "--dry-run", "--json", cwd=tmp_path)
    listed = {entry["path"]: entry for entry in json.loads(result.stdout)["files"]}
    size = (written(source, tmp_path / "out") / "tokenizer.json").stat().st_size
    assert listed["tokenizer.json"] == {"path": "tokenizer.json", "size": size, "exact": True}
    shutil.rmtree(source)
