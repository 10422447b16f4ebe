"""Text to token ids by a checkpoint's own tokenizer files, for probes and calibration. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gemma_export.errors import ConfigError, MissingResourceError

__all__ = ["encode_texts"]


def encode_texts(files: Mapping[str, Path], texts: Sequence[str], *, vocab_size: int) -> list[list[int]]:
    """Ids of each text, nothing added.

    Args:
        files: base name -> tokenizer file; tokenizer.json is preferred to tokenizer.model, as in the runtime.
        texts: plain text.
        vocab_size: rows of the embedding table.

    Raises:
        MissingResourceError: neither file is there, or the library for it is not installed.
        ConfigError: the file is broken, or gives ids that the embedding has no row for.
    """
    for name, library, encode in (
        ("tokenizer.json", "tokenizers", _by_tokenizers),
        ("tokenizer.model", "sentencepiece", _by_sentencepiece),
    ):
        if name not in files:
            continue
        try:
            encoded = encode(files[name], texts)
        except ImportError as error:
            raise MissingResourceError(
                f"{name} needs the package {library}: {error}", hint=f"pip install {library}"
            ) from error
        except BaseException as error:
            # both libraries raise bare Exception or RuntimeError for a broken file; a panic inside tokenizers
            # (https://pyo3.rs/main/doc/pyo3/panic/struct.panicexception) is not even an Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ConfigError(
                f"{name} cannot be read as a tokenizer: {error}", hint="Fetch the tokenizer files again."
            ) from error
        largest = max((token for ids in encoded for token in ids), default=0)
        if largest >= vocab_size:
            raise ConfigError(
                f"{name} gives token id {largest}, the embedding has {vocab_size} rows",
                hint="Tokenizer and weights are of different models: fetch the tokenizer files again.",
            )
        return encoded
    raise MissingResourceError(
        "no tokenizer: neither tokenizer.json nor tokenizer.model is there",
        hint="Copy the tokenizer files of the original model into the checkpoint's folder.",
    )


def _by_tokenizers(path: Path, texts: Sequence[str]) -> list[list[int]]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # a file may ask for both, as saved from a training run
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


def _by_sentencepiece(path: Path, texts: Sequence[str]) -> list[list[int]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [list(processor.encode(text)) for text in texts]
