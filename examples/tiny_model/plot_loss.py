"""Draws loss_curve.json as loss_curve.png.

python plot_loss.py loss_curve.json loss_curve.png
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        points = json.load(file)
    figure, axes = plt.subplots(figsize=(7, 4))
    train = [(point["tokens"] / 1e6, point["train"]) for point in points if "train" in point]
    held_out = [(point["tokens"] / 1e6, point["held_out"]) for point in points if "held_out" in point]
    axes.plot(*zip(*train, strict=True), color="tab:gray", linewidth=0.8, label="train, one batch")
    axes.plot(*zip(*held_out, strict=True), color="tab:blue", marker="o", label="held out, 96 sequences")
    final = points[-1]
    axes.plot(
        final["tokens"] / 1e6,
        final["held_out_bfloat16"],
        "*",
        color="tab:red",
        markersize=12,
        label="released, all held-out text",
    )
    axes.set(xlabel="million tokens", ylabel="loss, nats per token", ylim=(1, 6), title="Tiny Gemma on Python sources")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
