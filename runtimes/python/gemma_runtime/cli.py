"""The `gemma-run` command. Everything heavy is imported inside it, so that --help is instant."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import traceback
from pathlib import Path

import click

from gemma_runtime.errors import GemmaRuntimeError

__all__ = ["main"]

_INTERRUPTED = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prompt", metavar="PROMPT")
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
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cli(
    directory: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    provider: str,
    chat: bool,
    verify: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Generate text from a folder that gemma-export wrote. PROMPT "-" reads standard input.

    \b
    gemma-run ./gemma-tiny-fp32 "def read_lines(path):"
    gemma-run ./gemma-7b-it-fp16 --chat "Why is the sky blue?" --temperature 0.7
    """
    from gemma_runtime.generate import TextGenerator
    from gemma_runtime.sampling import Sampling

    if temperature is None:
        # asking for a nucleus means asking for sampling
        temperature = 0.0 if top_k is None and top_p is None else 1.0
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    generator = TextGenerator(directory, provider=provider, verify=verify)
    result = generator.generate(
        text,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        chat=chat,
        on_text=None if as_json else lambda part: _print(part, newline=False),
    )
    if as_json:
        _print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
        return
    _print("")
    click.echo(
        f"{result.prompt_tokens} prompt tokens at {result.prefill_tokens_per_second:.0f} tokens/s, "
        f"{len(result.token_ids)} new tokens at {result.decode_tokens_per_second:.1f} tokens/s "
        f"({result.finish_reason})",
        err=True,
    )


class _ReaderGoneError(Exception):
    """Nobody reads stdout any more: not our failure. click would turn a BrokenPipeError into exit code 1."""


def _print(text: str, *, newline: bool = True) -> None:
    try:
        click.echo(text, nl=newline)
    except BrokenPipeError as error:
        raise _ReaderGoneError from error


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        # a console that cannot show a character shows a mark instead of stopping the text
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        code = cli.main(prog_name="gemma-run", standalone_mode=False)
    except GemmaRuntimeError as error:
        code = _report(error, error.message, error.hint, error.exit_code, debug=debug)
    except click.ClickException as error:
        code = _report(error, error.format_message(), "See gemma-run --help.", 2, debug=debug)
    except (KeyboardInterrupt, click.Abort) as error:
        click.echo(err=True)
        code = _report(error, "interrupted", "Run the command again.", _INTERRUPTED, debug=debug)
    except _ReaderGoneError:
        # Python flushes stdout once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except MemoryError as error:
        code = _report(error, "out of memory", "Close programs, or export a smaller precision.", 5, debug=debug)
    except Exception as error:  # noqa: BLE001  a bug of ours must still end in a message
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            hint = "Free some space where the output is redirected to."
            sys.exit(_report(error, "stdout: no space left on device", hint, 5, debug=debug))
        hint = "This is a bug of gemma-run: run again with --debug and report the traceback."
        code = _report(error, f"internal error: {type(error).__name__}: {error}", hint, 1, debug=debug)
    sys.exit(code or 0)


def _report(error: BaseException, message: str, hint: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {message}\nhint: {hint}", err=True)
    return code
