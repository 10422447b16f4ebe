"""Puts the facts together and judges them."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemma_runtime.doctor.caches import Cache, look_at_caches
from gemma_runtime.doctor.folder import Folder, look_at_folder
from gemma_runtime.doctor.installed import Owner, owners_of, pip, repair_commands, versions
from gemma_runtime.doctor.machine import Machine, look_at_machine
from gemma_runtime.doctor.problem import Problem
from gemma_runtime.doctor.providers import Imported, Provider, import_onnxruntime, start_provider
from gemma_runtime.graph_choice import PROVIDERS, release

__all__ = ["Diagnosis", "Telemetry", "diagnose"]

_TELEMETRY = "ORT_DISABLE_TELEMETRY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Telemetry:
    """Whether onnxruntime sends anything when gemma-run uses it."""

    off: bool
    # what the user's environment says; None: gemma-run sets it
    environment: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything that was found."""

    versions: Mapping[str, str | None]
    python: str
    onnxruntime: Imported
    owners: tuple[Owner, ...]
    machine: Machine
    providers: tuple[Provider, ...]
    telemetry: Telemetry
    caches: tuple[Cache, ...]
    folder: Folder | None
    # errors before warnings
    problems: tuple[Problem, ...]
    # one line: what to do now
    next: str

    @property
    def exit_code(self) -> int:
        """0, or the first error's."""
        return next((problem.exit_code for problem in self.problems if problem.exit_code), 0)


def diagnose(directory: Path | None = None) -> Diagnosis:
    """Looks at the installation, the machine and, if given, one exported folder.

    onnxruntime is imported and started in processes of their own: an installation that crashes is a finding.
    """
    # nothing is written, not even bytecode
    sys.dont_write_bytecode = True
    owners = owners_of("onnxruntime")
    imported = import_onnxruntime()
    providers = tuple(start_provider(name) for name in imported.available)
    machine, caches, telemetry = look_at_machine(), look_at_caches(), _telemetry()
    problems = [*_installation_problems(owners, imported), *_provider_problems(imported, providers)]
    problems += [*_telemetry_problems(telemetry), *_cache_problems(caches)]
    folder = None
    if directory is not None:
        folder, found = look_at_folder(
            directory,
            onnxruntime=imported.version if imported.error is None else None,
            starting=[provider.name for provider in providers if provider.starts],
            memory=machine.memory,
        )
        problems += found
    problems.sort(key=lambda problem: problem.exit_code == 0)
    return Diagnosis(
        versions=versions(),
        python=sys.executable,
        onnxruntime=imported,
        owners=owners,
        machine=machine,
        providers=providers,
        telemetry=telemetry,
        caches=caches,
        folder=folder,
        problems=tuple(problems),
        next=_next(problems, folder),
    )


def _installation_problems(owners: Sequence[Owner], imported: Imported) -> list[Problem]:
    """At most one: whatever else is wrong with files that two packages wrote is the first one's consequence."""
    commands = repair_commands("onnxruntime", owners)
    names = " and ".join(f"{owner.name} {owner.version}" for owner in owners)
    hint = "Uninstall, then install exactly one again: " + "; ".join(commands)
    if len(owners) > 1:
        message = f"{names} install the same import package `onnxruntime` and overwrite each other"
        return [Problem(kind="conflict", message=message, hint=hint, commands=commands)]
    if imported.error is not None and not owners and imported.file is None and "No module named" in imported.error:
        hint = f"Install one: {commands[-1]}"
        return [Problem(kind="missing", message="onnxruntime is not installed", hint=hint, commands=commands)]
    foreign = imported.file is not None and not _inside(imported.file, owners)
    if imported.error is not None:
        if foreign:
            hint = f"Remove {_folder_of(imported.file)} (a leftover, or on PYTHONPATH), then: {'; '.join(commands)}"
        message = f"{names or 'onnxruntime, owned by no package,'} cannot be imported: {imported.error}"
        return [Problem(kind="broken", message=message, hint=hint, commands=commands)]
    if foreign:
        message = f"onnxruntime is imported from {imported.file}, which {names or 'no installed package'} does not own"
        hint = "Remove that folder from PYTHONPATH unless it is what you want."
        return [Problem(kind="mismatch", message=message, hint=hint, exit_code=0)]
    if release(owners[0].version) != release(imported.version or ""):
        message = f"{names} is installed, but its files say {imported.version}: another package wrote over them"
        return [Problem(kind="mismatch", message=message, hint=hint, commands=commands)]
    return []


def _inside(file: str | None, owners: Sequence[Owner]) -> bool:
    """Whether a module's file lies where a distribution is installed."""
    if not file:
        return False
    path = os.path.realpath(file)
    # <location>/onnxruntime/__init__.py, or the folder itself
    places = {os.path.dirname(path), os.path.dirname(os.path.dirname(path))}
    return any(os.path.realpath(owner.location) in places for owner in owners)


def _folder_of(file: str | None) -> str:
    path = file or ""
    return os.path.dirname(path) if path.endswith(".py") else path


def _provider_problems(imported: Imported, providers: Sequence[Provider]) -> list[Problem]:
    if imported.error is not None:
        return []
    if not any(provider.starts for provider in providers):
        reasons = "; ".join(f"{provider.name}: {provider.reason}" for provider in providers) or "it has none"
        commands = repair_commands("onnxruntime", owners_of("onnxruntime"))
        hint = "Install onnxruntime again: " + "; ".join(commands)
        message = f"no execution provider starts: {reasons}"
        return [Problem(kind="provider", message=message, hint=hint, commands=commands)]
    hints = {
        "CUDAExecutionProvider": f"Check the driver (nvidia-smi), then {' '.join(pip('install')[1:])} "
        '"onnxruntime-gpu[cuda,cudnn]" for its libraries.',
        "DmlExecutionProvider": "Update the graphics driver.",
    }
    # Azure's provider sends nodes to a remote service and takes none of an ordinary graph: no fault of this machine
    return [
        Problem(kind="provider", message=f"{one.name} does not start: {one.reason}", hint=hints[one.name], exit_code=0)
        for one in providers
        if not one.starts and one.name in hints
    ]


def _telemetry() -> Telemetry:
    told = os.environ.get(_TELEMETRY)
    return Telemetry(off=told is None or told.strip().lower() in ("1", "true", "yes", "on"), environment=told)


def _telemetry_problems(telemetry: Telemetry) -> list[Problem]:
    if telemetry.off:
        return []
    message = f"{_TELEMETRY}={telemetry.environment} leaves onnxruntime's telemetry on"
    hint = f"Unset {_TELEMETRY}: gemma-run then switches it off."
    return [Problem(kind="telemetry", message=message, hint=hint, exit_code=0)]


def _cache_problems(caches: Sequence[Cache]) -> list[Problem]:
    variables = {"hub": "HF_HUB_CACHE", "gemma-export": "GEMMA_EXPORT_CACHE"}
    return [
        Problem(
            kind="cache",
            message=f"the {cache.name} cache cannot be read: {cache.error}",
            hint=f"Correct its rights, or set {variables[cache.name]} to a directory of yours.",
            exit_code=0,
        )
        for cache in caches
        if cache.error is not None
    ]


def _next(problems: Sequence[Problem], folder: Folder | None) -> str:
    first = next((problem for problem in problems if problem.exit_code), None)
    if first is not None:
        return "; ".join(first.commands) or first.hint
    if folder is None:
        return "gemma-export --variant tiny"
    provider = next((name for name in folder.providers_starting if name in PROVIDERS), "cpu")
    path = subprocess.list2cmdline([folder.path]) if sys.platform == "win32" else shlex.quote(folder.path)
    return f'gemma-run {path} "Your prompt"' + ("" if provider == "cpu" else f" --provider {provider}")
