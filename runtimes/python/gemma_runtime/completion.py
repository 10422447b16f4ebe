"""Shell completion: the script for a shell, and the folders to complete DIR with. Imports click only."""

from __future__ import annotations

import os
import re

import click
from click.shell_completion import CompletionItem, get_completion_class

__all__ = ["completion_option", "exported_folders"]

_SHELLS = ("bash", "zsh", "fish")
# what no shell has to quote: for any other name the shell's own completion of directories knows how
_PLAIN = re.compile(r"[\w@%+=./~-]*")


def _print_script(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    """Callback of `--completion SHELL`: prints the script and ends the program."""
    if shell is None or context.resilient_parsing:
        return
    completion = get_completion_class(shell)
    assert completion is not None
    program = context.find_root().info_name
    assert program is not None
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    click.echo(completion(context.command, {}, program, variable).source())
    context.exit()


completion_option = click.option(
    "--completion",
    metavar="SHELL",
    type=click.Choice(_SHELLS),
    is_eager=True,
    expose_value=False,
    callback=_print_script,
    help="Print the completion script: bash, zsh, fish.",
)


def exported_folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Directories beside the typed path that hold a gemma_export.json; without any, whatever the shell completes."""
    typed, _ = os.path.split(incomplete)
    found = []
    try:
        with os.scandir(os.path.expanduser(typed) or ".") as entries:
            for entry in entries:
                path = os.path.join(typed, entry.name)
                if path.startswith(incomplete) and os.path.isfile(os.path.join(entry.path, "gemma_export.json")):
                    found.append(path)
    except (OSError, ValueError):
        # a path that is still being typed
        found = []
    if not found or not all(_PLAIN.fullmatch(path) for path in found):
        return [CompletionItem(incomplete, type="dir")]
    return [CompletionItem(path) for path in sorted(found)]
