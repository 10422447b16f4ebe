"""A diagnosis for people and for machines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from gemma_runtime.doctor.diagnosis import Diagnosis
from gemma_runtime.doctor.folder import Folder
from gemma_runtime.doctor.machine import Machine

__all__ = ["diagnosis_json", "diagnosis_text"]

_SCHEMA_VERSION = 1


def diagnosis_json(diagnosis: Diagnosis) -> str:
    """See schemas/doctor.schema.json. ASCII, so that any path survives any console."""
    content = {
        "schema_version": _SCHEMA_VERSION,
        "ok": diagnosis.exit_code == 0,
        "exit_code": diagnosis.exit_code,
        **dataclasses.asdict(diagnosis),
    }
    return json.dumps(content, indent=2)


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Facts, then problems and warnings, then the one line that says what to do next."""
    lines = [*_packages(diagnosis), *_machine(diagnosis.machine), *_providers(diagnosis), *_places(diagnosis)]
    if diagnosis.folder is not None:
        lines += _folder(diagnosis.folder)
    for problem in diagnosis.problems:
        word = "problem" if problem.exit_code else "warning"
        lines += [f"{word}: {problem.message}", f"  {problem.hint}"]
    return "\n".join([*lines, f"next: {diagnosis.next}"])


def _row(key: str, value: str) -> str:
    return f"{key:14}{value}"


def _packages(diagnosis: Diagnosis) -> Iterator[str]:
    known = {name: version for name, version in diagnosis.versions.items() if name != "python"}
    yield _row("python", f"{diagnosis.versions['python']} ({diagnosis.python})")
    owners = " and ".join(f"{owner.name} {owner.version}" for owner in diagnosis.owners)
    found = diagnosis.onnxruntime
    told = f"does not import: {found.error}" if found.error is not None else f"{found.version} ({found.file})"
    yield _row("onnxruntime", f"{told}, installed by {owners or 'no package'}")
    yield _row("packages", ", ".join(f"{name} {version}" for name, version in known.items() if version is not None))
    missing = [name for name, version in known.items() if version is None]
    if missing:
        yield _row("", f"not installed: {', '.join(missing)}")


def _machine(machine: Machine) -> Iterator[str]:
    yield _row("platform", machine.platform)
    words: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, there in machine.features.items():
        words[there].append(name)
    told = [
        f"{lead}{', '.join(words[there])}"
        for there, lead in ((True, ""), (False, "without "), (None, "unknown: "))
        if words[there]
    ]
    yield _row("processor", f"{machine.processor or machine.architecture}: {'; '.join(told)}")
    cores = machine.cores
    limit = "" if cores.cgroup_limit is None else f", {cores.cgroup_limit:g} by control group"
    yield _row("cores", f"{cores.usable} usable of {cores.logical} ({cores.affinity} by affinity{limit})")
    memory = machine.memory
    group = "" if memory.cgroup_limit is None else f", control group's limit {_size(memory.cgroup_limit)}"
    yield _row("memory", f"{_size(memory.available)} available of {_size(memory.total)}{group}")


def _providers(diagnosis: Diagnosis) -> Iterator[str]:
    for provider in diagnosis.providers:
        name = provider.name.removesuffix("ExecutionProvider")
        yield _row("provider", f"{name}: {'starts' if provider.starts else f'does not start: {provider.reason}'}")


def _places(diagnosis: Diagnosis) -> Iterator[str]:
    telemetry = diagnosis.telemetry
    source = (
        "gemma-run sets ORT_DISABLE_TELEMETRY=1"
        if telemetry.environment is None
        else f"ORT_DISABLE_TELEMETRY={telemetry.environment}"
    )
    yield _row("telemetry", f"{'off' if telemetry.off else 'on'} ({source})")
    for cache in diagnosis.caches:
        held = f"{_size(cache.size)} in {cache.files} files" if cache.exists else "nothing yet"
        yield _row("cache", f"{cache.name}, {cache.path}: {held}")


def _folder(folder: Folder) -> Iterator[str]:
    yield _row("folder", f"{folder.path}: {folder.target or '?'}, {folder.precision or '?'}")
    if folder.graph is not None:
        yield _row("", f"graph {folder.graph} on this onnxruntime")
    if folder.providers:
        starting = ", ".join(folder.providers_starting) or "none"
        yield _row("", f"runs on {', '.join(folder.providers)}; of these start here: {starting}")
    if folder.memory_bytes is not None:
        yield _row(
            "",
            f"memory about {_size(folder.memory_bytes)}, {_size(folder.memory_bytes_full_context)} with a full "
            f"context (weights {_size(folder.weights_bytes)})",
        )


def _size(count: int | None) -> str:
    """Decimal units, as gemma-export prints them."""
    if count is None:
        return "unknown"
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
