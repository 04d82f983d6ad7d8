"""Counts of a run's data: what was read, cut and left out, with reasons."""

from typing import NamedTuple

import numpy as np

from jaxlm.data.tokenized import shards, texts


class Tally(NamedTuple):
    """Counts of a source: how many of `what` were read, and texts for training and evaluation. By
    reason: texts cut, and those of `what` left out. apart: answers that do not follow
    their generation prompt (`rendering.Span`). more: further remarks."""

    what: str
    read: int
    train: int
    val: int
    cut: dict[str, int]
    left: dict[str, int]
    apart: dict[str, int] = {}
    more: str = ""

    def line(self) -> str:
        """One line with every count that is not 0."""
        kept = f"{self.train:,} to train on" + (f", {self.val:,} held out" if self.val else "")
        parts = [f"{self.read:,} {self.what} read, {kept}"]
        for name, counts in (("cut", self.cut), ("left out", self.left)):
            if reasons := [f"{n:,} ({why})" for why, n in counts.items() if n]:
                parts.append(f"{name}: {', '.join(reasons)}")
        parts += [f"{n:,} answers {_APART[name]}" for name, n in self.apart.items() if n]
        return "data: " + "; ".join([*parts, *([self.more] if self.more else [])])

    def warnings(self) -> list[str]:
        """Warnings: more than a tenth of the texts cut, or of what was read left out;
        answers that sampling would not begin as training does."""
        kept, lost = self.train + self.val, sum(self.left.values())
        texts = [
            f"data: {n:,} of {kept:,} texts ({n / kept:.0%}) are cut: {why}"
            for why, n in self.cut.items()
            if n > kept / 10
        ]
        if lost > self.read / 10:
            why = ", ".join(f"{n:,} {reason}" for reason, n in self.left.items() if n)
            texts.append(
                f"data: {lost:,} of {self.read:,} {self.what} ({lost / self.read:.0%}) are left "
                f"out: {why}"
            )
        for name, n in self.apart.items():
            if n > kept / 10:
                texts.append(
                    f"data: {n:,} answers {_APART[name]}: sampling starts from other tokens than "
                    "those before these answers"
                )
        return texts


_APART = {
    "merged": "begin in a token that the end of their prompt is part of",
    "opened": "do not begin as the template's generation prompt ends (with a thought, say)",
}


def documents(train: texts.Text, val: texts.Text | None, seq: int) -> Tally:
    """The Tally of text: all of it is read, documents longer than a row in several pieces."""
    parts = list(texts.parts(train).values())
    sizes = [split.lengths for split in (*parts, *texts.parts({} if val is None else val).values())]
    long = sum(int((np.asarray(part, np.int64) > seq + 1).sum()) for part in sizes)
    kept, held, empty = (sum(column) for column in zip(*map(_counts, parts), strict=True))
    return Tally(
        what="documents",
        read=kept + held + empty,
        train=kept,
        val=held,
        cut={},
        left={"empty": empty},
        more=f"{long:,} are longer than data.seq={seq} and read in pieces" if long else "",
    )


def _counts(train: shards.Shards) -> tuple[int, int, int]:
    """Documents of a source: to train on, held out, and left out since they are empty."""
    splits = train.manifest.splits
    held = splits["val"].documents if "val" in splits else 0
    return train.documents, held, train.manifest.empty
