"""Stop strings, also where they begin in one token and end in another."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_runtime.errors import PromptError

__all__ = ["StopText"]


class StopText:
    """Lets text through up to the first stop string; not even a part of a stop string gets out.

    The stop string that ends first counts, as if each character were looked at alone; of several that end at the same
    character the longest. How the text is cut into pieces makes no difference.

    Args:
        stops: strings that end the text; none lets everything through.

    Raises:
        PromptError: an empty stop string, one that is not valid UTF-8, or something that is no string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        # one string is one stop string, not as many as it has characters
        self._stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                found = "an empty one" if stop == "" else repr(stop)
                raise PromptError(
                    f"a stop string must be text of at least one character, found {found}",
                    hint="Leave it out, or name the text to stop at.",
                )
            try:
                stop.encode("utf-8")
            except UnicodeEncodeError as error:
                # no text of a model's could ever contain it
                raise PromptError(
                    f"a stop string is not valid UTF-8 at character {error.start}", hint="Re-encode it."
                ) from error
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._found: str | None = None

    @property
    def found(self) -> str | None:
        """The stop string that ended the text."""
        return self._found

    def push(self, text: str) -> str:
        """What may be shown after more text; once a stop string was found, nothing."""
        if self._found is not None:
            return ""
        # what is held back is the longest end of the text that may become a stop string, so none began before it
        text = self._held + text
        ends = [(place + len(stop), -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            end, negative_length, self._found = min(ends)
            self._held = ""
            return text[: end + negative_length]
        held = self._beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, at the end of the text: a stop string that never got its last character."""
        text, self._held = self._held, ""
        return text

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
