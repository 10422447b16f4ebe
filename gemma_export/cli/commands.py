"""The commands and their options. Everything heavy is imported inside them, so that --help is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma_export import __version__
from gemma_export.cli.completion import SHELLS, print_script, target_names, variant_names
from gemma_export.cli.output import announce, print_plan, print_result, print_variants, print_verified, warn
from gemma_export.errors import MissingResourceError, UsageError

if TYPE_CHECKING:
    from gemma_export.request import ExportRequest

__all__ = ["cli"]

# flags of the number formats
_PRECISIONS = ("fp32", "fp16", "bf16")
# and those of the quantised weights
_SCHEMES = ("int4", "int8", "int8_dynamic")
# packages of the `export` extra, by import name
_EXPORT_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "numba", "filelock", "platformdirs")


def _one_of_both(context: click.Context, parameter: click.Parameter, values: tuple[bool, ...]) -> bool | None:
    """Whether a flag was given or its opposite; None where neither was. Click would take the last one given."""
    if len(set(values)) > 1:
        raise UsageError(
            f"{parameter.opts[0]} and {parameter.secondary_opts[0]} exclude each other",
            hint="Give one of them, or neither for the default.",
        )
    return values[0] if values else None


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--variant",
    metavar="NAME",
    shell_complete=variant_names,
    help="A released model, or one of the built-in `tiny` and `tiny2`. See `variants`.",
)
@click.option("--checkpoint", metavar="DIR|ORG/NAME", help="A local folder, or a repository of the Hub.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of the Hub repository. Default: main.")
@click.option("--adapter", metavar="DIR|ORG/NAME", help="A PEFT LoRA, merged into the weights.")
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
@click.option("--bf16", "bf16", is_flag=True, help="bfloat16 weights and activations: CUDA.")
@click.option("--int4", "int4", is_flag=True, help="4-bit weights; with --fp16, float16 activations.")
@click.option("--int8", "int8", is_flag=True, help="8-bit weights; with --fp16, float16 activations.")
@click.option("--int8-dynamic", "int8_dynamic", is_flag=True, help="8-bit weights and activations: CPU throughput.")
@click.option("--block-size", type=int, metavar="N", help="Weights that share a scale: 32, 64, 128 or 256.")
@click.option(
    "--symmetric/--asymmetric", multiple=True, callback=_one_of_both, help="Quantise without or with zero points."
)
@click.option("--quantizer", metavar="NAME", help="How integers are chosen: rtn, search, gptq.")
@click.option(
    "--calibration",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Text for options that run the model. Default: a built-in one.",
)
@click.option("--embedding-bits", type=int, metavar="4|8", help="Bits of the embedding table and the head.")
@click.option("--format", "weight_format", metavar="NAME", help="Of integer weights: nbits (MatMulNBits) or qdq.")
@click.option(
    "--smoothing/--no-smoothing",
    multiple=True,
    callback=_one_of_both,
    help="--int8-dynamic: even out outlier channels (default).",
)
@click.option("--activation-aware", is_flag=True, help="int4, int8: scale channels as calibration text asks.")
@click.option(
    "--precision-config", metavar="FILE", type=click.Path(path_type=Path), help="TOML: precision of single tensors."
)
@click.option(
    "--kv-cache",
    metavar="NAME",
    help="int8: keys and values in 8 bits, scales from text (CPU). Default: as activations.",
)
@click.option("--max-kl", type=float, metavar="X", help="int4: the fewest bytes whose mean KL, measured, is at most X.")
@click.option(
    "--target",
    default="ort",
    show_default=True,
    metavar="NAME",
    shell_complete=target_names,
    help="What the graph is for: ort (CPU, CUDA), portable (standard operators only) or directml.",
)
@click.option(
    "--keep-functions",
    is_flag=True,
    help="With --target portable: keep Gemma's operators as functions, and rotary tables in the file.",
)
@click.option("--logits", default="last", show_default=True, metavar="last|all|N", help="Positions that get logits.")
@click.option("--context", "context_length", type=int, metavar="N", help="Tokens of context. Default: the model's own.")
@click.option(
    "--residual-scale",
    default="auto",
    show_default=True,
    metavar="MODE",
    help="float16: scale the residual stream by 2^-K, exactly: auto, measure, off or K.",
)
@click.option("--output", metavar="DIR", type=click.Path(path_type=Path), help="Default: ./gemma-VARIANT-PRECISION.")
@click.option("--force", is_flag=True, help="Replace an existing export once the new one is complete.")
@click.option("--dry-run", is_flag=True, help="Print every file with its size and the memory needed; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--completion",
    metavar="SHELL",
    type=click.Choice(SHELLS),
    is_eager=True,
    expose_value=False,
    callback=print_script,
    help="Print the completion script: bash, zsh, fish.",
)
@click.version_option(__version__, prog_name="gemma-export")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """Turn a Gemma checkpoint into an ONNX folder that onnxruntime runs.

    \b
    gemma-export --variant tiny
    gemma-export --variant 7b --fp16
    gemma-export --checkpoint ./my-fine-tune --dry-run
    """
    context.obj = options
    if context.invoked_subcommand is not None:
        _refuse_export_options(context)
        return
    request = _request(options)
    from gemma_export.planning import plan_export
    from gemma_export.progress import make_progress

    progress = make_progress(sys.stderr, quiet=options["as_json"])
    if options["dry_run"]:
        plan = plan_export(request, progress)
        warn(plan)
        print_plan(plan, as_json=options["as_json"])
        return
    _require_packages()
    from gemma_export.pipeline import export

    result = export(request, progress, on_plan=announce)
    print_result(result, as_json=options["as_json"])


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
@click.pass_obj
def variants(options: dict[str, Any], as_json: bool) -> None:
    """List the models that --variant knows, with sizes and licence pages."""
    from gemma_export.resolution import variant_rows

    print_variants(variant_rows(), as_json=as_json or options["as_json"])


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

    as_json = as_json or options["as_json"]
    report = verify_folder(directory, make_progress(sys.stderr, quiet=as_json))
    print_verified(directory, report, as_json=as_json)


def _request(options: dict[str, Any]) -> ExportRequest:
    from gemma_export.precision import WeightOptions
    from gemma_export.request import ExportRequest

    precisions = [name for name in _PRECISIONS if options[name]]
    if len(precisions) > 1:
        raise UsageError(
            f"--{precisions[0]} and --{precisions[1]} exclude each other",
            hint="One folder holds one precision: run twice.",
        )
    schemes = [name.replace("_", "-") for name in _SCHEMES if options[name]]
    if len(schemes) > 1:
        raise UsageError(
            f"--{schemes[0]} and --{schemes[1]} exclude each other",
            hint="One folder holds one precision: run twice.",
        )
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
        adapter=options["adapter"],
        revision=options["revision"],
        synthetic_seed=None if seed is None else int(seed),
        precision=precisions[0] if precisions else None,
        weights=WeightOptions(
            scheme=schemes[0] if schemes else None,
            block_size=options["block_size"],
            symmetric=options["symmetric"],
            quantiser=options["quantizer"],
            embedding_bits=options["embedding_bits"],
            format=options["weight_format"],
            smoothing=options["smoothing"],
            activation_aware=options["activation_aware"] or None,
            config=options["precision_config"],
        ),
        calibration=options["calibration"],
        target=options["target"],
        keep_functions=options["keep_functions"],
        logits=options["logits"],
        context=options["context_length"],
        residual_scale=options["residual_scale"],
        kv_cache=options["kv_cache"],
        max_kl=options["max_kl"],
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
            ).replace("weight_format", "format").replace("_", "-")
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
