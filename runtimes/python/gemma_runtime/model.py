"""A folder, loaded: prompts in, text out."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gemma_runtime.answer import Answer, AnswerKeywords, AnswerOptions
from gemma_runtime.chat import END_OF_TURN
from gemma_runtime.chat_template import folds_system
from gemma_runtime.errors import GemmaRuntimeError, ManifestError, PromptError
from gemma_runtime.graph_choice import choose_provider
from gemma_runtime.manifest import Graph, Manifest, read_manifest, verify_hashes, verify_structure
from gemma_runtime.prompts import Prompt, prompt_ids
from gemma_runtime.results import Completion, Piece
from gemma_runtime.sequence import TokenSequence
from gemma_runtime.session import OpenedGraph
from gemma_runtime.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from gemma_runtime.chat_session import Chat
    from gemma_runtime.classify import Judgement
    from gemma_runtime.policies import Policy
    from gemma_runtime.speculation import Drafter, KernelDifference

__all__ = ["Conversation", "Gemma"]

_SPECULATION = ("auto", "lookup", "off")
_WINDOWED = ("auto", "on", "off")


class Gemma:
    """A folder that gemma-export wrote, loaded; one object serves any number of conversations and threads.

    Args:
        directory: the folder.
        provider: "cpu", "cuda", "directml", or "auto": CUDA where this folder and this onnxruntime can, else the CPU.
        threads: of the CPU's kernels; as many as this process may have if not given.
        verify: also read and hash the weight data before loading it.
        draft: a folder with a smaller model of the same tokenizer that guesses tokens ahead; with speculation "auto".
        speculation: "auto": the draft model's guesses where there is one, else what followed the same tokens earlier in
            the text; "lookup": the latter; "off". Greedy text stays the same, sampled text's distribution too.
        cuda_graphs: run single tokens by the folder's static twin, which CUDA captures once and replays; it holds a
            second copy of the weights on the device.
        windowed: "auto": where they can, layers with a window keep no more than it, which saves memory; "on": an error
            where they cannot; "off". Logits are the same but for rounding, which 8-bit activations enlarge; with a
            draft model a seed gives another text of the same distribution. CUDA can only with speculation "off",
            without `cuda_graphs`.

    Raises:
        GemmaRuntimeError: any subclass.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        verify: bool = False,
        draft: Path | str | None = None,
        speculation: str = "auto",
        cuda_graphs: bool = False,
        windowed: str = "auto",
    ) -> None:
        _check_word("speculation", speculation, _SPECULATION)
        _check_word("windowed", windowed, _WINDOWED)
        if draft is not None and speculation != "auto":
            raise PromptError(
                f"a draft model guesses nothing with speculation {speculation!r}",
                hint="Leave out one of the two: draft or speculation.",
            )
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 1024):
            raise PromptError(f"threads must be from 1 to 1024, found {threads}", hint="Leave it out for the default.")
        directory = Path(directory)
        self.manifest: Manifest = read_manifest(directory)
        verify_structure(directory, self.manifest)
        if verify:
            verify_hashes(directory, self.manifest)
        # what runs it, and why that
        self.provider, self.provider_reason = choose_provider(self.manifest, provider)
        # only what the manifest lists: a file that was put there later is covered by no hash
        listed = frozenset(entry.path for entry in self.manifest.files)
        # a session takes a second per gigabyte and a tokenizer of 256,000 pieces one: side by side
        with concurrent.futures.ThreadPoolExecutor(1, "open") as background:
            opening = background.submit(
                OpenedGraph,
                directory,
                self.manifest,
                provider=self.provider,
                threads=threads,
                static=cuda_graphs,
                windowed=windowed,
                guesses=speculation != "off",
            )
            self.tokenizer = load_tokenizer(directory, listed=listed)
            # whether its chat template has room for a system message
            self.folds_system = folds_system(directory, listed=listed)
            self.stop_ids = _stop_ids(directory, listed, self.manifest.vocab_size, self.tokenizer.find(END_OF_TURN))
            self._opened = opening.result()
        self._speculation = speculation
        # measured when the first answer guesses
        self._difference: KernelDifference | None = None
        self._measuring = threading.Lock()
        self._draft: Gemma | None = None
        if draft is not None:
            # the smaller model may have no such graph: nobody asked it for one
            saving = "off" if windowed == "off" else "auto"
            self._draft = _open_draft(draft, provider=provider, threads=threads, verify=verify, windowed=saving)
            _check_draft(self, self._draft)

    @property
    def graph(self) -> Graph:
        """The graph that runs, as the manifest describes it."""
        return self._opened.graph

    def generate(self, prompt: Prompt, **options: Unpack[AnswerKeywords]) -> Completion:
        """Generates until a stop token or string, `max_new_tokens` or the end of the context.

        Args:
            prompt: a text to continue, messages (`Message` or mappings with role and content), or token ids.
            options: the fields of AnswerOptions.

        Raises:
            PromptError: a prompt or an option that cannot be generated from.
            ModelOutputError: logits that are NaN or infinite.
        """
        return self.answer(prompt, **options).finish()

    def stream(self, prompt: Prompt, **options: Unpack[AnswerKeywords]) -> Iterator[Piece]:
        """The same, piece by piece as the text comes; leaving early ends it."""
        return self.answer(prompt, **options).pieces()

    def answer(self, prompt: Prompt, **options: Unpack[AnswerKeywords]) -> Answer:
        """One answer in the making: iterate over its `pieces()`, then ask for its `completion`."""
        return self.conversation().answer(prompt, **options)

    def conversation(self) -> Conversation:
        """A sequence of prompts, each usually beginning with the last one and its answer, which is not read again."""
        return Conversation(self)

    def generate_many(
        self, prompts: Sequence[Prompt], *, samples: int = 1, batch_size: int = 8, **options: Unpack[AnswerKeywords]
    ) -> list[Completion]:
        """Answers several prompts of any length, several rows in each run of the model.

        Eight rows cost the CPU's kernels about twice what one does. Nothing is guessed ahead.

        Args:
            prompts: see generate.
            samples: answers to each prompt, with seeds counting up from the sampling's; the prompt is read once.
            batch_size: rows of a run at most; a row that ends makes room for the next prompt.
            options: the fields of AnswerOptions.

        Returns:
            The answers in the order of the prompts, those to one prompt side by side.
        """
        from gemma_runtime.batch import generate_many

        return generate_many(self, prompts, samples=samples, batch_size=batch_size, options=AnswerOptions(**options))

    def chat(self, *, system: str = "", escape: bool = False) -> Chat:
        """A conversation turn by turn: see Chat.

        Raises:
            PromptError: no chat model, or no system role for `system`.
        """
        from gemma_runtime.chat_session import Chat

        return Chat(self, system=system, escape=escape)

    def classify(
        self, text: str, *, policy: str | Policy, response: str | None = None, any_model: bool = False
    ) -> Judgement:
        """Whether a text, or a response to it, violates a policy: see Judge, which keeps the text's cache.

        Raises:
            PromptError: no ShieldGemma (`any_model` takes others), no such policy, or a text that cannot be judged.
            ModelOutputError: logits that are NaN or infinite.
        """
        from gemma_runtime.classify import Judge

        return Judge(self, any_model=any_model).judge(text, policy=policy, response=response)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        Raises:
            PromptError: see generate.
        """
        return prompt_ids(prompt, self.tokenizer, self.manifest, folds_system=self.folds_system)

    def sequence(self, capacity: int = 0) -> TokenSequence:
        """An empty sequence of the graph, for callers with a loop of their own."""
        return TokenSequence(self._opened, capacity)

    def _kernel_difference(self) -> KernelDifference:
        """What an answer that guesses starts from: the same for each, whatever was asked before."""
        from gemma_runtime.speculation import measure_difference

        with self._measuring:
            if self._difference is None:
                self._difference = measure_difference(self._opened, self.tokenizer)
        return dataclasses.replace(self._difference)

    def _drafter(self, options: AnswerOptions, draft_sequence: Callable[[Gemma], TokenSequence]) -> Drafter | None:
        """What guesses ahead for one answer; the smaller model's sequence is the conversation's."""
        if self._speculation == "off" or not self._opened.chunked or self._opened.positions == 1:
            return None
        from gemma_runtime.sampling import Sampling, TokenChooser
        from gemma_runtime.speculation import DraftLength, DraftModel, PromptLookup, row_cost

        cost, most = row_cost(self.manifest), (self._opened.positions or 8) - 1
        if self._draft is None:
            return PromptLookup(DraftLength(cost, most=most))
        # penalties and constraints would need the text; the larger model applies them to what is guessed
        vocab_size = self._draft.manifest.vocab_size
        sampling = (options.sampling or Sampling()).for_draft(vocab_size)
        chooser = TokenChooser(
            sampling,
            vocab_size=vocab_size,
            prompt_ids=(),
            # as the larger model's: another guess would never be kept
            stop_ids=self.stop_ids | frozenset(options.stop_ids),
            allowed_size=self.tokenizer.size,
            banned=self.tokenizer.never_chosen,
        )
        # a guess is a step of the smaller model, which reads that much less
        cost += self._draft.manifest.weight_bytes / self.manifest.weight_bytes
        stopped = (lambda: False) if options.cancel is None else options.cancel.is_set
        return DraftModel(draft_sequence(self._draft), chooser, DraftLength(cost, most=most), stopped)


class Conversation:
    """Prompts that share a cache: only what differs from the text so far is read. One thread at a time.

    Made by `Gemma.conversation`.
    """

    def __init__(self, model: Gemma) -> None:
        self.model = model
        self._sequence: TokenSequence | None = None
        self._guessing: TokenSequence | None = None
        self._busy = threading.Lock()

    @property
    def tokens(self) -> tuple[int, ...]:
        """Those whose keys and values are in the cache."""
        return () if self._sequence is None else tuple(self._sequence.tokens)

    def generate(self, prompt: Prompt, **options: Unpack[AnswerKeywords]) -> Completion:
        """See Gemma.generate; the prompt is the whole text, what the cache has of it is found."""
        return self.answer(prompt, **options).finish()

    def stream(self, prompt: Prompt, **options: Unpack[AnswerKeywords]) -> Iterator[Piece]:
        """See Gemma.stream."""
        return self.answer(prompt, **options).pieces()

    def answer(self, prompt: Prompt, **options: Unpack[AnswerKeywords]) -> Answer:
        """See Gemma.answer."""
        chosen = AnswerOptions(**options)
        return self.begin(self.model.encode(prompt), chosen)

    def begin(self, ids: list[int], options: AnswerOptions, *, guesses: bool = True) -> Answer:
        """The same of a prompt that is encoded already.

        Args:
            ids: what `Gemma.encode` gave.
            options: how to generate.
            guesses: whether tokens are guessed ahead where the model does that.

        Raises:
            PromptError: an option that cannot be generated from.
        """
        if self._sequence is None:
            self._sequence = self.model.sequence(len(ids) + min(options.max_new_tokens, 256))
        return Answer(
            self._sequence,
            ids,
            options,
            tokenizer=self.model.tokenizer,
            stop_ids=self.model.stop_ids,
            drafter=self.model._drafter(options, self._draft_sequence) if guesses else None,
            difference=self.model._kernel_difference,
            busy=self._busy,
        )

    def _draft_sequence(self, draft: Gemma) -> TokenSequence:
        if self._guessing is None:
            self._guessing = draft.sequence()
        return self._guessing


def _check_word(name: str, found: str, known: Sequence[str]) -> None:
    if found not in known:
        raise PromptError(
            f"{name} must be one of {', '.join(known)}, found {found!r}", hint="Leave it out for the default."
        )


def _open_draft(draft: Path | str, *, provider: str, threads: int | None, verify: bool, windowed: str) -> Gemma:
    try:
        return Gemma(draft, provider=provider, threads=threads, verify=verify, windowed=windowed)
    except GemmaRuntimeError as error:
        # there are two folders: which one is wrong?
        raise type(error)(f"draft model: {error.message}", hint=error.hint) from error


def _check_draft(model: Gemma, draft: Gemma) -> None:
    probe = "def f(x):\n    return 'é', \"日本\"  # <start_of_turn>\n"
    if draft.tokenizer.encode(probe) != model.tokenizer.encode(probe) or draft.tokenizer.size != model.tokenizer.size:
        raise PromptError(
            "the draft model's tokenizer differs from the model's: its guesses would be of other tokens",
            hint="Take a smaller model of the same family as --draft.",
        )


def _stop_ids(directory: Path, listed: frozenset[str], vocab_size: int, end_of_turn: int | None) -> frozenset[int]:
    """eos_token_id of generation_config.json (one or a list), and the end of a turn."""
    path = directory / "generation_config.json"
    if path.name not in listed:
        raise ManifestError(f"the manifest lists no {path.name}", hint="Export the folder again.")
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path.name} cannot be read: {error}", hint="Export the folder again.") from error
    ids: Sequence[Any] = found if isinstance(found, list) and found else [found]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ManifestError(
                f"{path.name}: eos_token_id must be token ids from 0 to {vocab_size - 1}, found {found!r}",
                hint="Correct the checkpoint's generation_config.json and export again.",
            )
    return frozenset(ids) | (frozenset() if end_of_turn is None else {end_of_turn})
