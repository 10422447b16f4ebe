"""From the command line to the library's own objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_runtime.cli.inputs import read_file
from gemma_runtime.cli.options import Options, unescaped
from gemma_runtime.cli.output import notice

if TYPE_CHECKING:
    from gemma_runtime.answer import AnswerKeywords
    from gemma_runtime.constraints import Constraint
    from gemma_runtime.model import Gemma
    from gemma_runtime.sampling import Sampling

__all__ = ["SAMPLING_TEMPERATURE", "answer_settings", "load_model"]

# the temperature of sampling where none is given: as the model was trained
SAMPLING_TEMPERATURE = 1.0


def load_model(options: Options) -> Gemma:
    """Opens DIR.

    Raises:
        GemmaRuntimeError: any subclass.
    """
    from gemma_runtime.graph_choice import told_provider
    from gemma_runtime.model import Gemma

    assert options.directory is not None
    model = Gemma(
        options.directory,
        provider=options.provider,
        threads=options.threads,
        cuda_graphs=options.cuda_graphs,
        verify=options.verify,
        draft=options.draft,
        speculation=options.speculate,
        windowed={None: "auto", True: "on", False: "off"}[options.windowed],
    )
    if options.provider == "auto":
        notice(told_provider(model.provider, model.provider_reason))
    return model


def answer_settings(options: Options) -> AnswerKeywords:
    """Keywords of `Gemma.answer`, checked before a model is opened.

    Raises:
        PromptError: a value outside its range, or a file that cannot be read.
        MissingPackageError: a constraint needs a package that is not there.
    """
    from gemma_runtime.answer import AnswerOptions

    settings: AnswerKeywords = {
        "max_new_tokens": options.max_new_tokens,
        "min_new_tokens": options.min_new_tokens,
        "sampling": _sampling(options),
        "stop": tuple(map(unescaped, options.stop)),
        "logprobs": options.logprobs,
        "constraint": _constraint(options),
    }
    AnswerOptions(**settings)
    return settings


def _sampling(options: Options) -> Sampling:
    from gemma_runtime.sampling import Sampling

    temperature = options.temperature
    if temperature is None:
        # asking for a nucleus means asking for sampling
        nucleus = options.top_k, options.top_p, options.min_p
        temperature = SAMPLING_TEMPERATURE if any(each is not None for each in nucleus) else 0.0
    return Sampling(
        temperature=temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=dict(options.logit_bias),
        seed=options.seed,
    )


def _constraint(options: Options) -> Constraint | None:
    if options.json_schema is None and options.regex is None and options.grammar is None:
        return None
    from gemma_runtime.constraints import Constraint

    if options.regex is not None:
        return Constraint.regex(options.regex)
    if options.json_schema is not None:
        return Constraint.json_schema(read_file(options.json_schema))
    assert options.grammar is not None
    return Constraint.lark(read_file(options.grammar))
