"""The verdict in the manifest of the folder that was validated."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from gemma_export import __version__
from gemma_export.artifact.lock import lock_output
from gemma_export.errors import OutputError
from gemma_runtime.errors import ManifestError
from gemma_runtime.manifest import MANIFEST_FILE, Manifest, read_manifest
from gemma_validation.files import replace_file
from gemma_validation.findings import Report
from gemma_validation.report.text import clean, public_name

__all__ = ["record_verdict", "verdict_entry"]


def verdict_entry(report: Report) -> dict[str, Any]:
    """What `validation` of the manifest says: manifest.schema.json of gemma_runtime describes it.

    Metrics are those of the whole text, null where nothing was compared or a number is not finite.
    """
    reference = report.reference
    versions = {"gemma-export": __version__, "onnxruntime": report.subject.onnxruntime}
    return {
        "verdict": report.verdict,
        "suite": report.suite,
        "started": clean(report.started),
        "provider": clean(report.subject.provider),
        "weights_sha256": clean(report.subject.weights_sha256),
        "reference": {
            "kind": reference.kind,
            "name": clean(public_name(reference.name)),
            "dtype": clean(reference.dtype),
        },
        "metrics": _metrics(report),
        "versions": {clean(key): clean(value) for key, value in sorted({**reference.versions, **versions}.items())},
    }


def record_verdict(folder: Path, report: Report, *, validated: Manifest | None = None) -> str | None:
    """Writes the verdict into gemma_export.json, in one step and under the folder's lock.

    Args:
        folder: the exported folder that was validated.
        report: of the run.
        validated: the manifest that was read when the run began; nothing is written if the folder has another by now.

    Returns:
        None, or why the manifest is as it was before: a folder that may not be written is no failure of a validation.
    """
    try:
        with lock_output(folder.resolve()):
            return _record(folder, report, validated)
    except (OutputError, ManifestError) as error:
        return f"the verdict is not recorded: {error.message}"
    except ModuleNotFoundError as error:
        # lock_output imports filelock and platformdirs when it is called
        return f"the verdict is not recorded: {error.name} is not installed"
    except OSError as error:
        return f"the verdict is not recorded: writing to {folder}: {error.strerror or error}"


def _record(folder: Path, report: Report, validated: Manifest | None) -> str | None:
    path = folder / MANIFEST_FILE
    manifest = read_manifest(folder)
    if validated is not None and dataclasses.replace(validated, validation=manifest.validation) != manifest:
        return f"the verdict is not recorded: {folder} was exported anew while it was validated"
    if path.is_symlink():
        # a cache of downloads names files by their hashes and shares them
        return f"the verdict is not recorded: {path} is a link, as in a cache of downloads"
    text = dataclasses.replace(manifest, validation=verdict_entry(report)).to_json()
    replace_file(path, text.encode())
    return None


def _metrics(report: Report) -> dict[str, Any] | None:
    drift = next((drift for drift in report.drift if drift.slice == "all"), None)
    if drift is None:
        return None
    values = {
        "kl_mean": drift.kl.mean,
        "kl_mean_upper": drift.kl_mean_upper,
        "kl_p99": drift.kl.p99,
        "top1_agreement": drift.top1_agreement,
        "perplexity_ratio": drift.perplexity_ratio,
    }
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    exact = {"decisive_flips": drift.decisive_flips, "positions": drift.positions, "lower_bound": drift.lower_bound}
    return {**finite, **exact}
