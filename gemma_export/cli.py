"""The `gemma-export` command. Everything heavy is imported inside the commands, so that --help is instant."""

from __future__ import annotations

import errno
import json
import shlex
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from gemma_export import __version__
from gemma_export.errors import GemmaExportError, MissingResourceError, ResourceExhaustedError, UsageError

if TYPE_CHECKING:
    from gemma_export.pipeline import ExportResult
    from gemma_export.planning import ExportPlan
    from gemma_export.request import ExportRequest

__all__ = ["main"]

_INTERRUPTED = 130
_OUT_OF_MEMORY = "out of memory"
_MEMORY_HINT = "`gemma-export --dry-run` says how much an export needs: close programs, or use a larger machine."
# packages of the `export` extra, by import name
_EXPORT_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "filelock", "platformdirs")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--variant", metavar="NAME", help="A released model, or `tiny`, the built-in one. See `variants`.")
@click.option(
    "--checkpoint", metavar="DIR", type=click.Path(path_type=Path), help="A local checkpoint: config, safetensors."
)
@click.option(
    "--synthetic-weights",
    "synthetic_seed",
    metavar="[SEED]",
    is_flag=False,
    flag_value="0",
    help="Random weights of the true shapes, for sizing and benchmarks.",
)
@click.option("--fp32", "fp32", is_flag=True, help="float32 weights and activations (default): CPU.")
@click.option("--fp16", "fp16", is_flag=True, help="float16 weights and activations: CPU and CUDA.")
@click.option("--int4", "int4", is_flag=True, help="4-bit weights; with --fp16, float16 activations.")
@click.option("--int8", "int8", is_flag=True, help="8-bit weights; with --fp16, float16 activations.")
@click.option("--block-size", type=int, metavar="N", help="Weights that share a scale: 32, 64, 128 or 256.")
@click.option("--symmetric/--asymmetric", default=None, help="Quantise without or with zero points.")
@click.option("--quantizer", metavar="NAME", help="How scales are chosen: rtn, search.")
@click.option("--embedding-bits", type=int, metavar="4|8", help="Bits of the embedding table and the head.")
@click.option(
    "--precision-config", metavar="FILE", type=click.Path(path_type=Path), help="TOML: precision of single tensors."
)
@click.option("--target", default="ort", show_default=True, metavar="NAME", help="What the graph is for: ort.")
@click.option("--logits", default="last", show_default=True, metavar="last|all|N", help="Positions that get logits.")
@click.option("--context", "context_length", type=int, metavar="N", help="Tokens of context. Default: the model's own.")
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Default: ./gemma-VARIANT-PRECISION.")
@click.option("--force", is_flag=True, help="Replace an existing export once the new one is complete.")
@click.option("--dry-run", is_flag=True, help="Print every file with its size and the memory needed; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="gemma-export")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Turn a Gemma checkpoint into an ONNX folder that onnxruntime runs.

    \b
    gemma-export --variant tiny
    gemma-export --variant 7b --checkpoint ./gemma-7b --fp16
    gemma-export --checkpoint ./my-fine-tune --dry-run
    """
    context.obj = options
    if context.invoked_subcommand is not None:
        _refuse_export_options(context)
        return
    request = _request(options)
    from gemma_export.planning import plan_export

    if options["dry_run"]:
        plan = plan_export(request)
        _warn(plan)
        _print_plan(plan, as_json=options["as_json"])
        return
    _require_packages()
    from gemma_export.pipeline import export
    from gemma_export.progress import make_progress

    result = export(request, make_progress(sys.stderr, quiet=options["as_json"]), on_plan=_announce)
    _print_result(result, as_json=options["as_json"])


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_obj
def variants(options: dict[str, Any], as_json: bool) -> None:
    """List the models that --variant knows, with sizes and licence pages."""
    from gemma_export.request import variant_rows

    rows = variant_rows()
    if as_json or options["as_json"]:
        click.echo(json.dumps(rows, indent=2))
        return
    from gemma_export.progress import format_bytes

    click.echo(f"{'variant':20}{'parameters':>12}{'fp16':>10}  {'prompt':12}licence")
    for row in rows:
        millions = f"{row['parameters'] / 1e6:,.0f} M"
        size = format_bytes(row["fp16_bytes"])
        click.echo(f"{row['variant']:20}{millions:>12}{size:>10}  {row['prompt']:12}{row['license_url']}")
    click.echo("next: gemma-export --variant tiny")


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_obj
def verify(options: dict[str, Any], directory: Path, as_json: bool) -> None:
    """Check a folder by its manifest: structure, sizes, hashes. Loads no weights."""
    _require_packages(("onnx_ir",))
    from gemma_export.artifact import verify_folder
    from gemma_export.progress import make_progress

    quiet = as_json or options["as_json"]
    report = verify_folder(directory, make_progress(sys.stderr, quiet=quiet))
    if quiet:
        content = {
            "ok": True,
            "directory": str(directory),
            "files": len(report.manifest.files),
            "bytes": report.total_bytes,
            "extra_files": report.extra_files,
        }
        click.echo(json.dumps(content))
        return
    for name in report.extra_files:
        click.echo(f"note: {name} is not part of the export", err=True)
    click.echo(
        f"{directory}: {len(report.manifest.files)} files, {report.total_bytes:,} bytes, all as the manifest says"
    )
    click.echo(f'next: gemma-run {_quoted(directory)} "Your prompt"')


def main() -> None:
    """Entry point: runs the command and turns errors into messages and exit codes."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = "--debug" in sys.argv
    try:
        code = cli.main(prog_name="gemma-export", standalone_mode=False)
    except GemmaExportError as error:
        out_of_memory = _is_out_of_memory(error)
        told = ResourceExhaustedError(_OUT_OF_MEMORY, hint=_MEMORY_HINT) if out_of_memory else error
        code = _report(error, told.message, told.hint, told.exit_code, debug=debug)
    except click.ClickException as error:
        code = _report(error, error.format_message(), "See gemma-export --help.", 2, debug=debug)
    except (KeyboardInterrupt, click.Abort) as error:
        code = _report(
            error, "interrupted; nothing is left behind", "Run the command again.", _INTERRUPTED, debug=debug
        )
    except SystemExit:
        # outside standalone mode click ends so in one case only: the reader of stdout went away, no failure of ours
        code = 0
    except Exception as error:  # noqa: BLE001  a bug of ours must still end in a message
        if _is_out_of_memory(error):
            code = _report(error, _OUT_OF_MEMORY, _MEMORY_HINT, ResourceExhaustedError.exit_code, debug=debug)
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            # the folder's own files have errors of their own: this is what was printed
            hint = "Free some space where the output is redirected to."
            code = _report(error, "stdout: no space left on device", hint, 5, debug=debug)
        else:
            hint = "This is a bug of gemma-export: run again with --debug and report the traceback."
            code = _report(error, f"internal error: {type(error).__name__}: {error}", hint, 1, debug=debug)
    sys.exit(code or 0)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says so; torch has no type of its own for it."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _report(error: BaseException, message: str, hint: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {message}\nhint: {hint}", err=True)
    return code


def _request(options: dict[str, Any]) -> ExportRequest:
    from gemma_export.precision import WeightOptions
    from gemma_export.request import ExportRequest

    if options["fp32"] and options["fp16"]:
        raise UsageError("--fp32 and --fp16 exclude each other", hint="One folder holds one precision: run twice.")
    if options["int4"] and options["int8"]:
        raise UsageError("--int4 and --int8 exclude each other", hint="One folder holds one precision: run twice.")
    seed = options["synthetic_seed"]
    if seed is not None and not (seed.isascii() and seed.isdigit() and int(seed) < 1 << 63):
        raise UsageError(
            f"--synthetic-weights takes a seed from 0 to 2^63 - 1, found {seed!r}",
            hint="Leave the seed out for seed 0.",
        )
    if options["output"] is not None and not options["output"].name:
        raise UsageError(f"--output {options['output']} names no folder", hint="Name a folder of its own.")
    return ExportRequest(
        variant=options["variant"],
        checkpoint=options["checkpoint"],
        synthetic_seed=None if seed is None else int(seed),
        precision="fp16" if options["fp16"] else "fp32",
        weights=WeightOptions(
            scheme=next((name for name in ("int4", "int8") if options[name]), None),
            block_size=options["block_size"],
            symmetric=options["symmetric"],
            quantiser=options["quantizer"],
            embedding_bits=options["embedding_bits"],
            config=options["precision_config"],
        ),
        target=options["target"],
        logits=options["logits"],
        context=options["context_length"],
        output=options["output"],
        force=options["force"],
    )


def _refuse_export_options(context: click.Context) -> None:
    """`gemma-export --variant 2b verify DIR` mixes two commands."""
    shared = ("as_json", "debug")
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in shared and source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("synthetic_seed", "synthetic_weights").replace(
                "context_length", "context"
            ).replace("_", "-")
            raise UsageError(
                f"{option} belongs to an export, not to `{context.invoked_subcommand}`", hint="See gemma-export --help."
            )


def _require_packages(names: tuple[str, ...] = _EXPORT_PACKAGES) -> None:
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingResourceError(
            f"packages not installed: {', '.join(missing)}",
            hint='pip install "gemma-export[export]" brings what an export needs.',
        )


def _announce(plan: ExportPlan) -> None:
    _warn(plan)
    click.echo(f"exporting {plan.facts.source} to {plan.output} ({plan.precision.name}, {plan.target.name})", err=True)


def _warn(plan: ExportPlan) -> None:
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)


def _print_plan(plan: ExportPlan, *, as_json: bool) -> None:
    from gemma_export.planning import plan_json
    from gemma_export.progress import format_bytes

    if as_json:
        click.echo(plan_json(plan))
        return
    click.echo(f"{plan.facts.source} -> {plan.output} ({plan.precision.name}, {plan.target.name})")
    for file in plan.files:
        click.echo(f"  {'' if file.exact else '<= '}{file.nbytes:,}".rjust(22) + f"  {file.path}")
    click.echo(f"  {plan.nbytes:,}".rjust(22) + f"  in all ({format_bytes(plan.nbytes)})")
    click.echo(f"memory: about {format_bytes(plan.peak_memory_bytes)} at most; nothing was written")
    click.echo("next: the same command without --dry-run")


def _quoted(path: Path) -> str:
    """A path as the user's shell takes it."""
    return subprocess.list2cmdline([str(path)]) if sys.platform == "win32" else shlex.quote(str(path))


def _print_result(result: ExportResult, *, as_json: bool) -> None:
    from gemma_export.progress import format_bytes

    plan, folder = result.plan, result.folder
    for line in result.recovered:
        click.echo(f"note: {line}", err=True)
    if as_json:
        content = {
            "output": str(plan.output),
            "variant": plan.variant.name if plan.variant else None,
            "precision": plan.precision.name,
            "target": plan.target.name,
            "graphs": [graph.file for graph in plan.graphs],
            "bytes": folder.total_bytes,
            "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
        }
        click.echo(json.dumps(content, indent=2))
        return
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in result.seconds.items())
    click.echo(f"wrote {plan.output}: {format_bytes(folder.total_bytes)} ({stages})")
    prompt = "def read_lines(path):" if plan.facts.source_kind == "builtin" else "Your prompt"
    if plan.checkpoint.has_tokenizer:
        click.echo(f'next: gemma-run {_quoted(plan.output)} "{prompt}"')
    else:
        click.echo(f"next: gemma-export verify {_quoted(plan.output)} (gemma-run needs a tokenizer)")
