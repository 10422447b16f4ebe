"""Many conversations, one after the other and at once: right answers, and memory that stays."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from code_prompts import prompts

from gemma_runtime import Gemma

PROMPTS = prompts(16, seed=8)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["plain", "looking_up", "looking_up_int4", "guided", "guided_int4"])
def test_eight_threads_at_once(name: str, request: pytest.FixtureRequest) -> None:
    model: Gemma = request.getfixturevalue(name)
    expected = [model.generate(prompt, max_new_tokens=16).token_ids for prompt in PROMPTS]
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    start = threading.Barrier(8)

    def answers(number: int) -> None:
        conversation = model.conversation()
        start.wait()
        # each in another order, every other one with a conversation for each prompt
        for index in range(number, number + 8):
            chosen = conversation if number % 2 else model.conversation()
            place = index % len(PROMPTS)
            found[number, place] = chosen.generate(PROMPTS[place], max_new_tokens=16).token_ids

    threads = [threading.Thread(target=answers, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 64
    assert [key for key, tokens in found.items() if tokens != expected[key[1]]] == []


class Watched:
    """A session that knows how many runs it has had at once."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._running, self.runs, self.most = 0, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        self._running += 1
        self.runs, self.most = self.runs + 1, max(self.most, self._running)
        self._session.run_with_iobinding(binding)
        self._running -= 1


@pytest.mark.timeout(120)
def test_memory_of_one_run_whatever_the_number_of_threads(plain: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(plain._opened._session)
    monkeypatch.setattr(plain._opened, "_session", watched)
    threads = [
        threading.Thread(target=plain.generate, args=("x = 1\n" * 50,), kwargs={"max_new_tokens": 20}) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watched.runs >= 8 * 5
    assert watched.most == 1


_MEASURE = """
import gc, json, sys, threading
from gemma_runtime import Gemma

folder, count, draft = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None

def resident():
    gc.collect()
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) << 10

def converse(times):
    for _ in range(times):
        conversation = model.conversation()
        for _ in range(2):
            answers.append(conversation.generate("x = [1, 1, 1, 1, 1, " * 2, max_new_tokens=8).token_ids)

def together(times):
    threads = [threading.Thread(target=converse, args=(times // count,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return resident()

model = Gemma(folder, threads=1, draft=draft)
answers = []
before = together(48)
print(json.dumps({"grown": together(152) - before, "answers": len(answers), "different": len(set(answers))}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("threads", "draft"), [(1, False), (8, False), (8, True)])
def test_two_hundred_conversations_leave_no_memory_behind(
    threads: int, draft: bool, tiny_fp32: Path, tiny_int4: Path
) -> None:
    """A cache of 256 tokens is 1 MB here: 150 of them would show."""
    arguments = [str(tiny_fp32), str(threads), str(tiny_int4) if draft else ""]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    found = json.loads(done.stdout)
    assert (found["answers"], found["different"]) == (400, 1)
    assert found["grown"] < 8 << 20
