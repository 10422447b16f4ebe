"""The command's options: a typed record of what was given, what goes together, and their sections in --help."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
from click.core import ParameterSource

__all__ = [
    "Options",
    "SectionedCommand",
    "check_combinations",
    "check_mode",
    "file_position",
    "token_biases",
    "unescaped",
]

# section of --help: parameters in their order there; what is named nowhere comes last
_SECTIONS = {
    "Generation": (
        "max_new_tokens",
        "min_new_tokens",
        "stop",
        "samples",
        "json_schema",
        "regex",
        "grammar",
        "as_json",
        "logprobs",
    ),
    "Sampling": (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "seed",
    ),
    "Chat and code": ("chat", "system", "no_history", "fim", "at", "fim_prefix", "fim_suffix"),
    "Judging": ("classify", "policy", "response", "any_model"),
    "Machine": ("provider", "cuda_graphs", "threads", "draft", "speculate", "windowed", "verify"),
}
# what generates nothing, and the options that mean something there
_MODES = {
    "bench": {"provider", "threads", "as_json"},
    "doctor": {"as_json"},
    "classify": {"policy", "response", "any_model", "provider", "threads", "verify", "as_json"},
}
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed; one field a parameter."""

    directory: Path | None
    prompt: str | None
    max_new_tokens: int
    min_new_tokens: int
    stop: tuple[str, ...]
    samples: int
    json_schema: str | None
    regex: str | None
    grammar: str | None
    as_json: bool
    logprobs: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    seed: int
    # None where neither --chat nor --no-chat was given
    chat: bool | None
    system: str | None
    no_history: bool
    fim: str | None
    at: tuple[int, int] | None
    fim_prefix: str | None
    fim_suffix: str | None
    classify: bool
    # names and @FILEs
    policy: tuple[str, ...]
    response: str | None
    any_model: bool
    provider: str
    threads: int | None
    cuda_graphs: bool
    draft: Path | None
    speculate: str
    # None where neither --windowed nor --no-windowed was given
    windowed: bool | None
    verify: bool
    doctor: bool
    bench: bool

    @property
    def fills_middle(self) -> bool:
        """Whether a middle is asked for."""
        return self.fim is not None or self.fim_prefix is not None or self.fim_suffix is not None


def check_combinations(options: Options) -> None:
    """What each option cannot see by itself.

    Raises:
        click.UsageError: options that exclude or need one another.
    """
    given = options.prompt is not None
    rules = (
        (options.doctor and given, "--doctor takes no PROMPT"),
        (options.bench and given, "--bench takes no PROMPT"),
        (
            options.doctor + options.bench + options.classify > 1,
            "--doctor, --bench and --classify exclude one another",
        ),
        (bool(options.policy) and not options.classify, "--policy needs --classify"),
        (options.response is not None and not options.classify, "--response needs --classify"),
        (options.any_model and not options.classify, "--any-model needs --classify"),
        ((options.fim is None) != (options.at is None), "--fim FILE and --at LINE:COL go together"),
        (
            options.fim is not None and (options.fim_prefix is not None or options.fim_suffix is not None),
            "--fim excludes --fim-prefix and --fim-suffix",
        ),
        (_readers_of_stdin(options) > 1, "only one text can be read from standard input"),
        (options.fills_middle and given, "--fim takes no PROMPT"),
        (options.fills_middle and bool(options.chat), "--fim and --chat exclude one another"),
        (options.system is not None and options.fills_middle, "--fim and --system exclude one another"),
        (options.system is not None and options.chat is False, "--system needs a chat"),
        (
            sum(each is not None for each in (options.json_schema, options.regex, options.grammar)) > 1,
            "--json-schema, --regex and --grammar exclude one another",
        ),
        (options.samples < 1, f"--samples must be 1 or above, found {options.samples}"),
        (options.logprobs is not None and not options.as_json, "--logprobs needs --json"),
        (
            options.draft is not None and options.speculate != "auto",
            f"--draft and --speculate {options.speculate} exclude one another",
        ),
        (
            options.draft is not None and options.samples > 1,
            f"--draft guesses nothing for --samples {options.samples}: they run side by side",
        ),
        (bool(options.windowed) and options.cuda_graphs, "--windowed and --cuda-graphs exclude one another"),
    )
    for broken, message in rules:
        if broken:
            raise click.UsageError(message)


def _readers_of_stdin(options: Options) -> int:
    files = options.prompt, options.fim_prefix, options.fim_suffix, options.json_schema, options.grammar
    return (*files, options.response).count("-") + options.policy.count("@-")


def check_mode(context: click.Context, options: Options) -> None:
    """Refuses options that --bench, --doctor or --classify would pass over.

    Raises:
        click.UsageError: there is one.
    """
    for mode, used in _MODES.items():
        if not getattr(options, mode):
            continue
        for parameter in context.command.params:
            name = parameter.name or ""
            given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            if given and isinstance(parameter, click.Option) and name not in {*used, mode, "debug"}:
                raise click.UsageError(f"--{mode} does not take {parameter.opts[0]}")


def unescaped(text: str) -> str:
    r"""A text in which \n, \t and \\ stand for a line end, a tab and a backslash."""
    return re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)


def token_biases(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, float], ...]:
    """Callback: each ID=VALUE is what is added to a token's logit.

    Raises:
        click.BadParameter: something else.
    """
    return tuple(_token_bias(value) for value in values)


def _token_bias(value: str) -> tuple[int, float]:
    token, sign, added = value.partition("=")
    wrong = click.BadParameter(f"{value!r} is not ID=VALUE, such as 107=-inf")
    if not (sign and token.isascii() and token.isdigit()):
        raise wrong
    try:
        return int(token), float(added)
    except ValueError:
        raise wrong from None


def file_position(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Callback: LINE:COL, each counted from 1.

    Raises:
        click.BadParameter: something else.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not LINE:COL, such as 12:5")
    return int(found[1]), int(found[2])


class SectionedCommand(click.Command):
    """A command whose --help lists the options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections, then what is in none."""
        records = {
            param.name: record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
        }
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([records.pop(name) for name in names])
        with formatter.section("Other"):
            formatter.write_dl(list(records.values()))
