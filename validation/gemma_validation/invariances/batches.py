"""Several rows: side by side, padded on either side, in another order, padded with another id."""

from __future__ import annotations

import numpy as np

from gemma_validation.invariances.differences import Difference, cache_difference, logits_difference
from gemma_validation.invariances.scene import Scene, padded

__all__ = ["other_pad", "padding", "permuted", "side_by_side"]

_SAME = Difference(logits=0.0)
_SHORT = 5


def side_by_side(scene: Scene) -> Difference:
    """Rows of one length in one run give what each gives alone."""
    # of one token each they would say little
    length = min([len(row) for row in scene.rows if len(row) > _SHORT] or [len(scene.rows[0])])
    rows = [row[:length] for row in scene.rows if len(row) >= length]
    expected = [step for row, step in zip(scene.rows, scene.alone, strict=True) if len(row) >= length]
    found = scene.runner.step(np.array(rows, np.int64), np.ones((len(rows), length), np.int64))
    worst = _SAME
    for index, alone in enumerate(expected):
        worst = worst.worst(scene.compare(found, index, np.ones(length, np.int64), alone, length))
    return worst


def padding(scene: Scene, side: str) -> Difference:
    """A padded batch, and one token more for each row, give what each row gives alone."""
    _, mask = padded([row[:-1] for row in scene.rows], side)
    found = scene.batch(side)
    longer = np.concatenate((mask, np.ones((len(mask), 1), np.int64)), axis=1)
    after = scene.after(side)
    worst = _SAME
    for index, (row, alone) in enumerate(zip(scene.rows, scene.alone, strict=True)):
        length = len(row) - 1
        worst = worst.worst(scene.compare(found, index, mask[index], alone, length))
        last = Difference(
            logits=logits_difference(after.logits[index], alone.logits[0, length:]),
            cache=cache_difference(
                scene.real_cache(after, index, longer[index]),
                scene.real_cache(alone, 0, np.ones(len(row), np.int64)),
            ),
        )
        worst = worst.worst(last)
    return worst


def permuted(scene: Scene) -> Difference:
    """Rows in the opposite order give the same rows in the opposite order."""
    rows = [row[:-1] for row in scene.few]
    _, mask = padded(rows, "left")
    found = scene.runner.step(*padded(rows[::-1], "left"))
    expected = scene.batch_of_few("left")
    worst = _SAME
    for index in range(len(rows)):
        other = len(rows) - 1 - index
        difference = Difference(
            logits=logits_difference(found.logits[other][mask[index] == 1], expected.logits[index][mask[index] == 1]),
            cache=cache_difference(
                scene.real_cache(found, other, mask[index]), scene.real_cache(expected, index, mask[index])
            ),
        )
        worst = worst.worst(difference)
    return worst


def other_pad(scene: Scene) -> Difference:
    """What stands where the mask has zeros is never read."""
    # any token that is no padding by custom
    pad = scene.runner.vocab_size - 1
    worst = _SAME
    for side in ("left", "right"):
        ids, mask = padded([row[:-1] for row in scene.few], side, pad)
        expected, found = scene.batch_of_few(side), scene.runner.step(ids, mask)
        for index in range(len(mask)):
            real = mask[index] == 1
            difference = Difference(
                logits=logits_difference(found.logits[index][real], expected.logits[index][real]),
                cache=cache_difference(
                    scene.real_cache(found, index, mask[index]), scene.real_cache(expected, index, mask[index])
                ),
            )
            worst = worst.worst(difference)
    return worst
