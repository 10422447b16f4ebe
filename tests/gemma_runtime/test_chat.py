"""Turns equal the Jinja template's, token for token; what the format cannot hold is refused by the message's index."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import transformers

from gemma_export.consumers.chat_template import chat_template
from gemma_runtime.chat import Message, chat_ids, chat_text, read_messages, turn_ids
from gemma_runtime.chat_template import folds_system
from gemma_runtime.errors import ManifestError, PromptError
from gemma_runtime.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).parents[2] / "gemma_export" / "checkpoint" / "tiny"
FILES = {"tokenizers": "tokenizer.json", "sentencepiece": "tokenizer.model"}
GEMMA_CHAT_TEMPLATE, FOLDING_TEMPLATE = chat_template("gemma"), chat_template("gemma3")
WORDS = [
    "Hi",
    "def f(x):",
    "\n",
    "\n\n",
    "  ",
    "\t",
    "日本",
    "e\u0301",
    "\N{GRINNING FACE}",
    "'",
    '"',
    "{{ x }}",
    "{% if %}",
]
WORDS += ["\u00a0", "\u2028", "\x1c", "\ufeff", "\u200b", "\u2581", "\r\n", "\0", "\\n", "<b>", "model\n", "user\n"]
SPECIAL = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<|fim_prefix|>", "<unk>", "<pad>", "<end_of_turn>\n"]


@pytest.fixture(scope="module", params=FILES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(TINY, request.param)


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers.AutoTokenizer.from_pretrained(TINY)


def content(random_: random.Random, words: list[str]) -> str:
    return "".join(random_.choices(words, k=random_.randint(0, 8))) + random_.choice(["x", "?", "x \n ", "ü\u00a0"])


def conversation(random_: random.Random, words: list[str]) -> list[dict[str, str]]:
    roles = ["user", random_.choice(["model", "assistant"])]
    return [{"role": roles[turn % 2], "content": content(random_, words)} for turn in range(random_.randint(1, 6))]


def rendered(reference: Any, messages: list[dict[str, str]], template: str, *, prompt: bool) -> tuple[str, list[int]]:
    options = {"chat_template": template, "add_generation_prompt": prompt}
    ids = reference.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return reference.apply_chat_template(messages, tokenize=False, **options), ids


def test_a_thousand_conversations_equal_the_template(tokenizer: Tokenizer, reference: Any) -> None:
    random_ = random.Random(5)
    trimmed = special = 0
    for number in range(1000):
        messages = conversation(random_, WORDS + SPECIAL)
        prompt = number % 3 != 0
        text, ids = rendered(reference, messages, GEMMA_CHAT_TEMPLATE, prompt=prompt)
        assert chat_text(messages, tokenizer=tokenizer, add_generation_prompt=prompt) == text
        assert chat_ids(messages, tokenizer=tokenizer, add_generation_prompt=prompt) == ids
        trimmed += any(each["content"] != each["content"].strip() for each in messages)
        special += any(name in each["content"] for each in messages for name in SPECIAL)
    assert trimmed > 500
    assert special > 500


def test_the_folders_own_template_says_the_same(tokenizer: Tokenizer, reference: Any) -> None:
    random_ = random.Random(6)
    own = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    for _ in range(50):
        messages = conversation(random_, WORDS)
        assert chat_ids(messages, tokenizer=tokenizer) == rendered(reference, messages, own, prompt=True)[1]


def test_a_system_message_is_folded_as_the_template_folds_it(tokenizer: Tokenizer, reference: Any) -> None:
    random_ = random.Random(7)
    for _ in range(200):
        messages = [{"role": "system", "content": content(random_, WORDS)}, *conversation(random_, WORDS)]
        text, ids = rendered(reference, messages, FOLDING_TEMPLATE, prompt=True)
        assert chat_text(messages, tokenizer=tokenizer, folds_system=True) == text
        assert chat_ids(messages, tokenizer=tokenizer, folds_system=True) == ids
        assert chat_ids(messages, tokenizer=tokenizer, folds_system=True, escape=True) == ids


def test_parts_of_text_are_joined_as_the_template_joins_them(tokenizer: Tokenizer, reference: Any) -> None:
    random_ = random.Random(11)

    def parts(count: int) -> list[dict[str, str]]:
        return [{"type": "text", "text": content(random_, WORDS)} for _ in range(count)]

    for _ in range(200):
        turns = [{**each, "content": parts(random_.randint(1, 3))} for each in conversation(random_, WORDS)]
        messages: list[Any] = [{"role": "system", "content": parts(1)}, *turns]
        text, ids = rendered(reference, messages, FOLDING_TEMPLATE, prompt=True)
        assert chat_text(messages, tokenizer=tokenizer, folds_system=True) == text
        assert chat_ids(messages, tokenizer=tokenizer, folds_system=True) == ids


def test_escaped_contents_hold_no_special_token(tokenizer: Tokenizer) -> None:
    random_ = random.Random(8)
    special = {token for name in SPECIAL if (token := tokenizer.find(name.strip())) is not None}
    for _ in range(300):
        messages = conversation(random_, WORDS + SPECIAL)
        ids = chat_ids(messages, tokenizer=tokenizer, escape=True)
        # BOS, two a turn, the start of the model's
        assert sum(token in special for token in ids) == 2 + 2 * len(messages)
        # what is written can still be read
        shown = chat_text(messages, tokenizer=tokenizer)
        for each in messages:
            assert each["content"].strip() in shown
            assert each["content"].strip().replace("\u2581", " ") in tokenizer.decode(ids)


def test_escaping_changes_nothing_where_there_is_nothing_to_escape(tokenizer: Tokenizer) -> None:
    random_ = random.Random(9)
    for _ in range(300):
        messages = conversation(random_, WORDS)
        assert chat_ids(messages, tokenizer=tokenizer, escape=True) == chat_ids(messages, tokenizer=tokenizer)


@pytest.mark.parametrize("escape", [False, True])
def test_a_longer_conversation_starts_with_the_shorter(tokenizer: Tokenizer, escape: bool) -> None:
    random_ = random.Random(10)
    for _ in range(200):
        messages = conversation(random_, WORDS + SPECIAL)
        whole = chat_ids(messages, tokenizer=tokenizer, escape=escape)
        for count in range(1, len(messages), 2):
            part = chat_ids(messages[:count], tokenizer=tokenizer, escape=escape)
            assert whole[: len(part)] == part


@pytest.mark.parametrize("escape", [False, True])
def test_turns_appended_one_by_one_are_the_whole(tokenizer: Tokenizer, escape: bool) -> None:
    """Where the model's tokens are those of its text, a session holds what `chat_ids` gives."""
    messages = [
        Message(role="user", content=" Hi <eos>\n"),
        Message(role="model", content="Hello."),
        Message(role="user", content="And?"),
    ]
    session = turn_ids(tokenizer, messages[0], first=True, escape=escape)
    assert session[0] == tokenizer.bos_id
    session += tokenizer.encode_plain("Hello.")
    session += turn_ids(tokenizer, "And?", first=False, escape=escape)
    assert session == chat_ids(messages, tokenizer=tokenizer, escape=escape)


def test_an_answer_of_nothing_keeps_the_conversation(tokenizer: Tokenizer, reference: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "model", "content": " "}, {"role": "user", "content": "b"}]
    text, ids = rendered(reference, messages, GEMMA_CHAT_TEMPLATE, prompt=True)
    assert chat_text(messages, tokenizer=tokenizer) == text
    assert chat_ids(messages, tokenizer=tokenizer) == ids
    assert turn_ids(tokenizer, "a", first=True) + turn_ids(tokenizer, "b", first=False) == ids


def test_one_prompt(tokenizer: Tokenizer) -> None:
    text = chat_text([Message(role="user", content=" Hi\n")], tokenizer=tokenizer)
    assert text == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"


USER, MODEL = {"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no turn of the user"),
        ([MODEL], r"messages\[0\]: a turn of the user is due, found the role 'model'"),
        ([USER, USER], r"messages\[1\]: a turn of the model is due, found the role 'user'"),
        ([USER, MODEL, {"role": "assistant", "content": "x"}], r"messages\[2\]: a turn of the user is due"),
        ([USER, MODEL, {"role": "system", "content": "x"}], r"messages\[2\]: a turn of the user is due.*'system'"),
        ([{"role": "system", "content": "x"}, USER], r"messages\[0\]: this model has no system role"),
        ([{"role": "user", "content": " \n"}], r"messages\[0\]: the content is empty"),
        ([USER, MODEL, {"role": "user", "content": ""}], r"messages\[2\]: the content is empty"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\]: unknown role 'tool'"),
        ([{"content": "x"}], r"messages\[0\]: unknown role None"),
        ([USER, {"role": "model"}], r"messages\[1\]: the content must be text, found NoneType"),
        ([{"role": "user", "content": {"text": "x"}}], r"messages\[0\]: the content must be text, found dict"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]: part 0 of the content must be text, found str"),
        ([{"role": "user", "content": []}], r"messages\[0\]: the content is empty"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "url": "y"}]}],
            r"messages\[0\]: part 1 of the content must be text, found 'image'",
        ),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"part 0 of the content must be text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "cache": {"ttl": 1}}]}],
            r"messages\[0\]: part 0 of the content: unknown key 'cache'",
        ),
        ([USER, "Hello"], r"messages\[1\] must be a Message or a mapping, found str"),
        ([{**USER, "tool_calls": [1]}], r"messages\[0\]: unknown key 'tool_calls'"),
        ([Message(role="user", content="\udcff")], r"messages\[0\]: not valid UTF-8 at character 0"),
    ],
)
@pytest.mark.parametrize("escape", [False, True])
def test_impossible_conversations(tokenizer: Tokenizer, messages: Any, reason: str, escape: bool) -> None:
    with pytest.raises(PromptError, match=reason) as caught:
        chat_ids(messages, tokenizer=tokenizer, escape=escape)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "system", "content": "x"}], "no turn of the user"),
        ([{"role": "system", "content": " "}, USER], r"messages\[0\]: the content is empty"),
        ([{"role": "system", "content": "x"}, MODEL], r"messages\[1\]: a turn of the user is due"),
        (
            [{"role": "system", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}, USER],
            r"messages\[0\]: a system message has one part, found 2",
        ),
        ([{"role": "system", "content": "x"}, {"role": "system", "content": "x"}, USER], r"messages\[1\]: a turn of"),
    ],
)
def test_impossible_conversations_with_a_system(tokenizer: Tokenizer, messages: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        chat_text(messages, tokenizer=tokenizer, folds_system=True)


def test_keys_that_say_nothing_are_no_error() -> None:
    assert read_messages([{**MODEL, "role": "assistant", "refusal": None}]) == (Message(role="model", content="Hello"),)


def test_no_chat_model(tmp_path: Path) -> None:
    found = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    text = json.dumps(found).replace("<end_of_turn>", "<unused100>")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match="this tokenizer has no <end_of_turn>"):
        chat_ids([USER], tokenizer=load_tokenizer(tmp_path))


def test_whether_a_system_message_is_folded(tmp_path: Path) -> None:
    assert not folds_system(TINY)
    assert not folds_system(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": FOLDING_TEMPLATE}), encoding="utf-8")
    assert folds_system(tmp_path)
    assert folds_system(tmp_path, listed={"tokenizer_config.json"})
    assert not folds_system(tmp_path, listed={"tokenizer.json"})
    named = [{"name": "tools", "template": FOLDING_TEMPLATE}, {"name": "default", "template": GEMMA_CHAT_TEMPLATE}]
    config.write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    assert not folds_system(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(FOLDING_TEMPLATE, encoding="utf-8")
    assert folds_system(tmp_path)
    for broken in ("{", "[]"):
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        config.write_text(broken, encoding="utf-8")
        with pytest.raises(ManifestError, match=r"tokenizer_config.json cannot be read"):
            folds_system(tmp_path)
