"""Texts with every kind of fault that the rules look for, drawn from a seed."""

import pydoc_data.topics
import random


def prose(count, seed=0, size=900):
    """Pieces of Python's reference, which has prose, tables and code."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    draw = random.Random(seed)
    starts = [draw.randrange(len(text) - size) for _ in range(count)]
    return [text[start : start + size] for start in starts]


def faulty(count, seed=0):
    """Prose, and copies of it with faults: about nine texts for each of `count`."""
    draw, texts = random.Random(seed), []
    for text in prose(count, seed):
        words, lines = text.split(), text.splitlines()
        draw.shuffle(words)
        texts += [
            text,
            " ".join(words),
            "\n".join(lines + lines[: draw.randrange(len(lines) + 1)]),
            "\n".join([lines[0] or "again"] * draw.randrange(2, 30)),
            "\n\n".join(f"{draw.choice('-•*')} {line}" for line in lines),
            text.replace(" ", "  ").replace(".", "... ").replace("the", "#"),
            (" ".join(text.split()[: draw.randrange(1, 9)]) + ". ") * draw.randrange(2, 40),
            "".join(f"{line}{draw.choice(('', '.', '!', ' {', '…'))}\n" for line in lines),
            "\n".join(f"{' '.join(words[k : k + 7])}." for k in range(0, len(words), 7)),
        ]
    return [*texts, *ODD]


ODD = [
    "",
    " ",
    "\n\n",
    "one",
    "...",
    "# # #\n# # #",
    "No. 5 of the U.S. isn't 'here'. (Really?!) \"Yes.\"  Then\tmore. 3.5% of $4.",
    "Lorem ipsum is here. Then { a bracket }.\nIt uses cookies, and has more words.",
    "First {a}, then text goes on here.\nLorem ipsum dolor sit amet here.",
    "Terms of use apply here now.\nWe like javascript, we do.\nA line[1] with citations[edit].",
    "x" * 1001 + " and more words here.",
    "See https://example.com/a?b=c&d=e. Mail a@b.org; e.g. this, i.e. that... don't, can't.",
    "word.  Another sentence.\u00a0And one. \x0b And one more?! ) Last.",
    "Ein Satz。Noch einer！ 这是一个句子。这是另一个。",
]
