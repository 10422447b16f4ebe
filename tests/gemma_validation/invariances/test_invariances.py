"""Invariances hold on good folders, and each of them breaks with the graph that breaks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from folders import altered, rewrite_manifest
from graph_edits import attribute, constant, edited, named, nodes_of
from reference_exports import opens

from gemma_runtime.element_types import ELEMENT_TYPES
from gemma_runtime.manifest import read_manifest
from gemma_validation.artifact import ArtifactRunner, Step
from gemma_validation.documents import Document
from gemma_validation.findings import Check
from gemma_validation.invariances import batches, check_invariances, prompts, twins, windows
from gemma_validation.invariances.bounds import bounds_for, same_shape_bounds
from gemma_validation.invariances.differences import Difference
from gemma_validation.invariances.scene import SIZES, Scene, Size

_DOCUMENTS = tuple(
    Document(slice="code", name=f"text {seed}", token_ids=(2, *np.random.default_rng(seed).integers(108, 3072, 120)))
    for seed in range(3)
)
_SIZE = Size(prompt=40, beginning=12, rows=(17, 9, 4))
_ONE_ROW = {
    "token by token": partial(prompts.in_parts, size=1),
    "chunks of 7": partial(prompts.in_parts, size=7),
    "later tokens": prompts.later_tokens,
    "one buffer": prompts.in_place,
}
_ROWS = {
    "side by side": batches.side_by_side,
    "left": partial(batches.padding, side="left"),
    "right": partial(batches.padding, side="right"),
    "permuted": batches.permuted,
    "pad": batches.other_pad,
}


def _checks(folder: Path, suite: str = "quick", documents: tuple[Document, ...] = _DOCUMENTS) -> dict[str, Check]:
    found = check_invariances(folder, read_manifest(folder), documents, opened=opens(folder), suite=suite)
    checks = {check.name: check for check in found}
    assert len(checks) == len(found)
    assert all(check.group == "invariance" and "\n" not in check.message for check in found)
    return checks


@contextmanager
def _scene(folder: Path) -> Iterator[Scene]:
    with ArtifactRunner(folder, read_manifest(folder), threads=1) as runner:
        yield Scene(runner, _DOCUMENTS, _SIZE)


def _broken(folder: Path, asked: dict[str, Callable[[Scene], Difference]]) -> set[str]:
    with _scene(folder) as scene:
        return {name for name, ask in asked.items() if ask(scene).judged(name, scene.bounds).outcome != "passed"}


@pytest.mark.parametrize(
    ("folder", "skipped", "count"),
    [
        ("tiny_fp32", set(), 16),
        ("tiny_fp16", set(), 17),
        ("tiny_int4", set(), 16),
        ("tiny_int8_dynamic", set(), 16),
        ("tiny_portable", {"one buffer for past and present"}, 14),
    ],
)
def test_a_good_folder_passes_everything(
    folder: str, skipped: set[str], count: int, request: pytest.FixtureRequest
) -> None:
    checks = _checks(request.getfixturevalue(folder))
    assert {name for name, check in checks.items() if check.outcome == "skipped"} == skipped
    assert {name: check.message for name, check in checks.items() if check.outcome == "failed"} == {}
    assert len(checks) == count
    measured = checks["token by token"]
    assert measured.measured is not None
    assert measured.bound == bounds_for(read_manifest(request.getfixturevalue(folder))).logits


def test_the_full_suite_without_a_text(random_grouped: Path) -> None:
    """Grouped heads, and a context that is shorter than the suite's prompt."""
    checks = _checks(random_grouped, "full", ())
    assert {name: check.message for name, check in checks.items() if check.outcome != "passed"} == {}
    assert {"chunks of 2", "chunks of 128", "graph last8"} < checks.keys()


def test_chunks_that_a_target_does_not_take(tiny_fp32: Path, tmp_path: Path) -> None:
    folder = altered(tiny_fp32, tmp_path / "none", {})
    graphs = read_manifest(folder).graphs
    rewrite_manifest(folder, graphs=tuple(dataclasses.replace(graph, chunks="none") for graph in graphs))
    checks = _checks(folder)
    assert checks["chunks of 7"].outcome == "skipped"
    assert checks["chunks of 7"].message == "onnx/model_all.onnx takes no chunks behind a cache"
    assert checks["token by token"].outcome == "passed"


def _insert(model: onnx.ModelProto, behind: str, node: onnx.NodeProto) -> None:
    """Puts a node behind the one that computes `behind`, whose readers read the new value instead."""
    place = list(model.graph.node).index(named(model, behind)) + 1
    for other in model.graph.node:
        for index, name in enumerate(other.input):
            if name == behind:
                other.input[index] = node.output[0]
    model.graph.node.insert(place, node)


def _no_roll(model: onnx.ModelProto) -> None:
    """The wrong pad side: rows are taken as if padding were on the right already."""
    zero = onnx.helper.make_node("Sub", ["rows.first", "rows.first"], ["no.roll"])
    _insert(model, "rows.first", zero)


def _no_mask(model: onnx.ModelProto) -> None:
    """Padding counts as tokens: the step after it goes behind them."""
    node = named(model, "rows.ReduceSum_0")
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, onnx.helper.make_node("Max", ["attention_mask", "constant.1"], ["no.mask"]))
    model.graph.node[place + 1].input[0] = "no.mask"


def _off_by_one(model: onnx.ModelProto) -> None:
    """The cache's last position is the token's own less one; a lone first token stays where it is."""
    two = onnx.helper.make_tensor("two", onnx.TensorProto.INT64, [], [2])
    model.graph.initializer.append(two)
    named(model, "rows.Sub_2").input[1] = "two"
    zero = onnx.helper.make_node("Max", ["rows.Sub_2", "constant.0"], ["no.less"])
    _insert(model, "rows.Sub_2", zero)


def _rows_added_up(model: onnx.ModelProto) -> None:
    """Each row takes in those before it."""
    scaled = "model.embed_tokens.ScaledEmbedding"
    _insert(model, scaled, onnx.helper.make_node("CumSum", [scaled, "constant.0"], ["rows.mixed"]))


@pytest.mark.parametrize(
    ("edit", "asked", "expected"),
    [
        (_no_roll, _ROWS, {"left", "pad"}),
        (_no_mask, _ROWS, {"left", "right"}),
        (_rows_added_up, _ROWS, {"side by side", "left", "right", "permuted"}),
        (_rows_added_up, _ONE_ROW, set()),
        (_off_by_one, _ONE_ROW, {"token by token", "chunks of 7", "one buffer"}),
    ],
)
def test_an_edited_graph_breaks_what_it_should(
    edit: Callable[[onnx.ModelProto], None],
    asked: dict[str, Callable[[Scene], Difference]],
    expected: set[str],
    tiny_fp32: Path,
    tmp_path: Path,
) -> None:
    broken = _broken(edited(tiny_fp32, tmp_path / "edited", edit, ["all"]), asked)
    assert broken == expected


def test_tokens_that_look_ahead(tiny_portable: Path, tmp_path: Path) -> None:
    def all_columns(model: onnx.ModelProto) -> None:
        node = nodes_of(model, "LessOrEqual")[0]
        node.op_type = "Equal"
        node.input[1] = node.input[0]

    folder = edited(tiny_portable, tmp_path / "edited", all_columns, ["all"])
    with _scene(folder) as scene:
        found = prompts.later_tokens(scene)
    assert found.logits > 0.1


def test_a_change_that_changes_nothing(tiny_fp32: Path, tmp_path: Path) -> None:
    """A graph that ignores its tokens passes every comparison: so this one asks for a difference."""

    def deaf(model: onnx.ModelProto) -> None:
        constant(model, "model.embed_tokens.scale").raw_data = np.float32(0).tobytes()

    with _scene(edited(tiny_fp32, tmp_path / "edited", deaf, ["all"])) as scene:
        check = prompts.later_tokens(scene).judged("later tokens", scene.bounds)
    assert (check.outcome, check.message) == ("failed", "other tokens at the end change nothing at all")


def test_numbers_that_are_not_finite(tiny_fp32: Path, tmp_path: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        constant(model, "model.embed_tokens.scale").raw_data = np.float32(np.nan).tobytes()

    folder = edited(tiny_fp32, tmp_path / "edited", spoil, ["all"])
    with _scene(folder) as scene:
        check = prompts.in_parts(scene, 7).judged("chunks of 7", scene.bounds)
    assert (check.outcome, check.measured) == ("failed", None)
    assert check.message.endswith("not finite")


def _first_instead_of_last(model: onnx.ModelProto) -> None:
    node = next(node for node in nodes_of(model, "Sub") if node.name.startswith("logits_positions."))
    node.op_type = "Mul"
    node.input[1] = "constant.0"


def _late(model: onnx.ModelProto) -> None:
    """Off by one behind a cache, right without: what only a step of generation shows."""
    shapes = [
        onnx.helper.make_node("Shape", ["input_ids"], ["late.step"], start=1, end=2),
        onnx.helper.make_node("Shape", ["attention_mask"], ["late.total"], start=1, end=2),
        onnx.helper.make_node("Sub", ["late.total", "late.step"], ["late.past"]),
        onnx.helper.make_node("Sign", ["late.past"], ["late.one"]),
    ]
    _insert(model, "rows.Sub_2", onnx.helper.make_node("Sub", ["rows.Sub_2", "late.one"], ["late.less"]))
    for node in reversed(shapes):
        model.graph.node.insert(0, node)


def _scaled_head(model: onnx.ModelProto) -> None:
    """Logits 5 % too large: less than rounding ties may move them."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.05), "head.factor"))
    hidden = named(model, "logits").input[0]
    _insert(model, hidden, onnx.helper.make_node("Mul", [hidden, "head.factor"], ["head.scaled"]))


def _last_column(model: onnx.ModelProto) -> None:
    attribute(nodes_of(model, "ArgMax")[0], "select_last_index", 1)


@pytest.mark.parametrize(
    ("folder", "role", "edit", "ask"),
    [
        ("tiny_fp32", "main", _first_instead_of_last, twins.same_steps),
        ("tiny_fp32", "last8", _last_column, twins.same_steps),
        ("tiny_fp32", "main", _late, twins.same_steps),
        ("tiny_int4", "last8", _late, twins.same_steps),
        ("tiny_fp32", "batched", _late, twins.same_steps),
        ("tiny_int4", "main", _scaled_head, twins.same_steps),
        ("tiny_fp32", "batched", _last_column, twins.batched_chunks),
        ("tiny_fp16", "static", _no_mask, twins.static_step),
    ],
)
def test_a_twin_that_gives_other_numbers(
    folder: str,
    role: str,
    edit: Callable[[onnx.ModelProto], None],
    ask: Callable[[Scene, ArtifactRunner], Difference],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    good = request.getfixturevalue(folder)
    bad = edited(good, tmp_path / "edited", edit, [role])
    with _scene(good) as scene:
        for directory, outcome in ((good, "passed"), (bad, "failed")):
            with ArtifactRunner(directory, read_manifest(directory), role=role, threads=1) as twin:
                bounds = same_shape_bounds(twin.manifest) if ask is twins.same_steps else scene.bounds
                assert ask(scene, twin).judged(role, bounds).outcome == outcome


def test_twins_are_asked_behind_a_cache(tiny_fp32: Path, tiny_int4: Path) -> None:
    """A token, a chunk, and a token for each padded row; and a check says so within the bounds of the same shapes."""
    with _scene(tiny_fp32) as scene:
        widths = [one.input_ids.shape for one in scene.asked if one.past is not None]
    assert widths == [(1, 1), (1, 7), (2, 1), (2, 1)]
    checks = _checks(tiny_int4)
    assert checks["graph main"].bound == same_shape_bounds(read_manifest(tiny_int4)).logits
    assert checks["graph main"].bound < checks["chunks of several rows"].bound


def test_a_context_that_ends_with_the_prompt(tiny_fp16_short: Path) -> None:
    """No buffer is longer than the context: a graph does not have rotations for more."""
    checks = _checks(tiny_fp16_short)
    assert {name: check.message for name, check in checks.items() if check.outcome != "passed"} == {}
    assert "graph static" in checks


def test_a_main_graph_that_gives_all_positions(tiny_fp32: Path, tmp_path: Path) -> None:
    """As `--logits all` writes it: padding has logits too there, which mean nothing."""
    content = (tiny_fp32 / "onnx/model_all.onnx").read_bytes()
    folder = altered(tiny_fp32, tmp_path / "all", {"onnx/model.onnx": content})
    main, *others = read_manifest(folder).graphs
    rewrite_manifest(folder, graphs=(dataclasses.replace(main, logits="all"), *others))
    with _scene(folder) as scene, ArtifactRunner(folder, read_manifest(folder), role="main", threads=1) as twin:
        assert (
            twins.same_steps(scene, twin).judged("main", same_shape_bounds(scene.runner.manifest)).outcome == "passed"
        )


def test_a_twin_that_does_not_load_is_a_finding(tiny_fp32: Path, tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        nodes_of(model, "Gelu")[0].op_type = "NoSuchOperator"

    checks = _checks(edited(tiny_fp32, tmp_path / "edited", unknown, ["last8"]))
    assert checks["graph last8"].outcome == "failed"
    assert "cannot load onnx/model_last8.onnx" in checks["graph last8"].message
    assert checks["graph batched"].outcome == "passed"


def test_a_graph_that_runs_one_way_only(tiny_fp32: Path, tmp_path: Path) -> None:
    """What onnxruntime refuses is a finding about that way, not the end of the run."""

    def never_continued(model: onnx.ModelProto) -> None:
        # shapes that fit only where this step's tokens are all there are
        joined = onnx.helper.make_node("Add", ["attention_mask", "input_ids"], ["joined"])
        parted = onnx.helper.make_node("Sub", ["joined", "input_ids"], ["parted"])
        named(model, "rows.ReduceSum_0").input[0] = "parted"
        model.graph.node.insert(0, joined)
        model.graph.node.insert(1, parted)

    checks = _checks(edited(tiny_fp32, tmp_path / "edited", never_continued, ["all"]))
    assert checks["rows side by side"].outcome == "passed"
    assert checks["chunks of 7"].outcome == "failed"
    assert checks["chunks of 7"].message.startswith("onnxruntime could not run onnx/model_all.onnx")


def test_windows_are_read_from_the_graph_and_kept(tiny_fp32: Path, tmp_path: Path) -> None:
    """Layer by layer: the position just outside is not read, the one just inside is."""

    def windowed(model: onnx.ModelProto) -> None:
        for layer in (1, 3):
            attribute(nodes_of(model, "GroupQueryAttention")[layer], "local_window_size", 12)

    folder = edited(tiny_fp32, tmp_path / "edited", windowed, ["all"])
    with _scene(folder) as scene:
        found = windows.layer_windows(folder, scene.runner.graph)
        assert found == {0: 0, 1: 12, 2: 0, 3: 12}
        assert windows.unread_positions(scene, found) is None
        for wrong, told in (
            ({3: 11}, "layer 3 reads position 13 of 24, outside its window of 11"),
            ({1: 13}, "layer 1 does not read position 12 of 24, inside its window of 13"),
            ({1: 0}, "layer 1 does not read position 0 of 24, inside its window of all"),
        ):
            assert windows.unread_positions(scene, wrong) == told
        # and what goes through in parts is what goes through whole, beyond the window's edge
        assert prompts.in_parts(scene, 7).judged("chunks", scene.bounds).outcome == "passed"


def test_a_run_of_the_comparison_is_not_made_again(tiny_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is the beginning of a text that has been run, where one is long enough; so is the first row."""
    short = Document(slice="code", name="short", token_ids=_DOCUMENTS[0].token_ids[:20])
    steps: list[tuple[int, ...]] = []
    step = ArtifactRunner.step

    def counted(self: ArtifactRunner, input_ids: np.ndarray, *rest: Any) -> Step:
        steps.append(input_ids.shape)
        return step(self, input_ids, *rest)

    with ArtifactRunner(tiny_fp32, read_manifest(tiny_fp32), threads=1) as runner:
        for document in (_DOCUMENTS[2], short):
            for _, logits in runner.logits(document.token_ids):
                assert len(logits) == len(document.token_ids)
        monkeypatch.setattr(ArtifactRunner, "step", counted)
        scene = Scene(runner, (short, _DOCUMENTS[2], _DOCUMENTS[1]), _SIZE)
        assert scene.prompt == _DOCUMENTS[2].token_ids[:40]
        assert scene.whole.logits.shape[1] == 40
        assert {array.shape[2] for array in scene.whole.present} == {40}
        assert [one.logits.shape[1] for one in scene.alone] == [18, 10, 5]
        assert steps == [(1, 10), (1, 5)]
        assert scene.compare(scene.run(scene.prompt), 0, np.ones(40, np.int64), scene.whole, 40).logits < 1e-5
        # what a step of this shape gives has to be seen
        steps.clear()
        assert Scene(runner, _DOCUMENTS[2:], dataclasses.replace(_SIZE, prompt=12)).begun.logits.shape[1] == 12
        assert steps == [(1, 12)]
        # a text that nobody has run
        other = Scene(runner, (short, _DOCUMENTS[1]), _SIZE)
        assert other.prompt == _DOCUMENTS[1].token_ids[:40]
        assert other.whole.logits.shape[1] == 40
        # what is too large is not kept
        assert [len(logits) for _, logits in runner.logits(_DOCUMENTS[1].token_ids * 3)] == [256, 107]
        assert runner.longest is not None
        assert runner.longest.token_ids == _DOCUMENTS[2].token_ids
    assert steps[1:] == [(1, 40), (1, 256), (1, 107)]
    assert runner.longest is None


def test_a_present_of_another_length(tiny_portable: Path, tmp_path: Path) -> None:
    def doubled(model: onnx.ModelProto) -> None:
        node = nodes_of(model, "Attention")[1]
        node.output[1] = "single"
        model.graph.node.append(onnx.helper.make_node("Concat", ["single"] * 2, ["present.1.key"], axis=2))
        model.graph.output[3].type.tensor_type.ClearField("shape")

    with _scene(edited(tiny_portable, tmp_path / "edited", doubled, ["all"])) as scene:
        told = prompts.state_symbols(scene)
    assert told == "present.1.key is [1, 2, 24, 64] after 12 tokens, expected [1, 2, 12, 64]"


def test_bounds_follow_what_rounds(tiny_fp32: Path, tiny_fp16: Path, tiny_int4: Path) -> None:
    found = [bounds_for(read_manifest(folder)).logits for folder in (tiny_fp32, tiny_fp16, tiny_int4)]
    assert found == sorted(found)
    assert found[0] < found[1] < found[2]
    assert SIZES["quick"].prompt < SIZES["full"].prompt


def test_the_quantity_nearer_to_its_bound_is_told() -> None:
    from gemma_validation.invariances.bounds import Bounds

    bounds = Bounds(logits=0.1, cache=0.01, reason="a reason")
    check = Difference(logits=0.05, cache=0.009).judged("name", bounds)
    assert (check.measured, check.bound, check.outcome) == (0.009, 0.01, "passed")
    assert check.message == "cache differs by 0.009 of its size, at most 0.01: a reason"
    assert Difference(logits=0.2).judged("name", bounds).message == (
        "logits differ by 0.2 standard deviations, at most 0.1: a reason"
    )
    worst = Difference(logits=np.nan).worst(Difference(logits=0.0, wrong="told"))
    assert np.isnan(worst.logits)
    assert worst.wrong == "told"


def test_another_key_in_every_storage() -> None:
    """Minus four times a value; bfloat16 as its bits, int8 within its range."""
    for name, given, expected in (
        ("float32", np.float32([1.5]), np.float32([-6])),
        ("float16", np.float16([1.5]), np.float16([-6])),
        ("bfloat16", np.uint16([0x3FC0]), np.uint16([0xC0C0])),
        ("int8", np.int8([10, 100]), np.int8([-40, -127])),
    ):
        found = windows.other_values(given, ELEMENT_TYPES[name])
        assert found.dtype == given.dtype
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(("tokens", "outcome"), [(9, "skipped"), (10, "passed")])
def test_whether_texts_are_longer_than_the_window_is_told(
    tokens: int, outcome: str, windowed_folder: Callable[..., Path]
) -> None:
    """A comparison over shorter ones says nothing of windows; the cached positions do."""
    folder = windowed_folder("gemma2")
    text = Document(slice="code", name="x", token_ids=tuple(range(2, 2 + tokens)))
    found = {
        check.name: check
        for check in check_invariances(folder, read_manifest(folder), [text], opened=opens(folder), suite="quick")
    }
    assert found["texts beyond the window"].outcome == outcome
    assert f"the longest text has {tokens} tokens, the largest window 9" in found["texts beyond the window"].message
    assert found["cached positions"].message.endswith("(windows: none, 9)")
    assert {check.outcome for check in found.values()} <= {"passed", "skipped"}
