"""What a prompt may be, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from gemma_runtime.chat import Message, chat_ids
from gemma_runtime.errors import ManifestError, PromptError

if TYPE_CHECKING:
    from gemma_runtime.manifest import Manifest
    from gemma_runtime.tokenizer import Tokenizer

__all__ = ["Prompt", "check_ids", "prompt_ids"]

# a text to continue, the messages of a conversation, or token ids as they are
Prompt: TypeAlias = "str | Sequence[int] | Sequence[Message | Mapping[str, str]]"


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, manifest: Manifest, *, folds_system: bool = False) -> list[int]:
    """Token ids of a prompt, at least one, at most as many as the context holds.

    Args:
        prompt: text (special tokens written in it count as such; one BOS is put in front), messages, or ids.
        tokenizer: of the folder.
        manifest: of the folder.
        folds_system: whether its chat template has room for a system message.

    Raises:
        PromptError: empty, not encodable, ids out of range, the token that stands for a part of an image, or longer
            than the context.
        ManifestError: the tokenizer gives ids that the model has no rows for.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the prompt is empty", hint="Give a text to continue.")
        ids = tokenizer.encode(_encodable(prompt))
    elif isinstance(prompt, (bytes, bytearray, memoryview)):
        raise PromptError("a prompt is text, found bytes", hint="Decode them: prompt.decode().")
    elif not isinstance(prompt, Sequence) or len(prompt) == 0:
        raise PromptError(
            f"a prompt is a text, messages or token ids, found {type(prompt).__name__}"
            if not isinstance(prompt, Sequence)
            else "the prompt is empty",
            hint="Give a text to continue.",
        )
    elif all(isinstance(item, (Message, Mapping)) for item in prompt):
        ids = chat_ids(prompt, tokenizer=tokenizer, folds_system=folds_system)  # type: ignore[arg-type]
    else:
        ids = check_ids(prompt, manifest)  # type: ignore[arg-type]
    _refuse_image(ids, tokenizer, manifest)
    wrong = next((token for token in ids if not 0 <= token < manifest.vocab_size), None)
    if wrong is not None:
        raise ManifestError(
            f"the tokenizer gives token id {wrong}, the embedding has {manifest.vocab_size} rows",
            hint="The tokenizer belongs to another model: export again with the right tokenizer files.",
        )
    return check_length(ids, manifest)


def _refuse_image(ids: Sequence[int], tokenizer: Tokenizer, manifest: Manifest) -> None:
    """Gemma 3's tokenizer is that of models with images: of 4B and more its token has a row, of the others none."""
    image = tokenizer.image_id
    if image is None or image not in ids:
        return
    why = "which stands for a part of an image"
    if image >= manifest.vocab_size:
        why = f"the embedding has {manifest.vocab_size} rows"
    raise PromptError(
        f"the prompt has {tokenizer.decode([image])!r}, token id {image}, {why}: this model reads text alone",
        hint="Leave it out; in a chat `escape=True` reads it as characters.",
    )


def check_ids(ids: Sequence[int], manifest: Manifest) -> list[int]:
    """Token ids that came from outside: Gather wraps negative ids around and reads past the table for large ones."""
    for position, token in enumerate(ids):
        if isinstance(token, bool) or not hasattr(token, "__index__") or not 0 <= token < manifest.vocab_size:
            raise PromptError(
                f"prompt token {position} must be an id from 0 to {manifest.vocab_size - 1}, found {token!r}",
                hint="Encode the text with this folder's tokenizer.",
            )
    return check_length([int(token) for token in ids], manifest)


def check_length(ids: list[int], manifest: Manifest) -> list[int]:
    """Refuses more tokens than the context has."""
    if len(ids) > manifest.context_length:
        raise PromptError(
            f"the prompt has {len(ids)} tokens, this folder's context has {manifest.context_length}",
            hint="Shorten the prompt, or export with a larger --context.",
        )
    return ids


def _encodable(text: str) -> str:
    try:
        # a lone surrogate (from a shell argument that is not UTF-8) has no tokens
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is not valid UTF-8 at character {error.start}", hint="Re-encode it.") from error
    return text
