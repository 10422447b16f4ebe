"""--classify: one line a policy on stdout."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from gemma_runtime.cli.inputs import read_file, read_prompt, stdin_is_terminal
from gemma_runtime.cli.options import Options
from gemma_runtime.cli.output import JSON_VERSION, print_text
from gemma_runtime.cli.settings import load_model

if TYPE_CHECKING:
    from gemma_runtime.classify import Judgement
    from gemma_runtime.policies import Policy

__all__ = ["run_classify"]


def run_classify(options: Options) -> int:
    """Judges PROMPT, or what comes on standard input, by each policy; the exit code is 0 whatever the verdicts are.

    Raises:
        GemmaRuntimeError: any subclass.
        click.UsageError: no PROMPT, and nothing that could be one.
    """
    from gemma_runtime.classify import Judge
    from gemma_runtime.policies import POLICIES

    text = _text(options)
    policies = [_policy(given) for given in options.policy] or list(POLICIES.values())
    response = None if options.response is None else read_file(options.response)
    judge = Judge(load_model(options), any_model=options.any_model)
    for policy in policies:
        judgement = judge.judge(text, policy=policy, response=response)
        print_text(_json(judgement) if options.as_json else _line(judgement))
    return 0


def _policy(given: str) -> Policy:
    from gemma_runtime.policies import Policy, find_policy

    if given.startswith("@"):
        return Policy.of_text(given.removeprefix("@"), read_file(given.removeprefix("@")))
    return find_policy(given)


def _text(options: Options) -> str:
    typed = options.prompt
    if typed is not None and typed != "-":
        return typed
    if typed is None and (stdin_is_terminal() or options.response == "-" or "@-" in options.policy):
        raise click.UsageError("PROMPT is missing: --classify judges it")
    return read_prompt(asked=typed == "-")


def _line(judgement: Judgement) -> str:
    return f"{judgement.policy}: {'Yes' if judgement.violates else 'No'} ({judgement.probability_yes:.4f})"


def _json(judgement: Judgement) -> str:
    return json.dumps({"schema_version": JSON_VERSION, **dataclasses.asdict(judgement)})
