"""Text as it comes; Ctrl-C, or a time limit, ends the answer and not the program.

python examples/stream_and_cancel.py FOLDER "Once upon a time" SECONDS
"""

from __future__ import annotations

import signal
import sys
import threading

from gemma_runtime import Gemma


def main(folder: str, prompt: str, seconds: str) -> None:
    model = Gemma(folder)
    # looked at before each token and between the parts of a long prompt; any thread may set it
    cancel = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: cancel.set())
    limit = threading.Timer(float(seconds), cancel.set)
    limit.start()
    answer = model.answer(prompt, max_new_tokens=2000, min_new_tokens=2000, cancel=cancel)
    for piece in answer.pieces():
        print(piece.text, end="", flush=True)
    limit.cancel()
    done = answer.completion
    print(f"\n{done.finish_reason}: {len(done.token_ids)} tokens at {done.decode_tokens_per_second:.0f} a second")


if __name__ == "__main__":
    main(*sys.argv[1:])
