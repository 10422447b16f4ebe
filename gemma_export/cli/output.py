"""What the commands print: results on stdout, for people or as JSON (schemas/*.schema.json); notes on stderr."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemma_export import JSON_VERSION

if TYPE_CHECKING:
    from gemma_export.artifact import VerifyReport
    from gemma_export.pipeline import ExportResult
    from gemma_export.planning import ExportPlan

__all__ = ["announce", "print_plan", "print_result", "print_variants", "print_verified", "warn"]


def announce(plan: ExportPlan) -> None:
    """Says what is about to be exported."""
    warn(plan)
    click.echo(f"exporting {plan.facts.source} to {plan.output} ({plan.precision.name}, {plan.target.name})", err=True)
    if plan.facts.quantised_by is not None:
        click.echo(f"note: the weights are the checkpoint's own integers ({plan.facts.quantised_by})", err=True)


def warn(plan: ExportPlan) -> None:
    """Prints the warnings of a plan."""
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)


def print_plan(plan: ExportPlan, *, as_json: bool) -> None:
    """Prints what an export would write."""
    from gemma_export.plan_json import cache_json, plan_json
    from gemma_export.progress import format_bytes

    if as_json:
        click.echo(plan_json(plan))
        return
    click.echo(f"{plan.facts.source} -> {plan.output} ({plan.precision.name}, {plan.target.name})")
    if plan.facts.quantised_by is not None:
        click.echo(f"weights: the checkpoint's own integers ({plan.facts.quantised_by})")
    for file in plan.files:
        click.echo(f"  {'' if file.exact else '<= '}{file.nbytes:,}".rjust(22) + f"  {file.path}")
    click.echo(f"  {plan.nbytes:,}".rjust(22) + f"  in all ({format_bytes(plan.nbytes)})")
    if plan.smallest_data is not None:
        low, high = format_bytes(plan.smallest_data), format_bytes(plan.data.size)
        click.echo(f"weights: {low} to {high}, as --max-kl {plan.request.max_kl:g} needs: an export measures it first")
    if plan.download_bytes:
        click.echo(f"download: {format_bytes(plan.download_bytes)} ({plan.download_bytes:,} bytes) of weights")
    elif plan.facts.source_kind == "hub":
        click.echo("download: nothing, the weights are in the Hub cache")
    cache = cache_json(plan)
    click.echo(f"cache: {cache['bytes_per_token']:,} bytes of {cache['dtype']} keys and values a token, when it runs")
    if cache["windowed_full_context_bytes"] is not None:
        full, windowed = (format_bytes(cache[f"{kind}full_context_bytes"]) for kind in ("", "windowed_"))
        tokens = plan.spec.max_position_embeddings
        click.echo(f"window-sized caches: {windowed} instead of {full} at the full context of {tokens:,} tokens")
    click.echo(f"memory: about {format_bytes(plan.peak_memory_bytes)} at most; nothing was written")
    click.echo("next: the same command without --dry-run")


def print_result(result: ExportResult, *, as_json: bool) -> None:
    """Prints what an export has written, and the next command."""
    from gemma_export.plan_json import adapter_json, cache_json
    from gemma_export.progress import format_bytes

    plan, folder = result.plan, result.folder
    for line in (*result.recovered, *result.notes):
        click.echo(f"note: {line}", err=True)
    for line in result.warnings:
        click.echo(f"warning: {line}", err=True)
    if as_json:
        scale = result.options.get("residual_scale")
        content = {
            "schema_version": JSON_VERSION,
            "output": str(plan.output),
            "variant": plan.variant.name if plan.variant else None,
            "adapter": adapter_json(plan.merge),
            "precision": plan.precision.name,
            "target": plan.target.name,
            "graphs": [graph.file for graph in plan.graphs],
            "bytes": folder.total_bytes,
            "kv_cache": cache_json(plan),
            "residual_scale": None if scale is None else {"measured": None, **scale},
            "mixed_precision": None if result.mixed is None else result.mixed.to_dict(),
            "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
        }
        click.echo(json.dumps(content, indent=2))
        return
    if result.mixed is not None:
        for line in result.mixed.table():
            click.echo(line)
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in result.seconds.items())
    click.echo(f"wrote {plan.output}: {format_bytes(folder.total_bytes)} ({stages})")
    prompt = "def read_lines(path):" if plan.facts.source_kind == "builtin" else "Your prompt"
    if plan.checkpoint.has_tokenizer:
        click.echo(_next_run(plan.output, plan.facts.providers, prompt))
    else:
        click.echo(f"next: gemma-export verify {_quoted(plan.output)} (gemma-run needs a tokenizer)")


def print_variants(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Prints the table of variants."""
    if as_json:
        click.echo(json.dumps({"schema_version": JSON_VERSION, "variants": rows}, indent=2))
        return
    from gemma_export.progress import format_bytes

    click.echo(f"{'variant':20}{'parameters':>12}{'fp16':>10}  {'prompt':12}licence")
    for row in rows:
        millions = f"{row['parameters'] / 1e6:,.0f} M"
        size = format_bytes(row["fp16_bytes"])
        click.echo(f"{row['variant']:20}{millions:>12}{size:>10}  {row['prompt']:12}{row['license_url']}")
    click.echo("next: gemma-export --variant tiny")


def print_verified(directory: Path, report: VerifyReport, *, as_json: bool) -> None:
    """Prints what `verify` has found right."""
    files = len(report.manifest.files)
    if as_json:
        content = {
            "schema_version": JSON_VERSION,
            "ok": True,
            "directory": str(directory),
            "files": files,
            "bytes": report.total_bytes,
            "extra_files": report.extra_files,
        }
        click.echo(json.dumps(content, indent=2))
        return
    for name in report.extra_files:
        click.echo(f"note: {name} is not part of the export", err=True)
    click.echo(f"{directory}: {files} files, {report.total_bytes:,} bytes, all as the manifest says")
    click.echo(_next_run(directory, report.manifest.providers, "Your prompt"))


def _next_run(folder: Path, providers: Sequence[str], prompt: str) -> str:
    """The command that runs a folder; the CPU, where it can, needs no option."""
    provider = "" if "cpu" in providers else f"--provider {providers[0]} "
    return f'next: gemma-run {_quoted(folder)} {provider}"{prompt}"'


def _quoted(path: Path) -> str:
    """A path as the user's shell takes it."""
    return subprocess.list2cmdline([str(path)]) if sys.platform == "win32" else shlex.quote(str(path))
