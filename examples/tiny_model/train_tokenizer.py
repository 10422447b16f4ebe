"""Trains a SentencePiece tokenizer with Gemma's layout of special tokens and converts it to tokenizer.json.

python train_tokenizer.py --data build/tiny_model --output build/tiny_model
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

VOCAB_SIZE = 3072
SPACE = "\u2581"
# Gemma's and CodeGemma's ids: https://ai.google.dev/gemma/docs/codegemma/model_card
NAMED = {
    67: "<|fim_prefix|>",
    68: "<|fim_middle|>",
    69: "<|fim_suffix|>",
    70: "<|file_separator|>",
    106: "<start_of_turn>",
    107: "<end_of_turn>",
}
CONTROL = ("<pad>", "<eos>", "<bos>")


def user_symbols() -> list[str]:
    """Symbols from id 4 on: mask, fillers and the named tokens at Gemma's ids, then runs of newlines and spaces."""
    symbols = ["<mask>"] + [NAMED.get(index, f"<unused{index - 5}>") for index in range(5, 108)]
    symbols += ["\n" * count for count in range(2, 5)]
    symbols += [SPACE * count for count in (2, 3, 4, 7, 8, 11, 12, 15, 16, 19, 20)]
    return symbols


def train(texts: list[str], output: Path) -> None:
    """Writes tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        user_defined_symbols=user_symbols(),
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        character_coverage=1.0,
        max_sentence_length=20000,
        num_threads=2,
        input_sentence_size=0,
    )
    (output / "tokenizer.model").write_bytes(model.getvalue())


def convert(output: Path) -> Tokenizer:
    """Writes tokenizer.json: the same pieces and merges for the `tokenizers` library."""
    proto = sentencepiece_model_pb2.ModelProto.FromString((output / "tokenizer.model").read_bytes())
    piece_type = sentencepiece_model_pb2.ModelProto.SentencePiece
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    # SentencePiece's BPE merges the adjacent pair whose union has the best score (the lowest id)
    mergeable = {piece.piece for piece in proto.pieces if piece.type == piece_type.NORMAL}
    merges = []
    for piece in (piece for piece in proto.pieces if piece.type == piece_type.NORMAL):
        splits = [(piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece))]
        pairs = [pair for pair in splits if pair[0] in mergeable and pair[1] in mergeable]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    # SentencePiece never merges across a digit, and pieces hold a space only at their start
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [AddedToken(token, special=True, normalized=False) for token in (*CONTROL, "<unk>")]
    tokenizer.add_special_tokens(special)
    for piece in proto.pieces:
        if piece.type == piece_type.USER_DEFINED:
            whitespace = piece.piece.strip("\n" + SPACE) == ""
            if whitespace:
                tokenizer.add_tokens([AddedToken(piece.piece, normalized=SPACE in piece.piece)])
            else:
                tokenizer.add_special_tokens([AddedToken(piece.piece, special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.save(str(output / "tokenizer.json"), pretty=False)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with (arguments.data / "train.jsonl").open(encoding="utf-8") as file:
        texts = [row["text"] for row in map(json.loads, file) if row["kind"] == "file"]
    train(texts, arguments.output)
    convert(arguments.output)


if __name__ == "__main__":
    main()
