"""One prompt, or one place in a file: the answer on stdout, figures on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gemma_runtime.cli.inputs import read_file, read_prompt
from gemma_runtime.cli.options import Options
from gemma_runtime.cli.output import figures, notice, print_json, print_text
from gemma_runtime.cli.settings import answer_settings, load_model

if TYPE_CHECKING:
    from gemma_runtime.answer import AnswerKeywords
    from gemma_runtime.model import Gemma
    from gemma_runtime.prompts import Prompt
    from gemma_runtime.results import Completion

__all__ = ["run_middle", "run_prompt"]


def run_prompt(options: Options) -> int:
    """Continues or answers PROMPT, or what comes on standard input.

    Raises:
        GemmaRuntimeError: any subclass.
        click.UsageError: no PROMPT, and nothing that could be one.
    """
    from gemma_runtime.chat import Message

    typed = options.prompt
    if typed is None and "-" in (options.json_schema, options.grammar):
        # the prompt would have taken it all
        raise click.UsageError("PROMPT is missing: standard input is another option's")
    text = read_prompt(asked=typed == "-") if typed is None or typed == "-" else typed
    settings = answer_settings(options)
    model = load_model(options)
    prompt: Prompt = text
    if options.chat or options.system is not None:
        system = [] if options.system is None else [Message(role="system", content=options.system)]
        prompt = [*system, Message(role="user", content=text)]
    _answer(model, prompt, settings, options)
    return 0


def run_middle(options: Options) -> int:
    """Writes what belongs at a place in a file.

    Raises:
        GemmaRuntimeError: any subclass.
    """
    from gemma_runtime.fim import fim_prompt, fim_stop_ids, fit_to_context, split_at

    if options.fim is not None:
        assert options.at is not None
        prefix, suffix = split_at(read_file(options.fim), *options.at)
    else:
        prefix = "" if options.fim_prefix is None else read_file(options.fim_prefix)
        suffix = "" if options.fim_suffix is None else read_file(options.fim_suffix)
    settings = answer_settings(options)
    model = load_model(options)
    context = model.manifest.context_length
    parts = fit_to_context(
        model.tokenizer, prefix, suffix, context_length=context, new_tokens=settings["max_new_tokens"]
    )
    if parts.lines_before or parts.lines_after:
        notice(
            f"warning: {parts.lines_before} lines at the start and {parts.lines_after} at the end are left out: the "
            f"context holds {context} tokens"
        )
    settings["stop_ids"] = fim_stop_ids(model.tokenizer)
    _answer(model, fim_prompt(model.tokenizer, parts.prefix, parts.suffix), settings, options)
    return 0


def _answer(model: Gemma, prompt: Prompt, settings: AnswerKeywords, options: Options) -> None:
    sampling = settings["sampling"]
    if options.samples > 1 and (sampling is None or sampling.temperature == 0):
        notice("warning: greedy samples are all alike; --temperature 0.7 gives others")
    if options.samples > 1:
        # several rows in each run of the model: they come together, not one after another
        for number, completion in enumerate(model.generate_many([prompt], samples=options.samples, **settings)):
            if not options.as_json:
                print_text(completion.text, newline=False)
            _finish(completion, options, label=f"sample {number + 1} of {options.samples}: ")
        return
    answer = model.answer(prompt, **settings)
    for piece in answer.pieces():
        if not options.as_json:
            print_text(piece.text, newline=False)
    _finish(answer.completion, options)


def _finish(completion: Completion, options: Options, label: str = "") -> None:
    if options.as_json:
        print_json(completion)
        return
    print_text("")
    notice(label + figures(completion))
