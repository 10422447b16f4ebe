"""Caches of layers with a window: as long as the window, and every number as with caches of full size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from click.testing import CliRunner
from programs import assert_error, gemma_run
from windowed_decoders import WINDOWED_CONFIGS, windowed_reference, write_windowed_checkpoint

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_export.pipeline import ExportRequest, export
from gemma_runtime import Gemma, read_manifest
from gemma_runtime.cli.command import cli
from gemma_runtime.doctor.providers import start_provider
from gemma_runtime.errors import PromptError, ProviderError
from gemma_runtime.graph_choice import PROVIDERS, graph_for
from gemma_runtime.sequence import TokenSequence
from gemma_runtime.speculation import DraftLength
from gemma_runtime.state import InPlaceState

WINDOW = WINDOWED_CONFIGS["gemma3"]["sliding_window"]
CONTEXT = WINDOWED_CONFIGS["gemma3"]["max_position_embeddings"]
# room behind the window -> tokens that go at once; 0 is what CUDA's kernel wants
ROOMS = [0, 3, 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven layers, all but one with a window of 8."""
    root, config = tmp_path_factory.mktemp("gemma3"), WINDOWED_CONFIGS["gemma3"]
    checkpoint = write_windowed_checkpoint(windowed_reference(config), root / "checkpoint", config, BUILTIN_DIRECTORY)
    return export(ExportRequest(checkpoint=checkpoint, output=root / "folder")).folder.directory


@pytest.fixture(scope="module")
def plain(folder: Path) -> Gemma:
    return Gemma(folder, speculation="off", threads=1, windowed="off")


@pytest.fixture(scope="module")
def windowed(folder: Path) -> Gemma:
    return Gemma(folder, speculation="off", threads=1)


@pytest.fixture(scope="module")
def guessing(folder: Path) -> Gemma:
    return Gemma(folder, threads=1)


@pytest.fixture
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("gemma_runtime.state.capacity_for", lambda window, device: window + request.param)
    return int(request.param)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that had to be read again."""
    found: list[int] = []
    read_again = TokenSequence._read_again

    def counted(sequence: TokenSequence) -> None:
        found.append(len(sequence))
        read_again(sequence)

    monkeypatch.setattr(TokenSequence, "_read_again", counted)
    return found


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return [2, *np.random.default_rng(seed).integers(300, 3000, count - 1).tolist()]


def last(sequence: TokenSequence, ids: Sequence[int]) -> np.ndarray:
    logits = sequence.extend(ids)
    assert logits is not None
    return logits[-1].copy()


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= tolerances.FP32_LOGITS * expected.std()


@pytest.fixture(scope="module")
def expected(plain: Gemma) -> np.ndarray:
    """Logits after each of 27 windows' tokens, with caches of full size."""
    sequence = plain.sequence()
    return np.stack([last(sequence, [token]) for token in tokens_of(27 * WINDOW)])


def test_the_graphs_of_a_folder(folder: Path) -> None:
    manifest = read_manifest(folder)
    graphs = {graph.role: graph for graph in manifest.graphs}
    assert list(graphs) == ["main", "all", "last8", "batched", "windowed", "windowed_last8"]
    assert [role for role, graph in graphs.items() if graph.windowed] == ["windowed", "windowed_last8"]
    assert graphs["windowed"].file == "onnx/model_windowed.onnx"
    assert graphs["windowed_last8"].file == "onnx/model_windowed_last8.onnx"
    assert [graphs[role].min_onnxruntime for role in ("windowed", "windowed_last8")] == ["1.29.0", "1.32.0"]
    assert [graphs[role].chunks for role in ("windowed", "windowed_last8")] == ["single", "batched"]
    per_token = 2 * 2 * 32 * 4
    assert graphs["main"].cache_bytes == 7 * CONTEXT * per_token
    assert graphs["windowed"].cache_bytes == (CONTEXT + 6 * WINDOW) * per_token
    for graph in graphs.values():
        assert [state.window for state in graph.state] == [WINDOW] * 5 + [0, WINDOW]


def test_what_is_taken_by_default(folder: Path, windowed: Gemma, plain: Gemma) -> None:
    assert windowed.graph.role == "windowed_last8"
    assert plain.graph.role == "last8"
    assert Gemma(folder, threads=1, windowed="on").graph.role == "windowed_last8"


@pytest.mark.parametrize("room", [*ROOMS, 64], indirect=True)
@pytest.mark.parametrize("sizes", [[1], [8, 3, 1, 5, 2], [100, 1, 1, 30]], ids=str)
def test_27_windows_of_tokens(room: int, sizes: list[int], windowed: Gemma, expected: np.ndarray) -> None:
    """Single tokens, chunks shorter and longer than the window: the same logits, in memory that does not grow."""
    ids, sequence, turn = tokens_of(27 * WINDOW), windowed.sequence(), 0
    state = sequence.state
    assert isinstance(state, InPlaceState)
    before = [buffer.memory for buffer in state.buffers]
    while len(sequence) < len(ids):
        size = sizes[turn % len(sizes)]
        turn += 1
        near(last(sequence, ids[len(sequence) :][:size]), expected[len(sequence) - 1])
    local = [index for index in range(14) if index // 2 != 5]
    assert {state.buffers[index].shape for index in local} == {(1, 2, WINDOW + room, 32)}
    assert all(state.buffers[index].memory is before[index] for index in local)
    last(sequence, ids[: CONTEXT - len(ids)])
    # the other layer's have grown
    assert state.buffers[10].shape[2] == state.buffers[11].shape[2] == state.capacity == CONTEXT


@pytest.mark.parametrize("room", ROOMS, indirect=True)
def test_what_was_taken_back_leaves_no_trace(room: int, windowed: Gemma, plain: Gemma, readings: list[int]) -> None:
    """Seven rejected tokens behind every length: read again only where some of them have pushed others out."""
    ids, others = tokens_of(60), tokens_of(9, seed=1)[1:]
    full, sequence, again = plain.sequence(), windowed.sequence(), 0
    for length in range(1, 50):
        step = [ids[length - 1], *others[:7]]
        again += sequence.reversible(length - 1, len(step)) < len(step)
        sequence.step(step)
        sequence.truncate(length)
        near(last(sequence, others[7:]), last(full, [ids[length - 1], others[7]]))
        full.truncate(length)
        sequence.truncate(length)
        assert sequence.tokens == full.tokens == ids[:length]
    assert sum(length > 0 for length in readings) > 0
    assert len(readings) <= 2 * again
    if room == 30:
        assert again < 15


@pytest.mark.parametrize("room", [3], indirect=True)
def test_going_back_further_than_the_cache_does(room: int, windowed: Gemma, plain: Gemma, readings: list[int]) -> None:
    """79 tokens: the last four fit behind those that went at 76."""
    ids = tokens_of(79)
    for length in (78, 76, 75, 40, 1, 0):
        sequence, full = windowed.sequence(), plain.sequence()
        for each in (sequence, full):
            each.extend(ids)
            each.truncate(length)
        near(last(sequence, ids[10:15]), last(full, ids[10:15]))
    # nothing is to be read again for a text that begins anew
    assert readings == [75, 40, 1]


@pytest.mark.parametrize("room", [3], indirect=True)
def test_the_beginning_in_common_is_kept_where_it_can_be(room: int, windowed: Gemma, plain: Gemma) -> None:
    """11 tokens fit, then four go at every fourth: at 12, 16, 20, ..."""
    ids, kept = tokens_of(30), []
    for length in range(16, 24):
        sequence = windowed.sequence()
        sequence.extend(ids[:length])
        kept.append(sequence.keep_prefix_of([*ids[: length - 1], 7]))
        near(last(sequence, [*ids[: length - 1], 7][kept[-1] :]), last(plain.sequence(), [*ids[: length - 1], 7]))
    assert kept == [0, 16, 17, 18, 0, 20, 21, 22]


@pytest.mark.parametrize("when", ["before the run", "after the run"])
@pytest.mark.parametrize("room", [3], indirect=True)
def test_an_exception_in_a_step_changes_nothing(
    room: int, when: str, windowed: Gemma, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step may have pushed tokens out, in some layers or in all."""
    ids, sequence = tokens_of(27 * WINDOW), windowed.sequence()
    run = type(sequence.opened).run

    def interrupted(self: Any, binding: Any) -> None:
        if when == "after the run":
            run(self, binding)
        raise KeyboardInterrupt

    for length in range(20, 26):
        if len(sequence) < length:
            last(sequence, ids[len(sequence) : length])
        with monkeypatch.context() as patch:
            patch.setattr(type(sequence.opened), "run", interrupted)
            for count in (1, 6):
                with pytest.raises(KeyboardInterrupt):
                    sequence.step([7] * count)
        assert sequence.tokens == ids[:length]
        near(last(sequence, ids[length : length + 1]), expected[length])


@pytest.mark.parametrize(("failing", "length"), [(1, 200), (3, 200), (1, 20)])
def test_an_exception_while_all_is_read_again(
    failing: int, length: int, windowed: Gemma, plain: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_runtime.sequence.PREFILL_TOKENS", 40)
    ids, sequence = tokens_of(300), windowed.sequence()
    last(sequence, ids)
    sequence.truncate(length)
    run, runs = type(sequence.opened).run, []

    def interrupted(self: Any, binding: Any) -> None:
        runs.append(1)
        if len(runs) == failing:
            raise KeyboardInterrupt
        run(self, binding)

    with monkeypatch.context() as patch:
        patch.setattr(type(sequence.opened), "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sequence.step([7])
    assert sequence.tokens == ids[:length]
    near(last(sequence, [7]), last(plain.sequence(), [*ids[:length], 7]))


@pytest.mark.parametrize("room", ROOMS, indirect=True)
def test_turns_of_a_conversation(room: int, windowed: Gemma, plain: Gemma, readings: list[int]) -> None:
    """Each begins with the last one and its answer, far past the window: nothing is read again."""
    answers = []
    for model in (windowed, plain):
        conversation, text, found = model.conversation(), tokens_of(30), []
        for turn in range(4):
            # a stop token ends the third: none of them is given out, and the cache keeps what came before it
            options = {"stop_ids": found[0].token_ids[5:6]} if turn == 2 else {}
            found.append(conversation.generate(text, max_new_tokens=17, **options))
            text = [*text, *found[-1].token_ids, *tokens_of(11, seed=turn)]
        answers.append([(each.token_ids, each.finish_reason, each.cached_tokens) for each in found])
    assert answers[0] == answers[1]
    assert [cached for *_, cached in answers[0]][:3] == [0, 46, 74]
    assert readings == []


@pytest.fixture(scope="module")
def repeating(plain: Gemma) -> list[list[int]]:
    """Prompts whose answers repeat what was there before: the beginning of a plain answer, and it once more."""
    made = []
    for seed in range(6):
        ids = tokens_of(12, seed)
        answer = plain.generate(ids, max_new_tokens=40, min_new_tokens=40).token_ids
        made.append([*ids, *answer, *ids])
    return made


@pytest.mark.parametrize("room", [9, 30, 64], indirect=True)
def test_guesses_change_no_text(
    room: int, guessing: Gemma, plain: Gemma, repeating: list[list[int]], readings: list[int]
) -> None:
    """And none that turns out wrong pushes a token out that is needed again."""
    assert guessing.graph.role == "windowed_last8"
    options: dict[str, Any] = {"max_new_tokens": 90, "min_new_tokens": 90}
    found = [guessing.generate(prompt, **options) for prompt in repeating]
    assert [each.token_ids for each in found] == [plain.generate(each, **options).token_ids for each in repeating]
    statistics = [each.speculation for each in found if each.speculation is not None]
    assert sum(each.accepted for each in statistics) > 20
    assert sum(each.drafted - each.accepted for each in statistics) > 20
    assert readings == []


def test_guesses_of_a_smaller_model(
    folder: Path, plain: Gemma, repeating: list[list[int]], readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller model's own guesses go back too; as many as there is room for, whatever they cost."""
    monkeypatch.setattr("gemma_runtime.state.capacity_for", lambda window, device: window + 9)
    monkeypatch.setattr(DraftLength, "best", lambda self, kind, most: most)
    model = Gemma(folder, threads=1, draft=folder)
    found = model.generate(repeating[0], max_new_tokens=60, min_new_tokens=60)
    assert found.token_ids == plain.generate(repeating[0], max_new_tokens=60, min_new_tokens=60).token_ids
    assert found.speculation is not None
    assert found.speculation.accepted > 20
    assert readings == []


@pytest.mark.parametrize("room", ROOMS, indirect=True)
def test_several_prompts_at_once(room: int, windowed: Gemma, plain: Gemma) -> None:
    """Rows of different lengths push their tokens out at different steps, and take over one another's places."""
    prompts = [tokens_of(count, seed=count) for count in (3, 45, 9, 8, 21, 60)]
    found = windowed.generate_many(prompts, samples=2, batch_size=4, max_new_tokens=24)
    answers = [plain.generate(prompt, max_new_tokens=24).token_ids for prompt in prompts]
    assert [each.token_ids for each in found] == [answer for answer in answers for _ in range(2)]


def test_float16(folder: Path, tmp_path: Path) -> None:
    model = export(
        ExportRequest(checkpoint=folder.parent / "checkpoint", precision="fp16", output=tmp_path / "folder")
    ).folder.directory
    assert [graph.role for graph in read_manifest(model).graphs][-2:] == ["windowed", "windowed_last8"]
    ids = tokens_of(27 * WINDOW)
    pair = [Gemma(model, speculation="off", threads=1, windowed=word).sequence() for word in ("on", "off")]
    rows = [np.stack([last(sequence, [token]) for token in ids]) for sequence in pair]
    # kernels add up in another order over the whole text than over the window
    assert 0 < np.abs(rows[0] - rows[1]).max() <= tolerances.FP16_LOGITS * rows[1].std()


# what is asked of graph_for, and what it says
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"installed": (1, 28, 0)}, "onnx/model_windowed.onnx needs onnxruntime 1.29.0 or later, found 1.28.0"),
    ({"provider": "directml"}, "directml has no kernel for them, found on cpu and cuda"),
    ({"static": True}, "a CUDA graph needs caches of full size"),
    ({"provider": "cuda"}, "guessing ahead needs caches of full size on cuda with onnxruntime 1.32.0"),
    ({"installed": (1, 29, 0)}, "guessing ahead needs caches of full size on cpu with onnxruntime 1.29.0"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_where_it_cannot_be(change: dict[str, Any], message: str, folder: Path) -> None:
    manifest = read_manifest(folder)
    options: dict[str, Any] = {"installed": (1, 32, 0), **change}
    assert graph_for(manifest, **options).role == "last8"
    assert graph_for(manifest, windowed="off", **options).role == "last8"
    with pytest.raises(ProviderError) as caught:
        graph_for(manifest, windowed="on", **options)
    assert caught.value.exit_code == 8
    assert caught.value.message == f"window-sized caches: {message}"
    assert caught.value.hint


@pytest.mark.parametrize(("provider", "installed"), [("cuda", (1, 32, 0)), ("cuda", (1, 29, 0)), ("cpu", (1, 31, 1))])
def test_without_guessing_the_graph_of_the_last_position_does(
    provider: str, installed: tuple[int, ...], folder: Path
) -> None:
    """CUDA's cache has no room behind the window; releases before 1.32 do not take the graph that checks guesses."""
    found = graph_for(read_manifest(folder), installed, provider=provider, guesses=False)
    assert found.role == "windowed"
    assert graph_for(read_manifest(folder), installed, provider=provider, guesses=False, windowed="off").role == "last8"


def test_another_number_of_positions_does_too(folder: Path) -> None:
    """A folder exported with --logits all has no graph of the last position alone."""
    manifest = read_manifest(folder)
    graphs = tuple(
        dataclasses.replace(graph, logits="all") if graph.role == "windowed" else graph for graph in manifest.graphs
    )
    manifest = dataclasses.replace(manifest, graphs=graphs)
    assert graph_for(manifest, (1, 32, 0), provider="cuda", guesses=False).role == "windowed"
    with pytest.raises(ProviderError, match="guessing ahead needs caches of full size") as caught:
        graph_for(manifest, (1, 32, 0), provider="cuda", windowed="on")
    assert "--speculate off" in str(caught.value.hint)


def test_a_folder_without_such_graphs(tiny_fp32: Path) -> None:
    assert Gemma(tiny_fp32, threads=1).graph.role == "last8"
    with pytest.raises(ProviderError, match=r"this folder \(ort, fp32\) has no graph with them"):
        Gemma(tiny_fp32, threads=1, windowed="on")


@pytest.mark.gpu
def test_cuda(folder: Path, tmp_path: Path) -> None:
    """Buffers exactly as long as the window, which go on by one token a step."""
    started = start_provider(PROVIDERS["cuda"])
    if not started.starts:
        pytest.skip(f"CUDA does not start here: {started.reason}")
    made = export(ExportRequest(checkpoint=folder.parent / "checkpoint", precision="fp16", output=tmp_path / "folder"))
    pair = [
        Gemma(made.folder.directory, provider="cuda", speculation="off", windowed=word).sequence()
        for word in ("on", "off")
    ]
    ids = tokens_of(27 * WINDOW)
    for begin, end in ((0, 50), (50, 53), *((index, index + 1) for index in range(53, len(ids)))):
        found, expected = (last(sequence, ids[begin:end]) for sequence in pair)
        assert np.abs(found - expected).max() <= tolerances.FP16_LOGITS * expected.std()
    assert [sequence.opened.graph.role for sequence in pair] == ["windowed", "last8"]


def test_words_that_mean_nothing(folder: Path) -> None:
    with pytest.raises(PromptError, match="windowed must be one of auto, on, off, found 'yes'") as caught:
        Gemma(folder, windowed="yes")
    assert caught.value.exit_code == 2


def test_options_of_the_command(folder: Path, tiny_fp32: Path) -> None:
    texts = []
    for option in ("--windowed", "--no-windowed"):
        result = CliRunner().invoke(cli, [str(folder), "def", "--max-new-tokens", "100", option])
        assert result.exit_code == 0, result.stderr
        texts.append(result.stdout)
    assert texts[0] == texts[1] != ""
    assert_error(gemma_run(tiny_fp32, "def", "--windowed"), 8, "error: window-sized caches: this folder (ort, fp32)")
    both = CliRunner().invoke(cli, [str(folder), "def", "--windowed", "--cuda-graphs"])
    assert both.exit_code == 2
    assert "--windowed and --cuda-graphs exclude one another" in both.stderr
