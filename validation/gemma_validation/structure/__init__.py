"""A folder's files and graphs, without running the model: what they are, and whether they say what they must.

facts        the folder as the checks see it
folder       config.json, the tokenizer
consumers    generation_config.json, genai_config.json, tokenizer_config.json
interface    names, symbols, element types, data files, twins
arithmetic   embedding scale, GELU, products, soft-capped logits
norms        which there are, their epsilons
attention    heads, scale, softcap, windows; `attention_parts` and `masks` where it is no kernel
rotary       positions, frequencies, tables
wiring       operators and their counts, weights, caches, the residual stream
modules      what each module of a layer reads
sessions     the folder's sessions, one at a time, each graph profiled once
providers    where each node runs, by those profiles
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gemma_export.artifact import verify_folder
from gemma_export.checkpoint.json_file import read_json
from gemma_export.config import DecoderSpec
from gemma_export.errors import FolderError, GemmaExportError
from gemma_export.families import family_of
from gemma_runtime.errors import GemmaRuntimeError, ManifestError
from gemma_runtime.manifest import Manifest, verify_hashes
from gemma_validation.findings import Check
from gemma_validation.structure import arithmetic, consumers, folder, interface, modules, wiring
from gemma_validation.structure.attention import attention
from gemma_validation.structure.facts import Finder, FolderFacts
from gemma_validation.structure.norms import epsilons
from gemma_validation.structure.providers import PROVIDERS_CHECK, check_providers
from gemma_validation.structure.rotary import rotary_nodes, rotary_tables
from gemma_validation.structure.sessions import ProfiledSessions

__all__ = ["PROVIDERS_CHECK", "ProfiledSessions", "check_providers", "check_structure"]

# name -> what looks for mistakes, and what it says when there are none
_CHECKS: dict[str, tuple[Finder, str]] = {
    "configuration": (folder.configuration, "config.json tells of the manifest's model"),
    "generation configuration": (
        consumers.generation_configuration,
        "its ids exist, BOS is config.json's, ends are ends",
    ),
    "consumer configuration": (consumers.consumer_configuration, "what the exporter derives from config.json"),
    "tokenizer": (folder.tokenizer, "its ids exist, BOS is config.json's, and its files agree"),
    "tokenizer configuration": (consumers.tokenizer_configuration, "BOS is added, the chat template reads messages"),
    "names and symbols": (interface.names_and_symbols, "inputs and outputs are those of the contract"),
    "versions": (interface.versions, "opset and IR version are the target's"),
    "data locations": (interface.data_locations, "weights lie in the graphs' own data file"),
    "element types": (interface.element_types, "floating-point values are of the precision's type"),
    "twins": (interface.twins, "all graphs read the same bytes by the same nodes"),
    "shared bytes": (interface.shared_bytes, "no two weights lie on the same bytes"),
    "operators": (wiring.operators, "counts are the architecture's, and the target has every kernel"),
    "weights": (wiring.weights, "every node reads its own module's weights"),
    "caches": (wiring.caches, "attention reads and writes its own layer's keys and values, and the mask"),
    "residual stream": (wiring.residual_stream, "each sum adds a branch of its own layer"),
    "modules": (modules.inputs, "each reads what the module before it computes"),
    "head": (wiring.head, "logits are the head's output"),
    "epsilon": (epsilons, "every norm's is config.json's"),
    "attention": (attention, "heads, scale, softcap and window are config.json's"),
    "rotary embedding": (rotary_nodes, "cosine and sine are where they belong, in halves"),
    "rotary tables": (rotary_tables, "recomputed from rope_theta"),
    "embedding scale": (arithmetic.embedding_scale, "sqrt(hidden_size), exact in its type"),
    "soft-capping": (arithmetic.soft_cap, "of the logits as config.json has it"),
    "gelu": (arithmetic.gelus, "the tanh form in every layer"),
    "products": (arithmetic.products, "none is transposed or scaled"),
}

# what arithmetic, a look-up or a walk raises over something of another kind or size than it must be
_UNFORESEEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    GemmaExportError,
    GemmaRuntimeError,
)


def check_structure(directory: Path, manifest: Manifest) -> tuple[Check, ...]:
    """Looks at everything that can be seen without running the model.

    Args:
        directory: the exported folder.
        manifest: its manifest, read.

    Returns:
        One check for each thing looked at. What cannot be looked at after a failure is skipped; so is the check of the
        providers then, which otherwise is for `check_providers` to make.
    """
    ended = threading.Event()
    # reading gigabytes takes one core and no lock of Python's
    with ThreadPoolExecutor(1) as beside:
        hashes = beside.submit(_hashes, directory, manifest, ended)
        try:
            files, *checks = _seen_in_files(directory, manifest)
            return files, hashes.result(), *checks
        finally:
            # nobody waits for them after an interruption
            ended.set()


def _seen_in_files(directory: Path, manifest: Manifest) -> tuple[Check, ...]:
    """All of them but the hashes, the check of the files first."""
    checks = [_files(directory)]
    if checks[0].outcome == "failed":
        names = [*_CHECKS, PROVIDERS_CHECK]
        return (*checks, *(_skipped(name, "the files are not those of the manifest") for name in names))
    try:
        spec = _spec(directory)
    except GemmaExportError as error:
        checks.append(Check(group="structure", name="configuration", outcome="failed", message=error.message))
        names = [name for name in (*_CHECKS, PROVIDERS_CHECK) if name != "configuration"]
        return (*checks, *(_skipped(name, "config.json cannot be read") for name in names))
    try:
        facts = _facts(directory, manifest, spec)
    except _UNFORESEEN as error:
        message = " ".join(f"a graph cannot be read: {type(error).__name__}: {error}".split())[:300]
        checks.append(Check(group="structure", name="names and symbols", outcome="failed", message=message))
        names = [name for name in (*_CHECKS, PROVIDERS_CHECK) if name != "names and symbols"]
        return (*checks, *(_skipped(name, "a graph cannot be read") for name in names))
    checks += [_judge(name, find(facts), passed) for name, (find, passed) in _CHECKS.items()]
    return tuple(checks)


def _files(directory: Path) -> Check:
    try:
        report = verify_folder(directory, hash_data=False)
    except FolderError as error:
        return Check(group="structure", name="files", outcome="failed", message=error.message)
    extra = f"; not in the manifest: {', '.join(report.extra_files)}" if report.extra_files else ""
    message = f"{len(report.manifest.files)} files, {report.external_tensors} references to weights{extra}"
    return Check(group="structure", name="files", outcome="passed", message=message)


def _hashes(directory: Path, manifest: Manifest, ended: threading.Event) -> Check:
    def advance(_: int) -> None:
        if ended.is_set():
            raise InterruptedError

    try:
        verify_hashes(directory, manifest, advance)
    except ManifestError as error:
        return Check(group="structure", name="hashes", outcome="failed", message=error.message)
    message = f"{manifest.weight_bytes} bytes of weights are those of the manifest"
    return Check(group="structure", name="hashes", outcome="passed", message=message)


def _spec(directory: Path) -> DecoderSpec:
    config = read_json(directory / "config.json")
    return family_of(config).parse_config(config)[0]


def _facts(directory: Path, manifest: Manifest, spec: DecoderSpec) -> FolderFacts:
    import onnx_ir as ir

    models = {graph.file: ir.load(directory / graph.file) for graph in manifest.graphs}
    return FolderFacts(directory=directory, manifest=manifest, spec=spec, models=models)


def _judge(name: str, problems: Iterator[str], passed: str) -> Check:
    found: list[str] = []
    try:
        found.extend(problems)
    except _UNFORESEEN as error:
        # whatever a folder holds is a finding and no failure of ours
        found.append(" ".join(f"cannot be looked at: {type(error).__name__}: {error}".split())[:300])
    if not found:
        return Check(group="structure", name=name, outcome="passed", message=passed)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Check(group="structure", name=name, outcome="failed", message=f"{found[0]}{more}")


def _skipped(name: str, why: str) -> Check:
    return Check(group="structure", name=name, outcome="skipped", message=why)
