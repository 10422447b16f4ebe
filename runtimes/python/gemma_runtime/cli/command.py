"""The command's arguments, and which part of it they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gemma_runtime.cli.failures import GEMMA_RUN
from gemma_runtime.cli.inputs import stdin_is_terminal
from gemma_runtime.cli.options import (
    Options,
    SectionedCommand,
    check_combinations,
    check_mode,
    file_position,
    token_biases,
)
from gemma_runtime.cli.output import print_text
from gemma_runtime.cli.program import run_program
from gemma_runtime.completion import completion_option, exported_folders

__all__ = ["cli", "main"]

_FOLDER = click.Path(path_type=Path)
_PROVIDERS = click.Choice(["auto", "cpu", "cuda", "directml"])


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", metavar="DIR", required=False, type=_FOLDER, shell_complete=exported_folders)
@click.argument("prompt", metavar="[PROMPT]", required=False)
@click.option("--max-new-tokens", type=int, default=128, show_default=True, metavar="N", help="Stop after N tokens.")
@click.option("--min-new-tokens", type=int, default=0, metavar="N", help="Choose no stop token before N tokens.")
@click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help=r"Stop before TEXT; may be repeated. \n, \t and \\ in it are a line end, a tab and a backslash.",
)
@click.option(
    "--samples",
    type=int,
    default=1,
    metavar="N",
    help="N answers, with the seeds S, S+1, ...; several are not streamed.",
)
@click.option("--json-schema", metavar="FILE", help="Answer with JSON that this schema allows.")
@click.option("--regex", metavar="PATTERN", help="Answer with text that this regular expression matches whole.")
@click.option("--grammar", metavar="FILE", help="Answer with text of this grammar, in Lark's notation.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, one line a sample; nothing is streamed."
)
@click.option("--logprobs", type=int, metavar="N", help="With --json: log probabilities, and N alternatives, a token.")
@click.option(
    "--temperature", type=float, metavar="T", help="0 is greedy (default); 1 samples as the model was trained."
)
@click.option("--top-k", type=int, metavar="K", help="Sample from the K most likely tokens.")
@click.option("--top-p", type=float, metavar="P", help="Sample from the fewest tokens that hold P of the probability.")
@click.option("--min-p", type=float, metavar="P", help="Sample from tokens at least P times as likely as the top one.")
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    metavar="X",
    help="Above 1: tokens of prompt and answer become less likely.",
)
@click.option(
    "--presence-penalty", type=float, default=0.0, metavar="X", help="Taken once from the logit of an answer's token."
)
@click.option(
    "--frequency-penalty", type=float, default=0.0, metavar="X", help="The same, each time that the answer has it."
)
@click.option(
    "--logit-bias",
    callback=token_biases,
    multiple=True,
    metavar="ID=VALUE",
    help="Add VALUE to a token's logit, -inf bans it; may be repeated.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="S", help="Of sampling.")
@click.option("--chat/--no-chat", default=None, help="Put the prompt into Gemma's chat turns, or not.")
@click.option("--system", metavar="TEXT", help="Instructions before the first turn, for models that know a system.")
@click.option("--no-history", is_flag=True, help="Keep no file of what is typed in a session.")
@click.option("--fim", metavar="FILE", help="Write what belongs into FILE at the position --at.")
@click.option("--at", callback=file_position, metavar="LINE:COL", help="Both counted from 1, columns in characters.")
@click.option("--fim-prefix", metavar="FILE", help='Write what belongs behind FILE ("-": standard input) ...')
@click.option("--fim-suffix", metavar="FILE", help="... and before this one; either may be left out.")
@click.option(
    "--classify", is_flag=True, help="Instead of generating, say whether PROMPT violates policies (ShieldGemma)."
)
@click.option(
    "--policy",
    multiple=True,
    metavar="NAME|@FILE",
    help="By which policy: dangerous-content, harassment, hate-speech, sexually-explicit, or FILE's text; may be "
    "repeated. All four by default.",
)
@click.option("--response", metavar="FILE", help="Judge FILE, a chatbot's answer to PROMPT, instead of PROMPT.")
@click.option("--any-model", is_flag=True, help="DIR need not be a ShieldGemma: a fine-tune that answers its prompt.")
@click.option("--provider", type=_PROVIDERS, default="cpu", show_default=True, help="Where to run.")
@click.option(
    "--cuda-graphs",
    is_flag=True,
    help="With CUDA: capture the step of one token; holds the weights twice on the device.",
)
@click.option("--threads", type=int, metavar="N", help="Of the CPU's kernels; by default as many as there are cores.")
@click.option("--draft", metavar="DIR", type=_FOLDER, help="A smaller model of the same tokenizer that guesses ahead.")
@click.option(
    "--speculate",
    type=click.Choice(["auto", "lookup", "off"]),
    default="auto",
    show_default=True,
    help="Guess tokens ahead: by --draft if given, else from the text so far. Greedy answers stay the same.",
)
@click.option(
    "--windowed/--no-windowed",
    default=None,
    help="Keep no more than their window of layers that have one, or everything; by default where it works.",
)
@click.option("--verify", is_flag=True, help="Hash the weight data before loading it.")
@click.option(
    "--doctor",
    is_flag=True,
    help="Instead of generating, say what is installed, which providers start, what is in the way; with DIR, whether "
    "that folder would run.",
)
@click.option("--bench", is_flag=True, help="Instead of generating, measure speed and memory.")
@completion_option
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_context
def cli(context: click.Context, /, **values: Any) -> int:
    """Generate text from a folder that gemma-export wrote. PROMPT "-" reads standard input; without PROMPT a session
    starts (/help says what it knows), or what is piped in is the prompt.

    \b
    gemma-run ./gemma-tiny-fp32 "def read_lines(path):"
    gemma-run ./gemma-7b-it-fp16 --chat "Why is the sky blue?" --temperature 0.7
    gemma-run ./codegemma-2b-q4 --fim main.py --at 12:5
    gemma-run ./gemma-2b-it-q4
    gemma-run ./gemma-shieldgemma-2b-q4 --classify "How do I pick a lock?"
    """
    options = Options(**values)
    check_combinations(options)
    check_mode(context, options)
    if options.doctor:
        return _diagnose(options)
    if options.directory is None:
        parameter = next(each for each in context.command.params if each.name == "directory")
        raise click.MissingParameter(ctx=context, param=parameter)
    if options.bench:
        return _measure(options)
    if options.classify:
        from gemma_runtime.cli.classifying import run_classify

        return run_classify(options)
    if options.fills_middle:
        from gemma_runtime.cli.oneshot import run_middle

        return run_middle(options)
    if options.prompt is None and stdin_is_terminal():
        from gemma_runtime.cli.repl import run_session

        return run_session(options)
    from gemma_runtime.cli.oneshot import run_prompt

    return run_prompt(options)


def _diagnose(options: Options) -> int:
    from gemma_runtime.doctor import diagnose, diagnosis_json, diagnosis_text

    diagnosis = diagnose(options.directory)
    print_text(diagnosis_json(diagnosis) if options.as_json else diagnosis_text(diagnosis))
    return diagnosis.exit_code


def _measure(options: Options) -> int:
    from gemma_runtime.bench import run_bench
    from gemma_runtime.cli.output import notice

    assert options.directory is not None
    print_text(
        run_bench(
            options.directory,
            provider=options.provider,
            threads=options.threads,
            as_json=options.as_json,
            on_progress=notice,
        )
    )
    return 0


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    run_program(cli, GEMMA_RUN)
