"""Shell completion: the script for a shell, and the values of options. Nothing heavier than the registries."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

__all__ = ["SHELLS", "print_script", "target_names", "variant_names"]

SHELLS = ("bash", "zsh", "fish")


def print_script(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    """Callback of `--completion SHELL`: prints the script and ends the program."""
    if shell is None or context.resilient_parsing:
        return
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(context.command, {}, "gemma-export", "_GEMMA_EXPORT_COMPLETE").source())
    context.exit()


def variant_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The variants that begin so, with the repository as the help that zsh and fish show."""
    from gemma_export.variants import VARIANTS

    return [
        CompletionItem(name, help=variant.repository or "the built-in model")
        for name, variant in VARIANTS.items()
        if name.startswith(incomplete)
    ]


def target_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The deployment targets that begin so."""
    from gemma_export.targets import TARGETS

    return [CompletionItem(name) for name in TARGETS if name.startswith(incomplete)]
