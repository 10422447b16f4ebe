"""Which tokens a window-sized cache holds, against a cache that is filled token by token."""

from __future__ import annotations

import pytest

from gemma_runtime.window_layout import WindowLayout, capacity_for

# (window, capacity)
SIZES = [(1, 1), (5, 5), (5, 6), (5, 9), (8, 72), (9, 17)]


def held_after(window: int, capacity: int, tokens: int) -> list[int]:
    """A buffer that drops all but the window's other tokens when there is no room for the next one."""
    held: list[int] = []
    for token in range(tokens):
        if len(held) == capacity:
            held = held[capacity - window + 1 :]
        held.append(token)
    return held


@pytest.mark.parametrize(("window", "capacity"), SIZES)
def test_resident_tokens(window: int, capacity: int) -> None:
    layout = WindowLayout(window=window, capacity=capacity)
    for tokens in range(5 * capacity + 3):
        held = held_after(window, capacity, tokens)
        assert layout.resident(tokens) == len(held)
        assert held == list(range(tokens - len(held), tokens))


@pytest.mark.parametrize(("window", "capacity"), SIZES)
def test_going_back_is_exact_where_the_operator_says_so(window: int, capacity: int) -> None:
    """L(T - k) == L(T) - k, and just so up to the next eviction."""
    layout = WindowLayout(window=window, capacity=capacity)
    for tokens in range(4 * capacity):
        for length in range(tokens + 1):
            exact = layout.resident(length) == layout.resident(tokens) - (tokens - length)
            assert layout.goes_back(tokens, length) is exact
            assert (tokens < layout.next_eviction(length)) is exact


@pytest.mark.parametrize(
    ("window", "device", "capacity"),
    [(8, "cpu", 72), (512, "cpu", 576), (4096, "cpu", 4608), (8, "cuda", 8), (4096, "cuda", 4096)],
)
def test_room_behind_the_window(window: int, device: str, capacity: int) -> None:
    """CUDA's kernel takes no other size than the window."""
    assert capacity_for(window, device) == capacity
