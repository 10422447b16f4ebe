"""The options of gemma-run: each reaches the engine, what does not go together is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from json_schemas import validated
from programs import assert_error, gemma_run

from gemma_runtime.cli.command import cli
from gemma_runtime.cli.options import unescaped
from gemma_runtime.errors import GemmaRuntimeError
from gemma_runtime.tokenizer import load_tokenizer

PROMPT = "def read_file(path):\n"
CODE = "import sys\r\n\r\n\r\ndef add(a, b):\r\n    return \r\n\r\n\r\nprint(add(1, 2))  # <eos>\r\n"


def answered(folder: Path, *arguments: object) -> dict[str, Any]:
    """What the command prints as JSON; in this process, because a new one takes a second to start."""
    result = CliRunner().invoke(cli, [str(folder), *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return validated(result.stdout, "gemma_runtime/generation")


def piped(folder: Path, content: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gemma_runtime", str(folder), *arguments]
    return subprocess.run(command, input=content, capture_output=True, check=False, timeout=120)


def test_every_option_has_one_place_in_help() -> None:
    text = gemma_run("--help").stdout
    sections = re.split(r"^(\w[\w ]*):\n", text, flags=re.MULTILINE)[1:]
    assert sections[::2] == ["Generation", "Sampling", "Chat and code", "Judging", "Machine", "Other"]
    for parameter in cli.params:
        if isinstance(parameter, click.Option):
            assert len(re.findall(rf"^  .*{parameter.opts[0]}\b", text, flags=re.MULTILINE)) >= 1, parameter.name
    assert "--max-new-tokens" in sections[1]
    assert "--min-p" in sections[3]
    assert "--fim-prefix" in sections[5]
    assert "--policy" in sections[7]
    assert "--threads" in sections[9]
    assert "--doctor" in sections[11]


def test_stop_strings_and_shortest_lengths(tiny_fp32: Path) -> None:
    plain = answered(tiny_fp32, PROMPT, "--max-new-tokens", 40)
    assert "\n" in plain["text"].strip("\n")
    stopped = answered(tiny_fp32, PROMPT, "--max-new-tokens", 40, "--stop", "never there", "--stop", r"\n ")
    assert stopped["text"] == plain["text"][: plain["text"].index("\n ")]
    assert (stopped["finish_reason"], stopped["stop"]) == ("stop_string", "\n ")
    longest = answered(tiny_fp32, PROMPT, "--max-new-tokens", 300, "--min-new-tokens", 300)
    assert (len(longest["token_ids"]), longest["finish_reason"]) == (300, "length")


def test_escapes_of_stop_strings() -> None:
    assert unescaped(r"a\nb\tc\\n\d\\\n") == "a\nb\tc\\n\\d\\\n"
    assert unescaped("\\") == "\\"


def test_a_banned_token_does_not_come(tiny_fp32: Path) -> None:
    first = answered(tiny_fp32, PROMPT, "--max-new-tokens", 1)["token_ids"][0]
    other = answered(tiny_fp32, PROMPT, "--max-new-tokens", 1, "--logit-bias", f"{first}=-inf")["token_ids"][0]
    assert other != first
    forced = answered(tiny_fp32, PROMPT, "--max-new-tokens", 1, "--logit-bias", "500=1000", "--logit-bias", "7=1")
    assert forced["token_ids"] == [500]


def test_penalties_and_min_p_reach_the_choice(tiny_fp32: Path) -> None:
    plain = answered(tiny_fp32, PROMPT, "--max-new-tokens", 60)["token_ids"]
    for name in ("--repetition-penalty", "--presence-penalty", "--frequency-penalty"):
        assert answered(tiny_fp32, PROMPT, "--max-new-tokens", 60, name, 2)["token_ids"] != plain, name
    # only the likeliest token is as likely as that; asking for min-p is asking for sampling
    assert answered(tiny_fp32, PROMPT, "--max-new-tokens", 60, "--min-p", 1)["token_ids"] == plain
    assert answered(tiny_fp32, PROMPT, "--max-new-tokens", 60, "--min-p", 0.001)["token_ids"] != plain


def test_samples_are_the_runs_of_neighbouring_seeds(tiny_fp32: Path) -> None:
    options = (PROMPT, "--max-new-tokens", 12, "--temperature", 2)
    result = gemma_run(tiny_fp32, *options, "--samples", 3, "--seed", 4, "--json")
    samples = [validated(line, "gemma_runtime/generation") for line in result.stdout.splitlines()]
    assert len({each["text"] for each in samples}) == 3
    assert [each["cached_tokens"] > 0 for each in samples] == [False, True, True]
    for seed, sample in zip((4, 5, 6), samples, strict=True):
        assert answered(tiny_fp32, *options, "--seed", seed)["token_ids"] == sample["token_ids"]
    shown = gemma_run(tiny_fp32, *options, "--samples", 3, "--seed", 4)
    assert shown.stdout == "".join(each["text"] + "\n" for each in samples)
    assert re.findall(r"sample (\d) of 3: ", shown.stderr) == ["1", "2", "3"]


def test_log_probabilities(tiny_fp32: Path) -> None:
    found = answered(tiny_fp32, PROMPT, "--max-new-tokens", 5, "--logprobs", 2)
    assert [each["token"] for each in found["logprobs"]] == found["token_ids"]
    for each in found["logprobs"]:
        assert len(each["alternatives"]) == 2
        # greedy: the token is the likeliest
        assert each["alternatives"][0] == [each["token"], each["logprob"]]


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["x", "--at", "1:1"], "--fim FILE and --at LINE:COL go together"),
        (["--fim", "f"], "--fim FILE and --at LINE:COL go together"),
        (["--fim", "f", "--at", "1"], "'1' is not LINE:COL"),
        (["--fim", "f", "--at", "1:-1"], "'1:-1' is not LINE:COL"),
        (["--fim", "f", "--at", "1:1", "--fim-suffix", "g"], "--fim excludes"),
        (["--fim-prefix", "-", "--fim-suffix", "-"], "only one text can be read from standard input"),
        (["-", "--json-schema", "-"], "only one text can be read from standard input"),
        (["--grammar", "-"], "PROMPT is missing: standard input is another option's"),
        (["x", "--fim-prefix", "f"], "--fim takes no PROMPT"),
        (["--fim-prefix", "f", "--chat"], "--fim and --chat"),
        (["--fim-prefix", "f", "--system", "s"], "--fim and --system"),
        (["x", "--system", "s", "--no-chat"], "--system needs a chat"),
        (["x", "--regex", "a", "--grammar", "g"], "exclude one another"),
        (["x", "--logprobs", "1"], "--logprobs needs --json"),
        (["x", "--samples", "0"], "--samples must be 1 or above, found 0"),
        (["x", "--logit-bias", "1:2"], "'1:2' is not ID=VALUE"),
        (["x", "--logit-bias", "a=2"], "'a=2' is not ID=VALUE"),
        (["x", "--logit-bias", "1=b"], "'1=b' is not ID=VALUE"),
        (["x", "--bench"], "--bench takes no PROMPT"),
        (["--bench", "--doctor"], "exclude one another"),
        (["--bench", "--temperature", "1"], "--bench does not take --temperature"),
        (["--bench", "--fim", "f", "--at", "1:1"], "--bench does not take --fim"),
        (["--doctor", "--provider", "cpu"], "--doctor does not take --provider"),
        (["x", "--draft", "d", "--speculate", "off"], "--draft and --speculate off exclude one another"),
        (["x", "--draft", "d", "--speculate", "lookup"], "--draft and --speculate lookup exclude one another"),
        (["x", "--draft", "d", "--samples", "2"], "--draft guesses nothing for --samples 2"),
        (["x", "--nonsense"], "No such option '--nonsense'"),
        (["x", "y"], "unexpected extra argument"),
        (["x", "--max-new-tokens", "many"], "'many' is not a valid integer"),
        # the options' own values
        (["x", "--stop", ""], "stop"),
        (["x", "--temperature", "inf"], "temperature must be 0 or above, found inf"),
        (["x", "--top-k", "-3"], "top-k must be 1 or above, found -3"),
        (["x", "--seed", str(10**30)], "seed must be 2^63 or below"),
        (["x", "--logit-bias", "999999=1"], "logit-bias must be of token ids below 3072, found 999999"),
        (["x", "--logprobs", "500", "--json"], "logprobs must be from 0 to 100, found 500"),
        (["x", "--min-new-tokens", "200"], "min-new-tokens"),
        (["x", "--min-p", "2"], "min-p"),
        (["x", "--repetition-penalty", "0"], "repetition-penalty"),
        (["x", "--presence-penalty", "nan"], "presence-penalty"),
        (["x", "--frequency-penalty", "3"], "frequency-penalty"),
        (["x", "--logit-bias", "1=nan"], "logit-bias"),
        (["x", "--threads", "0"], "threads"),
        (["x", "--json-schema", "no/such/file"], "no/such/file cannot be read: No such file or directory"),
        (["--fim-prefix", "no/such/file"], "no/such/file cannot be read: No such file or directory"),
        (["--fim-prefix", "."], ". cannot be read: "),
    ],
)
def test_refusals(arguments: list[str], phrase: str, tiny_fp32: Path) -> None:
    with pytest.raises((click.ClickException, GemmaRuntimeError)) as caught:
        cli.main([str(tiny_fp32), *arguments], standalone_mode=False)
    message = caught.value.format_message() if isinstance(caught.value, click.ClickException) else caught.value.message
    assert phrase in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"type": ', "Expecting value"),
        (b"[1]", "it must be an object, found [1]"),
        (b'{"unevaluatedProperties": false}', "unevaluatedProperties"),
        (b'{"a": ' + b"[" * 5000, "maximum recursion depth"),
        (b'{"title": "\xe9"}', "schema.json is not valid UTF-8 at byte 11"),
    ],
)
def test_a_schema_that_cannot_be_used(content: bytes, reason: str, tiny_fp32: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_bytes(content)
    assert_error(gemma_run(tiny_fp32, "x", "--json-schema", "schema.json", cwd=tmp_path), 2, reason)


def test_arguments_that_are_no_utf8(tiny_fp32: Path) -> None:
    wrong = os.fsdecode(b"a\xff")
    if len(wrong) != 2:
        pytest.skip("this system's arguments are text")
    assert_error(gemma_run(tiny_fp32, wrong), 2, "the prompt is not valid UTF-8 at character 1")
    assert_error(gemma_run(tiny_fp32, "x", "--stop", wrong), 2, "a stop string is not valid UTF-8 at character 1")
    assert_error(gemma_run(tiny_fp32, "x", "--regex", wrong), 2, "the regular expression cannot be used")


def test_options_are_refused_before_the_folder_is_opened(tmp_path: Path) -> None:
    for options in (("--stop", ""), ("--top-k", 0), ("--max-new-tokens", 0), ("--regex", "a", "--grammar", "g")):
        assert_error(gemma_run(tmp_path / "none", "x", *options), 2)


def test_a_draft_that_is_wrong_is_named(tiny_fp32: Path, tmp_path: Path) -> None:
    assert_error(gemma_run(tiny_fp32, "x", "--draft", tmp_path / "none"), 3, "error: draft model: ", "does not exist")


def test_greedy_samples_are_told_to_be_alike(tiny_fp32: Path) -> None:
    alike = "warning: greedy samples are all alike"
    assert alike in gemma_run(tiny_fp32, "x", "--samples", 2, "--max-new-tokens", 1).stderr
    assert alike not in gemma_run(tiny_fp32, "x", "--samples", 2, "--top-k", 5, "--max-new-tokens", 1).stderr


def test_a_prompt_is_missing(tiny_fp32: Path) -> None:
    assert_error(gemma_run(tiny_fp32), 2, "PROMPT is missing, and standard input is empty")
    assert_error(gemma_run(tiny_fp32, "-"), 2, "standard input is empty")
    assert_error(gemma_run(), 2, "DIR")


def test_what_is_piped_in_is_the_prompt(tiny_fp32: Path) -> None:
    typed = gemma_run(tiny_fp32, "é = 1\nf = 2\n", "--max-new-tokens", 8)
    for content in ("é = 1\nf = 2\n", "\ufeffé = 1\r\nf = 2\r\n"):
        for arguments in ([], ["-"]):
            result = piped(tiny_fp32, content.encode(), *arguments, "--max-new-tokens", "8")
            assert result.returncode == 0, result.stderr
            assert result.stdout.decode().replace(os.linesep, "\n") == typed.stdout


@pytest.mark.parametrize("arguments", [[], ["-"], ["--fim-suffix", "-"]])
def test_standard_input_that_is_no_utf8(tiny_fp32: Path, arguments: list[str]) -> None:
    result = piped(tiny_fp32, b"abc\xff", *arguments)
    assert result.returncode == 2
    assert b"error: standard input is not valid UTF-8 at byte 3" in result.stderr
    assert result.stdout == b""


def test_chat_and_system(tiny_fp32: Path) -> None:
    turns = "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n"
    chat = answered(tiny_fp32, " hello\n", "--chat", "--max-new-tokens", 4)
    assert chat["token_ids"] == answered(tiny_fp32, turns, "--max-new-tokens", 4)["token_ids"]
    assert_error(gemma_run(tiny_fp32, "hello", "--system", "Be brief."), 2, "this model has no system role")


class TestMiddle:
    """--fim."""

    def test_a_position_equals_the_two_parts(self, tiny_fp32: Path, tmp_path: Path) -> None:
        (tmp_path / "whole.py").write_bytes(CODE.encode())
        cut = CODE.index("return ") + len("return ")
        (tmp_path / "before.py").write_bytes(CODE[:cut].encode())
        (tmp_path / "after.py").write_bytes(CODE[cut:].encode())
        at = answered(tiny_fp32, "--fim", tmp_path / "whole.py", "--at", "5:12", "--max-new-tokens", 12)
        parts = ("--fim-prefix", tmp_path / "before.py", "--fim-suffix", tmp_path / "after.py")
        assert answered(tiny_fp32, *parts, "--max-new-tokens", 12)["token_ids"] == at["token_ids"]
        result = piped(
            tiny_fp32, CODE[:cut].encode(), "--fim-prefix", "-", *map(str, parts[2:]), "--max-new-tokens", "12"
        )
        assert result.stdout.decode().replace(os.linesep, "\n") == at["text"] + "\n"
        tokenizer = load_tokenizer(tiny_fp32)
        # CRLF and the name of a token are kept as text
        size = len(tokenizer.encode_plain(CODE[:cut])) + len(tokenizer.encode_plain(CODE[cut:])) + 4
        assert at["prompt_tokens"] == size

    def test_the_file_separator_ends_it(self, tiny_fp32: Path, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text("x = ")
        for token in (67, 68, 69, 70):
            found = answered(tiny_fp32, "--fim-prefix", tmp_path / "a.py", "--logit-bias", f"{token}=1000")
            assert (found["finish_reason"], found["token_ids"]) == ("stop", [])
        # without a middle to fill it is a token like others
        found = answered(tiny_fp32, "x = ", "--logit-bias", "70=1000", "--max-new-tokens", 3)
        assert found["token_ids"] == [70, 70, 70]

    def test_a_position_outside(self, tiny_fp32: Path, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_text("x\n")
        result = gemma_run(tiny_fp32, "--fim", tmp_path / "a.py", "--at", "3:1")
        assert_error(result, 2, "line 3 is outside the file, which has 2")

    def test_a_file_that_is_no_utf8(self, tiny_fp32: Path, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_bytes("é".encode() + b"\xe9")
        result = gemma_run(tiny_fp32, "--fim", tmp_path / "a.py", "--at", "1:1")
        assert_error(result, 2, "a.py is not valid UTF-8 at byte 2")

    def test_far_lines_are_left_out_and_it_says_so(self, tiny_fp32: Path, tmp_path: Path) -> None:
        lines = "".join(f"value_{number} = {number}\n" for number in range(2000))
        (tmp_path / "a.py").write_text(lines)
        ends = ("--logit-bias", "70=1000")
        result = gemma_run(
            tiny_fp32, "--fim", tmp_path / "a.py", "--at", "1000:1", "--max-new-tokens", 8000, *ends, "--json"
        )
        assert result.returncode == 0, result.stderr
        assert re.search(r"warning: \d+ lines at the start and \d+ at the end are left out", result.stderr)
        assert json.loads(result.stdout)["prompt_tokens"] <= 192


def test_constraints(tiny_fp32: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    assert_error(gemma_run(tiny_fp32, "x", "--regex", "("), 2, "regular expression")
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    (tmp_path / "grammar.lark").write_text('start: "a" "b"+ "c"\n')
    assert json.loads(answered(tiny_fp32, PROMPT, "--json-schema", tmp_path / "schema.json")["text"]) in ("yes", "no")
    assert re.fullmatch("[0-9]{3}x", answered(tiny_fp32, PROMPT, "--regex", "[0-9]{3}x")["text"])
    found = answered(tiny_fp32, PROMPT, "--grammar", tmp_path / "grammar.lark", "--temperature", 2)
    assert re.fullmatch("ab+c", found["text"])


def test_the_same_answer_however_it_runs(tiny_fp32: Path) -> None:
    plain = answered(tiny_fp32, PROMPT, "--max-new-tokens", 40, "--speculate", "off")
    assert plain["speculation"] is None
    for options in (["--speculate", "lookup"], ["--threads", 1], ["--draft", tiny_fp32], ["--provider", "auto"]):
        assert answered(tiny_fp32, PROMPT, "--max-new-tokens", 40, *options)["token_ids"] == plain["token_ids"]
    chosen = gemma_run(tiny_fp32, PROMPT, "--provider", "auto", "--max-new-tokens", 1).stderr
    assert re.search(r"^provider: cpu \(.+\)$", chosen, flags=re.MULTILINE)


def test_bench_measures_that_folder(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(directory: Path, **options: Any) -> str:
        options.pop("on_progress")("round 1")
        return f"{directory} {options}"

    monkeypatch.setattr("gemma_runtime.bench.run_bench", measured)
    result = CliRunner().invoke(cli, [str(tiny_fp32), "--bench", "--threads", "2", "--json"], catch_exceptions=False)
    assert result.stdout == f"{tiny_fp32} {{'provider': 'cpu', 'threads': 2, 'as_json': True}}\n"
    assert result.stderr == "round 1\n"
