"""Trains the tiny Gemma on CPU and writes a bfloat16 checkpoint.

    python train.py --data build/tiny_model --output build/tiny_model/checkpoint --minutes 60

`--family gemma2` trains a Gemma 2, which can start from a trained Gemma 1 of the same shape. The schedule follows the
clock: warm-up, then a cosine to zero at the last minute. The model is the reference implementation's (transformers), so
that what is trained is Gemma's architecture and not our reading of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import transformers

SEQUENCE = 512
BATCH = 12
SEED = 0
BOS, EOS = 2, 1
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX, FILE_SEPARATOR = 67, 68, 69, 70
FIM_RATE = 0.35
CONFIG = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "vocab_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
# What a Gemma 2 has besides: a window of a sixteenth of a sequence, soft-capping that bends what these weights give
# (a query-key product of 8 becomes 6.1), and a scale that is not head_dim ** -0.5.
GEMMA2 = {
    "sliding_window": 32,
    "attn_logit_softcapping": 8.0,
    "final_logit_softcapping": 15.0,
    "query_pre_attn_scalar": 48,
}
FAMILIES = {
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM, CONFIG),
    # the fused attention of torch has no soft-capping
    "gemma2": (
        transformers.Gemma2Config,
        transformers.Gemma2ForCausalLM,
        CONFIG | GEMMA2 | {"attn_implementation": "eager"},
    ),
}


def encode_document(tokenizer: sentencepiece.SentencePieceProcessor, row: dict, generator: random.Random) -> list[int]:
    """Token ids of a document; a part of them in CodeGemma's prefix-suffix-middle order.

    Source: https://ai.google.dev/gemma/docs/codegemma/model_card (fill-in-the-middle).
    """
    text = row["text"]
    if generator.random() < FIM_RATE and len(text) > 40:
        first, second = sorted(generator.sample(range(1, len(text)), 2))
        if generator.random() < 0.5:
            # half of the holes are whole lines
            first = text.rfind("\n", 0, first) + 1
            second = text.find("\n", second) + 1 or len(text)
        # a hole of at most 600 characters fits the context with something around it
        second = min(second, first + 600)
        prefix, middle, suffix = tokenizer.encode([text[:first], text[first:second], text[second:]])
        return [BOS, FIM_PREFIX, *prefix, FIM_SUFFIX, *suffix, FIM_MIDDLE, *middle, FILE_SEPARATOR]
    return [BOS, *tokenizer.encode(text), *([EOS] if row["kind"] == "definition" else [])]


def load_tokens(data: Path, split: str) -> torch.Tensor:
    """All documents of a split behind one another: int16 [tokens], cached beside the documents."""
    cache = data / f"{split}.npy"
    if not cache.exists():
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizer.model"))
        generator = random.Random(SEED)
        ids: list[int] = []
        with (data / f"{split}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                ids += encode_document(tokenizer, json.loads(line), generator)
        np.save(cache, np.asarray(ids, dtype=np.int16))
    return torch.from_numpy(np.load(cache))


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, tokens: torch.Tensor, limit: int) -> float:
    """Mean loss in nats a token over the first `limit` sequences."""
    count = min(limit, len(tokens) // SEQUENCE)
    sequences = tokens[: count * SEQUENCE].view(count, SEQUENCE).long()
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in sequences.split(BATCH)]
    return sum(losses) / count


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, in float32 (torch's own computes in bfloat16, slow on CPUs).

    Source: https://kellerjordan.github.io/posts/muon/ (quintic Newton-Schulz iteration).
    """

    def __init__(self, parameters: list[torch.nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalise(parameter.grad.lerp(momentum, group["momentum"]))
                # the same root mean square as an AdamW step, so that both share one rate
                update *= 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with singular values near one."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (better use of few tokens), AdamW for the tables and the gains."""
    tables = ("embed_tokens.weight", "lm_head.weight")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith(tables)]
    embedding = [p for name, p in model.named_parameters() if p.ndim == 2 and name.endswith(tables)]
    gains = [p for p in model.parameters() if p.ndim == 1]
    return [
        Muon(matrices, lr=rate, weight_decay=0.05),
        torch.optim.AdamW(
            [{"params": embedding, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}],
            lr=rate,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def untrained(family: str, changes: dict) -> torch.nn.Module:
    """The reference implementation with random weights."""
    config_class, model_class, config = FAMILIES[family]
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    model = model_class(config_class(**config | changes, rope_parameters=rope))
    small = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(small)
    return model


@torch.no_grad()
def take_over(model: torch.nn.Module, checkpoint: Path, batch: torch.Tensor) -> None:
    """Gives a Gemma 2 the weights of a Gemma 1: the norms behind its branches leave them about as large as they are."""
    first = transformers.GemmaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    # the second norm of a Gemma 1 is called "post" and stands before the feed-forward block
    renamed = {name.replace("post_attention", "pre_feedforward"): value for name, value in first.state_dict().items()}
    unknown = model.load_state_dict(renamed, strict=False).unexpected_keys
    assert not unknown, f"{checkpoint} is no Gemma 1 of this shape: {unknown[0]}"
    for old, new in zip(first.model.layers, model.model.layers, strict=True):
        # queries are multiplied by another scale, products shall stay
        new.self_attn.q_proj.weight.mul_(math.sqrt(model.config.query_pre_attn_scalar / model.config.head_dim))
        for branch, norm in (
            (old.self_attn.o_proj, new.post_attention_layernorm),
            (old.mlp.down_proj, new.post_feedforward_layernorm),
        ):
            branch.register_forward_hook(functools.partial(_take_size, norm))
    first(input_ids=batch)


def _take_size(norm: torch.nn.Module, branch: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
    """A forward hook: the norm leaves what it gets with the branch's mean size; a gain is 1 + weight."""
    norm.weight.fill_(output.square().mean(-1).sqrt().mean() - 1)


def train(arguments: argparse.Namespace) -> None:
    """The training loop; saves a rounded checkpoint every five minutes and the losses as JSON."""
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    tokens, held_out = load_tokens(arguments.data, "train"), load_tokens(arguments.data, "held_out")
    model = untrained(arguments.family, dict(arguments.set))
    if arguments.start_from is not None:
        take_over(model, arguments.start_from, tokens[: BATCH * SEQUENCE].view(BATCH, SEQUENCE).long())
    step_fn = torch.compile(model) if arguments.compile else model
    both, batch_size = optimizers(model, arguments.rate), arguments.batch
    order = torch.randperm(len(tokens) // SEQUENCE, generator=torch.Generator().manual_seed(SEED))
    start, step, curve, saved = time.monotonic(), 0, [], time.monotonic()
    print(f"{len(tokens):,} tokens, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    while (progress := (time.monotonic() - start) / (60 * arguments.minutes)) < 1:
        scale = min(1.0, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = arguments.rate * scale
        rows = order[torch.arange(step * batch_size, (step + 1) * batch_size) % len(order)]
        batch = torch.stack([tokens[row * SEQUENCE : (row + 1) * SEQUENCE] for row in rows.tolist()]).long()
        loss = step_fn(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0:
            point = {"step": step, "tokens": step * batch_size * SEQUENCE, "minutes": (time.monotonic() - start) / 60}
            point["train"] = loss.item()
            if step % 200 == 0:
                point["held_out"] = held_out_loss(model, held_out, 96)
            curve.append(point)
            print(json.dumps(point), flush=True)
            (arguments.output.parent / "loss_curve.json").write_text(json.dumps(curve))
        if time.monotonic() - saved > 300:
            save(model, arguments.output)
            saved = time.monotonic()
    rounded = save(model, arguments.output)
    curve.append(
        {
            "step": step,
            "tokens": step * batch_size * SEQUENCE,
            "held_out_bfloat16": held_out_loss(rounded, held_out, 10**9),
        }
    )
    (arguments.output.parent / "loss_curve.json").write_text(json.dumps(curve))
    print(json.dumps(curve[-1]))


def save(model: torch.nn.Module, output: Path) -> torch.nn.Module:
    """Writes the weights rounded to bfloat16; returns a float32 model that holds the rounded values."""
    rounded = type(model)(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16).save_pretrained(output)
    return rounded.float()


def setting(text: str) -> tuple[str, int | float | bool]:
    """`hidden_size=512` as a key of the configuration and its value."""
    key, _, value = text.partition("=")
    if key not in CONFIG | GEMMA2:
        raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(CONFIG | GEMMA2)}")
    return key, json.loads(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=BATCH, help=f"sequences of {SEQUENCE} tokens a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--family", choices=FAMILIES, default="gemma")
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="changes of the shape")
    parser.add_argument("--start-from", type=Path, metavar="DIR", help="for gemma2: a Gemma 1's weights to start from")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
