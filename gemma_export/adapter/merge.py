"""What a merge makes of each tensor of the base model, held against names and shapes. Torch-free; reads no factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gemma_export.adapter.adapter import Adapter
from gemma_export.adapter.names import AdapterNames, sort_names
from gemma_export.adapter.pattern_guard import check_patterns
from gemma_export.adapter.targets import is_saved_whole, rank_and_scale, target_modules
from gemma_export.checkpoint import same_bytes
from gemma_export.errors import CheckpointError
from gemma_export.tensors import DTYPE_BYTES

__all__ = ["Factors", "Merge", "MergedTensor", "plan_merge"]

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_UNTIE = 'Set "tie_word_embeddings": false and store lm_head.weight in the base checkpoint, then merge.'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """The low-rank change of one tensor: scale * B @ A."""

    # tensors of the adapter: A [rank, in], B [out, rank]; for an embedding A [rank, vocabulary], B [hidden, rank]
    a: str
    b: str
    # DoRA's norm of each row, [out]
    magnitude: str | None
    rank: int
    scale: float
    # the table is [vocabulary, hidden]: the transpose of B @ A is added
    embedding: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedTensor:
    """Where one tensor of the merged model comes from."""

    # tensor that the factors change: of the adapter where it is saved whole there, else of the checkpoint
    base: str
    from_adapter: bool
    factors: Factors | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """An adapter held against a base model: everything fits."""

    adapter: Adapter
    # tensor of the merged model -> where it comes from; others are the checkpoint's
    tensors: Mapping[str, MergedTensor]
    # whether the merged model's head is its embedding
    tied: bool

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, ascending."""
        return tuple(sorted({merged.factors.rank for merged in self.tensors.values() if merged.factors is not None}))

    @property
    def resident_bytes(self) -> int:
        """What the largest factors take in memory as float32 while their tensor streams."""
        sizes = [0]
        for merged in self.tensors.values():
            if merged.factors is not None:
                shapes = [self.adapter.source.tensors[name].shape for name in (merged.factors.a, merged.factors.b)]
                sizes.append(sum(4 * rows * columns for rows, columns in shapes))
        return max(sizes)


def plan_merge(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> Merge:
    """Holds an adapter against the base model; what PEFT's merge_and_unload would compute is planned, or refused.

    Args:
        adapter: an opened adapter.
        shapes: tensor -> shape of the base model.
        tied: the base model's head is its embedding.

    Raises:
        CheckpointError: names the tensor or module, what was expected and what was found.
        ConfigError: one of the configuration's regular expressions does not come to an end.
    """
    modules = {**shapes, f"{_HEAD}.weight": shapes[f"{_EMBEDDING}.weight"]}
    names = sort_names(adapter.source.tensors, modules)
    check_patterns(adapter.config, [names.trained(tensor.removesuffix(".weight")) for tensor in modules])
    _check_kinds(adapter, names, modules)
    if tied:
        _refuse_tied_factors(names)
    merged = {}
    for tensor, name in names.whole.items():
        _check_shape(adapter, name, modules[tensor], f"tensor {tensor}")
        merged[tensor] = MergedTensor(base=name, from_adapter=True, factors=None)
    # shapes before completeness: they tell best that this is an adapter of another model
    for module in names.parts:
        tensor = f"{module}.weight"
        factors = _factors(adapter, names, module, modules[tensor])
        base = merged.get(tensor, MergedTensor(base=tensor, from_adapter=False, factors=None))
        merged[tensor] = dataclasses.replace(base, factors=factors)
    _check_targets(adapter, names, modules)
    _check_saved(adapter, names, modules)
    return Merge(adapter=adapter, tensors=merged, tied=_tie(adapter, names, merged) if tied else False)


def _check_kinds(adapter: Adapter, names: AdapterNames, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, tensor in adapter.source.tensors.items():
        if tensor.dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"adapter tensor {name[:160]}: expected {', '.join(DTYPE_BYTES)}, found {tensor.dtype}",
                hint="Save the adapter in a floating-point type.",
            )
    for module in names.parts:
        shape = shapes[f"{module}.weight"]
        if len(shape) != 2:
            raise CheckpointError(
                f"the adapter changes {module} of shape {list(shape)} by factors, expected a matrix",
                hint="LoRA changes projections and the embedding; PEFT refuses other modules too.",
            )


def _check_targets(adapter: Adapter, names: AdapterNames, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The configuration's targets and the tensors must agree, both ways: a truncated adapter is no adapter."""
    modules = [tensor.removesuffix(".weight") for tensor, shape in shapes.items() if len(shape) == 2]
    trained = {names.trained(module): module for module in modules}
    linear = [name for name, module in trained.items() if module not in (_EMBEDDING, _HEAD)]
    found = target_modules(adapter.config, trained, linear, complete=names.prefix is None)
    targets = {trained[name] for name in found}
    missing = [module for module in modules if module in targets and module not in names.parts]
    if missing:
        raise CheckpointError(
            f"the adapter has no tensors for {missing[0]}, one of {len(targets)} modules that adapter_config.json "
            f"targets ({len(missing)} missing)",
            hint="The file is incomplete: save it again; layers_to_transform says which layers were trained.",
        )
    strange = [module for module in names.parts if module not in targets]
    if strange:
        raise CheckpointError(
            f"the adapter has tensors for {strange[0]}, which adapter_config.json does not target",
            hint="adapter_config.json and the tensors are of two adapters: fetch both again.",
        )


def _check_saved(adapter: Adapter, names: AdapterNames, shapes: Mapping[str, tuple[int, ...]]) -> None:
    lacking = [
        module
        for module in (tensor.removesuffix(".weight") for tensor in shapes if tensor.endswith(".weight"))
        if is_saved_whole(adapter.config, names.trained(module))
        and f"{module}.weight" not in names.whole
        # a head that is kept tied is saved once
        and not (module == _HEAD and adapter.config.ensure_weight_tying)
    ]
    if lacking:
        raise CheckpointError(
            f"the adapter has no tensor for {lacking[0]}, which modules_to_save says is saved whole",
            hint="The file is incomplete: save the adapter again.",
        )


def _refuse_tied_factors(names: AdapterNames) -> None:
    """PEFT's merge adds the change to the one table that embedding and head share; its own forward pass does not."""
    for module in (_EMBEDDING, _HEAD):
        if module in names.parts:
            raise CheckpointError(
                f"the adapter changes {module}, but the base model's embedding and head are one table: merging would "
                "change both, which is not what was trained",
                hint=_UNTIE,
            )


def _factors(adapter: Adapter, names: AdapterNames, module: str, shape: tuple[int, ...]) -> Factors:
    parts, embedding = names.parts[module], module in names.embeddings
    for part, other in (("A", "B"), ("B", "A")):
        if part not in parts:
            raise CheckpointError(
                f"the adapter has lora_{other} but no lora_{part} for {module}"
                if other in parts
                else f"the adapter has neither lora_A nor lora_B for {module}",
                hint="The file is incomplete: save the adapter again.",
            )
    if embedding != (module == _EMBEDDING):
        raise CheckpointError(
            f"adapter tensor {parts['A'][:160]}: expected {'lora_A' if embedding else 'lora_embedding_A'} for {module}",
            hint="Embeddings have lora_embedding_A and lora_embedding_B, projections lora_A and lora_B.",
        )
    decomposed = adapter.config.weight_decomposed
    if decomposed and embedding:
        raise CheckpointError(
            f"use_dora is true and {module} is targeted: the norms of an embedding's columns are not implemented",
            hint="Train the embedding through modules_to_save, or without DoRA.",
        )
    if decomposed != ("magnitude" in parts):
        found = "a" if "magnitude" in parts else "no"
        raise CheckpointError(
            f"use_dora is {str(decomposed).lower()}, but there is {found} lora_magnitude_vector for {module}",
            hint="adapter_config.json and the tensors are of two adapters: fetch both again.",
        )
    rank, scale = rank_and_scale(adapter.config, names.trained(module))
    rows, columns = reversed(shape) if embedding else shape
    where = f"rank {rank} of adapter_config.json and {module}.weight {list(shape)}"
    _check_shape(adapter, parts["A"], (rank, columns), where)
    _check_shape(adapter, parts["B"], (rows, rank), where)
    if decomposed:
        _check_shape(adapter, parts["magnitude"], (rows,), where)
    return Factors(
        a=parts["A"],
        b=parts["B"],
        magnitude=parts.get("magnitude"),
        rank=rank,
        scale=scale,
        embedding=embedding,
    )


def _check_shape(adapter: Adapter, name: str, expected: tuple[int, ...], why: str) -> None:
    found = adapter.source.tensors[name].shape
    if found != expected:
        raise CheckpointError(
            f"adapter tensor {name[:160]}: expected shape {list(expected)} from {why}, found {list(found)}",
            hint="The adapter is of another base model or size, or adapter_config.json is another adapter's.",
        )


def _tie(adapter: Adapter, names: AdapterNames, merged: dict[str, MergedTensor]) -> bool:
    """Whether a tied base model stays tied when an embedding or head is saved whole; completes `merged`.

    Like PEFT: a module of modules_to_save is a copy, so the other one stays the base's; what was saved beside the
    adapter (a table with save_embedding_layers, or copies tied by ensure_weight_tying) replaces the shared table.
    """
    table, head = merged.get(f"{_EMBEDDING}.weight"), merged.get(f"{_HEAD}.weight")
    if table is None and head is None:
        return True
    copies = any(is_saved_whole(adapter.config, names.trained(module)) for module in (_EMBEDDING, _HEAD))
    if table is not None and head is not None:
        tied = same_bytes(adapter.source, table.base, head.base)
        if not tied and (adapter.config.ensure_weight_tying or not copies):
            raise CheckpointError(
                f"adapter tensors {table.base} and {head.base} differ, but the base model's embedding and head are one",
                hint=_UNTIE,
            )
    else:
        tied = adapter.config.ensure_weight_tying or not copies
    base = MergedTensor(base=f"{_EMBEDDING}.weight", from_adapter=False, factors=None)
    merged[f"{_EMBEDDING}.weight"] = (table or head or base) if tied else (table or base)
    merged[f"{_HEAD}.weight"] = head or base
    if tied:
        del merged[f"{_HEAD}.weight"]
    return tied
