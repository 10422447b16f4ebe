"""The `gemma-run` command. Everything heavy is imported inside it, so that --help is instant."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import sys
import traceback
from pathlib import Path

import click

from gemma_runtime.completion import SHELLS, exported_folders, print_script
from gemma_runtime.errors import GemmaRuntimeError

__all__ = ["main"]

_INTERRUPTED = 130
# of everything that --json prints: schemas/*.schema.json
_JSON_VERSION = 1


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument(
    "directory", metavar="DIR", required=False, type=click.Path(path_type=Path), shell_complete=exported_folders
)
@click.argument("prompt", metavar="PROMPT", required=False)
@click.option("--max-new-tokens", type=int, default=128, show_default=True, metavar="N", help="Stop after N tokens.")
@click.option(
    "--temperature", type=float, metavar="T", help="0 is greedy (default); 1 samples as the model was trained."
)
@click.option("--top-k", type=int, metavar="K", help="Sample from the K most likely tokens.")
@click.option("--top-p", type=float, metavar="P", help="Sample from the fewest tokens that hold P of the probability.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Of sampling.")
@click.option(
    "--provider", type=click.Choice(["cpu", "cuda", "directml"]), default="cpu", show_default=True, help="Where to run."
)
@click.option("--chat", is_flag=True, help="Put the prompt into Gemma's chat turns.")
@click.option("--verify", is_flag=True, help="Hash the weight data before loading it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, nothing streamed.")
@click.option(
    "--doctor",
    is_flag=True,
    help="Instead of generating, say what is installed, which providers start, what is in the way; with DIR, whether "
    "that folder would run.",
)
@click.option(
    "--completion",
    metavar="SHELL",
    type=click.Choice(SHELLS),
    is_eager=True,
    expose_value=False,
    callback=print_script,
    help="Print the completion script: bash, zsh, fish.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_context
def cli(
    context: click.Context,
    /,
    directory: Path | None,
    prompt: str | None,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    provider: str,
    chat: bool,
    verify: bool,
    as_json: bool,
    doctor: bool,
) -> int:
    """Generate text from a folder that gemma-export wrote. PROMPT "-" reads standard input.

    \b
    gemma-run ./gemma-tiny-fp32 "def read_lines(path):"
    gemma-run ./gemma-7b-it-fp16 --chat "Why is the sky blue?" --temperature 0.7
    """
    if doctor:
        if prompt is not None:
            raise click.UsageError("--doctor takes no PROMPT")
        return _diagnose(directory, as_json=as_json)
    for name, value in (("directory", directory), ("prompt", prompt)):
        if value is None:
            raise click.MissingParameter(ctx=context, param=next(p for p in context.command.params if p.name == name))
    assert directory is not None
    assert prompt is not None
    from gemma_runtime.chat import Message
    from gemma_runtime.model import Gemma
    from gemma_runtime.sampling import Sampling

    if temperature is None:
        # asking for a nucleus means asking for sampling
        temperature = 0.0 if top_k is None and top_p is None else 1.0
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    model = Gemma(directory, provider=provider, verify=verify)
    question = [Message(role="user", content=text)] if chat else text
    answer = model.answer(question, max_new_tokens=max_new_tokens, sampling=sampling)
    for piece in answer.pieces():
        if not as_json:
            _print(piece.text, newline=False)
    result = answer.completion
    if as_json:
        # ASCII: a console that cannot show a character must not change the text
        _print(json.dumps({"schema_version": _JSON_VERSION, **dataclasses.asdict(result)}))
        return 0
    _print("")
    click.echo(
        f"{result.prompt_tokens} prompt tokens at {result.prefill_tokens_per_second:.0f} tokens/s, "
        f"{len(result.token_ids)} new tokens at {result.decode_tokens_per_second:.1f} tokens/s "
        f"({result.finish_reason})",
        err=True,
    )
    return 0


def _diagnose(directory: Path | None, *, as_json: bool) -> int:
    from gemma_runtime.doctor import diagnose, diagnosis_json, diagnosis_text

    diagnosis = diagnose(directory)
    _print(diagnosis_json(diagnosis) if as_json else diagnosis_text(diagnosis))
    return diagnosis.exit_code


class _ReaderGoneError(Exception):
    """Nobody reads stdout any more: not our failure. click would turn a BrokenPipeError into exit code 1."""


def _print(text: str, *, newline: bool = True) -> None:
    try:
        click.echo(text, nl=newline)
    except BrokenPipeError as error:
        raise _ReaderGoneError from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Failure:
    """What a user, or with --json a machine, is told of an error."""

    # the error's class without "Error", in snake case: a word to branch on, see errors.py
    kind: str
    message: str
    hint: str
    exit_code: int


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    for stream in (sys.stdout, sys.stderr):
        # a console that cannot show a character shows a mark instead of stopping the text
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        code = cli.main(prog_name="gemma-run", standalone_mode=False)
    except _ReaderGoneError:
        # Python flushes stdout once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except SystemExit as ended:
        # a shell's completion has been answered
        code = ended.code
    except BaseException as error:  # noqa: BLE001  Ctrl-C, and a bug of ours, must still end in a message
        code = _report(error, _failure(error))
    sys.exit(code or 0)


def _asked(flag: str) -> bool:
    """Whether a flag was given, also where the command line could not be parsed."""
    arguments = sys.argv[1:]
    return flag in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _failure(error: BaseException) -> _Failure:
    if isinstance(error, GemmaRuntimeError):
        name = type(error).__name__.removesuffix("Error")
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        return _Failure(kind=kind, message=error.message, hint=error.hint, exit_code=error.exit_code)
    if isinstance(error, click.ClickException):
        message = error.format_message()
        return _Failure(kind="usage", message=message, hint="See gemma-run --help.", exit_code=2)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _Failure(
            kind="interrupted", message="interrupted", hint="Run the command again.", exit_code=_INTERRUPTED
        )
    if isinstance(error, MemoryError):
        hint = "Close programs, or export a smaller precision."
        return _Failure(kind="resource_exhausted", message="out of memory", hint=hint, exit_code=5)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        hint = "Free some space where the output is redirected to."
        return _Failure(kind="output", message="stdout: no space left on device", hint=hint, exit_code=5)
    hint = "This is a bug of gemma-run: run again with --debug and report the traceback."
    message = f"internal error: {type(error).__name__}: {error}"
    return _Failure(kind="internal", message=message, hint=hint, exit_code=1)


def _report(error: BaseException, failure: _Failure) -> int:
    if isinstance(error, KeyboardInterrupt):
        # the terminal has just shown ^C
        click.echo(err=True)
    if _asked("--debug"):
        traceback.print_exception(error)
    if _asked("--json"):
        # stdout may be what failed; stderr and the exit code still tell
        with contextlib.suppress(OSError):
            click.echo(json.dumps({"schema_version": _JSON_VERSION, "error": dataclasses.asdict(failure)}, indent=2))
    click.echo(f"error: {failure.message}\nhint: {failure.hint}", err=True)
    return failure.exit_code
