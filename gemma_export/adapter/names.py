"""What the tensors of an adapter file are, by PEFT's names. Torch-free.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight      [rank, in]     also .lora_A.default.weight
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight      [out, rank]
    base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector      [out], DoRA
    base_model.model.model.embed_tokens.lora_embedding_A                [rank, vocabulary]
    base_model.model.model.embed_tokens.lora_embedding_B                [hidden, rank]
    base_model.model.model.embed_tokens.base_layer.weight               the base's table, saved with its adapter
    base_model.model.lm_head.weight                                     modules_to_save, whole

An adapter of a vision-language model has that model's longer names; those of its vision tower mean nothing to text.

Source: https://github.com/huggingface/peft/blob/main/src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from gemma_export.adapter.targets import module_kinds
from gemma_export.checkpoint.text_part import is_of_images, text_name, text_prefix, whole_name
from gemma_export.errors import CheckpointError

__all__ = ["AdapterNames", "sort_names"]

_PREFIX = "base_model.model."
# a module's part, the name of the adapter where it is kept, and for modules the parameter's own name
_PART = re.compile(
    r"(?P<module>.+?)\.(?:(?P<factor>lora_[AB])(?:\.[^.]+)?\.weight"
    r"|(?P<table>lora_embedding_[AB])(?:\.[^.]+)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?)"
)
_WRAPPER = re.compile(r"\.(?:base_layer|modules_to_save(?:\.[^.]+)?)(?=\.(?:weight|bias)$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterNames:
    """Names of an adapter's tensors by what they are."""

    # module -> part ("A", "B" or "magnitude") -> tensor of the adapter
    parts: Mapping[str, Mapping[str, str]]
    # modules whose factors are an embedding's
    embeddings: frozenset[str]
    # tensor of the base model -> tensor of the adapter that takes its place
    whole: Mapping[str, str]
    # what the text decoder's modules begin with where the adapter was trained on a vision-language model
    prefix: str | None = None

    def trained(self, module: str) -> str:
        """What the model that the adapter was trained on calls a module, as the configuration's patterns mean it."""
        return module if self.prefix is None else whole_name(module, self.prefix)


def sort_names(names: Iterable[str], base: Mapping[str, tuple[int, ...]]) -> AdapterNames:
    """Says what each tensor of an adapter is.

    Args:
        names: of the adapter's tensors.
        base: tensors of the base model and their shapes, the head among them.

    Raises:
        CheckpointError: a tensor is none of an adapter's, belongs to no tensor of the base model, or is there twice.
    """
    parts: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    whole: dict[str, str] = {}
    names = tuple(names)
    prefix = text_prefix(name.removeprefix(_PREFIX) for name in names)
    for name in names:
        inner: str | None = name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None
        if prefix is not None and inner is not None:
            if is_of_images(inner):
                continue
            inner = text_name(inner, prefix)
        match = _PART.fullmatch(inner) if inner is not None else None
        if match is not None and f"{match['module']}.weight" in base:
            if match["table"]:
                embeddings.add(match["module"])
            part = "magnitude" if match["magnitude"] else (match["factor"] or match["table"])[-1]
            _put(parts.setdefault(match["module"], {}), part, name)
        elif match is None and inner is not None and (tensor := _WRAPPER.sub("", inner)) in base:
            _put(whole, tensor, name)
        else:
            raise _stranger(name, match["module"] if match else None, base)
    return AdapterNames(parts=parts, embeddings=frozenset(embeddings), whole=whole, prefix=prefix)


def _put(target: dict[str, str], key: str, name: str) -> None:
    if key in target:
        raise CheckpointError(
            f"adapter tensors {target[key][:120]!r} and {name[:120]!r} say the same thing twice",
            hint="The file holds several adapters: save the one to be merged alone.",
        )
    target[key] = name


def _stranger(name: str, module: str | None, base: Mapping[str, tuple[int, ...]]) -> CheckpointError:
    matrices = (tensor.removesuffix(".weight") for tensor, shape in base.items() if len(shape) == 2)
    shown = f"adapter tensor {name[:160]!r}"
    if module is not None:
        return CheckpointError(
            f"{shown}: the base model has no module {module[:120]}, expected one of: {module_kinds(matrices)}",
            hint="The adapter was made for another model, or targets modules that this architecture does not have.",
        )
    return CheckpointError(
        f"{shown} belongs to no tensor of the base model, expected {_PREFIX}MODULE.lora_A.weight or lora_B.weight",
        hint="Save the adapter with PEFT; biases, prompts and trained tokens cannot be merged.",
    )
