"""What a measurement warns of, and what it leaves alone."""

from __future__ import annotations

import math

from gemma_export.headroom import Headroom, Peak, WeightRange

_FINE = WeightRange(largest=1.0, subnormal=0.2, zero=0.1)


def headroom(peaks: dict[str, Peak], weights: dict[str, WeightRange] | None = None, shift: int = 6) -> Headroom:
    return Headroom(
        shift=shift,
        probes={"bos": 1},
        peaks={"embedding": Peak(value=1.0, layer=None, scaled=True), **peaks},
        weights=weights or {"norm.weight": _FINE},
    )


def test_activations_beyond_float16_are_named_with_their_layer() -> None:
    found = headroom(
        {
            "mlp.down_proj.input": Peak(value=70_000.4, layer=3, scaled=False),
            "logits": Peak(value=65_505.0, layer=None, scaled=False),
        }
    )
    assert found.warnings() == [
        "layers.3.mlp.down_proj.input peaks at 70,000 on the probe prompts, float16 ends at 65,504",
        "logits peaks at 65,505 on the probe prompts, float16 ends at 65,504",
    ]


def test_activations_with_less_room_than_the_stream_keeps_are_named() -> None:
    found = headroom(
        {
            "attention.scores": Peak(value=math.nextafter(16_376.0, math.inf), layer=1, scaled=False),
            "self_attn.q_proj.output": Peak(value=16_376.0, layer=1, scaled=False),
            "norm.output": Peak(value=65_504.0, layer=None, scaled=False),
        }
    )
    assert found.warnings() == [
        "layers.1.attention.scores peaks at 16,376 on the probe prompts, float16 ends at 65,504: other prompts may "
        "reach it",
        "norm.output peaks at 65,504 on the probe prompts, float16 ends at 65,504: other prompts may reach it",
    ]


def test_the_rescaled_stream_is_no_hazard() -> None:
    found = headroom({"mlp_residual": Peak(value=1e6, layer=2, scaled=True)})
    assert found.warnings() == []
    assert found.stream.value == 1e6
    assert math.isclose(found.headroom_bits, math.log2(65_504 / (1e6 / 64)))


def test_weights_that_float16_does_not_hold_are_named() -> None:
    found = headroom(
        {},
        {
            "mlp.up_proj.weight": WeightRange(largest=70_000.0, subnormal=0.0, zero=0.0),
            "self_attn.o_proj.weight": WeightRange(largest=1.0, subnormal=0.9, zero=0.51),
            "self_attn.q_proj.weight": WeightRange(largest=65_504.0, subnormal=0.9, zero=0.5),
        },
    )
    assert found.warnings() == [
        "mlp.up_proj.weight holds 70,000, float16 ends at 65,504",
        "51% of self_attn.o_proj.weight become zero in float16",
    ]


def test_the_manifest_tells_all_of_it() -> None:
    told = headroom(
        {"attention.scores": Peak(value=131_008.0, layer=1, scaled=False), "x": Peak(value=0.0, layer=0, scaled=False)}
    ).to_dict()
    assert told["peaks"]["attention.scores"] == {
        "peak": 131_000.0,
        "layer": 1,
        "scaled": False,
        "headroom_bits": -1.0,
    }
    # no number says how often nothing fits
    assert told["peaks"]["x"]["headroom_bits"] is None
    assert told["weights"] == {"norm.weight": {"largest": 1.0, "subnormal": 0.2, "zero": 0.1}}
