"""One row's text as its tokens arrive, up to the first stop string."""

from collections.abc import Sequence

from jaxlm.data.tokenizers import tokenizer as tokenizers


class Watch:
    """The text of a continuation, from the tokenizer's streaming decoder.

    A stop string may begin and end inside tokens. The row stops at the first token after which its
    text holds one, and the text is cut before it, at the earliest if there are several.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], strings: Sequence[str]
    ):
        self._stream = tokenizer.stream()
        for token in prompt:  # kinds whose text depends on the neighbours see them
            self._stream.push(int(token))
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)
        self._given = 0
        self.text = ""
        self.tokens = 0
        self.stopped = False

    def push(self, token: int) -> None:
        """Add the text of one more token."""
        self.tokens += 1
        self._add(self._stream.push(token))

    def follow(self, tokens: Sequence[int]) -> None:
        """Add those of a continuation's tokens that were not seen, up to a stop string."""
        while self.tokens < len(tokens) and not self.stopped:
            self.push(tokens[self.tokens])

    def take(self) -> str:
        """The text that is certain and was not taken yet. What may be the beginning of a stop
        string is held back."""
        end = len(self.text) if self.stopped else len(self.text) - self._held()
        piece, self._given = self.text[self._given : end], max(self._given, end)
        return piece

    def finish(self) -> str:
        """The rest of the text, when no token will follow."""
        if not self.stopped:
            self._add(self._stream.finish())
        piece, self._given = self.text[self._given :], len(self.text)
        return piece

    def _add(self, piece: str) -> None:
        start = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        starts = [at for at in (self.text.find(s, start) for s in self._strings) if at >= 0]
        if starts:
            self.text, self.stopped = self.text[: min(starts)], True

    def _held(self) -> int:
        """Characters at the end that begin a stop string."""
        for n in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(s.startswith(self.text[-n:]) for s in self._strings if len(s) > n):
                return n
        return 0
