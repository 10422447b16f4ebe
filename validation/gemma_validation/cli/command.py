"""The command's arguments, and the way from them to a verdict's exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gemma_export.errors import GemmaExportError
from gemma_runtime.cli.failures import Program
from gemma_runtime.cli.output import JSON_VERSION, ReaderGoneError, notice, print_text
from gemma_runtime.cli.program import leave_stdout, run_program
from gemma_runtime.completion import completion_option, exported_folders
from gemma_runtime.errors import GemmaRuntimeError
from gemma_validation.errors import GemmaValidationError, ValidationUsageError

__all__ = ["cli", "main"]

_PATH = click.Path(path_type=Path)
_PROGRAM = Program(
    name="gemma-validate",
    errors=(GemmaValidationError, GemmaRuntimeError, GemmaExportError),
    memory_hint="Close programs, or validate on a larger machine.",
    ends_cleanly=True,
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory", metavar="DIR", type=_PATH, shell_complete=exported_folders)
@click.option(
    "--reference",
    metavar="PATH",
    type=_PATH,
    help="A checkpoint's folder, a golden pack, or another exported folder. Default: the checkpoint of DIR's manifest.",
)
@click.option(
    "--suite",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="How much text, and how many invariances.",
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "directml"]),
    default="cpu",
    show_default=True,
    help="Where DIR runs.",
)
@click.option(
    "--reference-provider",
    type=click.Choice(["cpu", "cuda", "directml"]),
    help="Where a folder as the reference runs, DIR itself too. Default: as DIR, or the first that it runs on.",
)
@click.option("--budget", metavar="FILE", type=_PATH, help="TOML with bounds. Default: those of DIR's precision.")
@click.option(
    "--localise/--no-localise",
    default=None,
    help="Find the layer that the drift comes from. Default: only where there is drift.",
)
@click.option("--report-dir", metavar="DIR", type=_PATH, help="Write report.json, report.html and junit.xml there.")
@click.option("--record/--no-record", default=True, show_default=True, help="Write the verdict into DIR's manifest.")
@click.option(
    "--make-golden",
    metavar="FILE",
    type=_PATH,
    help="Instead of validating, keep what the reference says in FILE: a --reference without torch and checkpoint.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@completion_option
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def cli(**options: Any) -> int:
    """Prove that an exported folder computes what its checkpoint computes. Exit codes: 0 passed, 6 drift,
    9 inconclusive, 3 structure wrong or numbers not finite; 2, 4, 7, 8 as for gemma-export.

    \b
    gemma-validate ./gemma-tiny-q4
    gemma-validate ./gemma-2b-q4 --reference ./gemma-2b --report-dir reports
    gemma-validate ./gemma-2b-q4 --reference ./gemma-2b-fp32
    gemma-validate ./gemma-2b-fp16 --provider cuda --reference ./gemma-2b-fp16 --reference-provider cpu
    gemma-validate ./gemma-2b-q4 --make-golden gemma-2b.golden
    """
    if options["make_golden"] is not None:
        return _make_golden(options)
    from gemma_validation.report import (
        append_step_summary,
        json_text,
        prepare_directory,
        record_verdict,
        terminal_text,
        write_reports,
    )
    from gemma_validation.run import folder_manifest, validate

    if options["report_dir"] is not None:
        # before minutes of work
        prepare_directory(options["report_dir"])
    manifest = folder_manifest(options["directory"])
    found = validate(
        options["directory"],
        reference=options["reference"],
        suite=options["suite"],
        provider=options["provider"],
        reference_provider=options["reference_provider"],
        budget=options["budget"],
        localise=options["localise"],
        on_stage=notice,
    )
    if options["report_dir"] is not None:
        for file in write_reports(found, options["report_dir"]):
            notice(f"wrote {file}")
    append_step_summary(found)
    if options["record"]:
        why = record_verdict(options["directory"], found, validated=manifest)
        if why is not None:
            notice(f"note: {why}")
    try:
        print_text(json_text(found) if options["as_json"] else terminal_text(found))
    except ReaderGoneError:
        # the exit code still tells
        leave_stdout()
    return found.exit_code


def _make_golden(options: dict[str, Any]) -> int:
    source_of = click.get_current_context().get_parameter_source
    for option in ("budget", "report_dir", "localise", "provider", "record"):
        # a default is nobody's wish
        if source_of(option) is not ParameterSource.DEFAULT:
            name = option.replace("_", "-")
            raise ValidationUsageError(
                f"--make-golden does not validate: --{name} has no meaning there",
                hint=f"Leave --{name} out; validate with --reference FILE afterwards.",
            )
    from gemma_validation.run import make_golden_pack

    file = options["make_golden"]
    made = make_golden_pack(
        options["directory"],
        file,
        reference=options["reference"],
        reference_provider=options["reference_provider"],
        suite=options["suite"],
        on_stage=notice,
    )
    if options["as_json"]:
        document = {"schema_version": JSON_VERSION, "file": str(file), **dataclasses.asdict(made)}
        print_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False))
        return 0
    print_text(f"wrote {file}: {made.bytes:,} bytes")
    print_text(f"next: gemma-validate {options['directory']} --reference {file}")
    return 0


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    run_program(cli, _PROGRAM)
