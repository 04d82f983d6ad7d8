"""Planted faults: what each step of curation finds of them, and what it removes besides.

    python -m experiments.curation.planted_faults

Clean documents are docstrings of Python's standard library, or of any source of prose (--source).
Each fault is planted in all of them; the table has the share that a step removes, seeded
(README.md has two runs').
"""

import argparse
import base64
import random
import time
from collections.abc import Callable, Sequence

from jaxlm.data.curate.document_step import Step
from jaxlm.data.curate.steps.c4 import C4
from jaxlm.data.curate.steps.deflate import Compression
from jaxlm.data.curate.steps.fineweb import FineWeb
from jaxlm.data.curate.steps.gopher import Gopher
from jaxlm.data.curate.steps.language import Language
from jaxlm.data.curate.steps.profanity import Profanity
from jaxlm.data.sources import source

STEPS = (Language(), Gopher(), C4(), FineWeb(), Compression(), Profanity())
# Article 1 of the Universal Declaration of Human Rights.
OTHER = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de "
    "raison et de conscience et doivent agir les uns envers les autres dans un esprit de "
    "fraternité.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und "
    "Gewissen begabt und sollen einander im Geiste der Brüderlichkeit begegnen.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están "
    "de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di "
    "ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
)
MENU = ("Home", "About us", "Products", "Contact", "Log in", "Cart (0)", "Terms", "Help", "Blog")

Fault = Callable[[str, random.Random], str]


def shuffled(text: str, draw: random.Random) -> str:
    """The words of a text in any order."""
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def other_language(text: str, draw: random.Random) -> str:
    """A text of the same length in another language."""
    one = draw.choice(OTHER)
    return " ".join([one] * max(1, len(text) // len(one)))


def encoded(text: str, draw: random.Random) -> str:
    """Random bytes in base64, in lines of 76."""
    return base64.encodebytes(draw.randbytes(len(text) * 3 // 4)).decode()


def repeated(text: str, draw: random.Random) -> str:
    """A line of a text again and again, to its length."""
    line = draw.choice([line for line in text.split("\n") if len(line) > 20])[:200]
    return "\n".join([line] * (len(text) // len(line) + 2))


def menu(text: str, draw: random.Random) -> str:
    """Entries of a navigation, a line each."""
    return "\n".join(draw.choices(MENU, k=max(10, len(text) // 9)))


FAULTS: dict[str, Fault] = {
    "none (false alarms)": lambda text, draw: text,
    "shuffled words": shuffled,
    "another language": other_language,
    "base64": encoded,
    "one line repeated": repeated,
    "a menu": menu,
}


def clean(name: str, count: int, seed: int) -> list[str]:
    """Documents of a source that are prose: of 400 characters or more, with five sentences."""
    texts = [document.text for document in source.documents(name)]
    texts = [t for t in texts if len(t) >= 400 and t.count(". ") + t.count(".\n") >= 5]
    return random.Random(seed).sample(texts, min(count, len(texts)))


def removed(step: Step, texts: Sequence[str]) -> list[bool]:
    """Whether a step removes each text."""
    return [step.removal(one.scores) is not None for one in step.scorer()(texts)]


def rate(step: Step, texts: Sequence[str]) -> float:
    """Texts that a step scores in a CPU second."""
    scorer = step.scorer()
    scorer(texts[:8])  # what is loaded once is not counted
    start = time.process_time()
    scorer(texts)
    return len(texts) / max(time.process_time() - start, 1e-9)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="documents of each kind")
    parser.add_argument("--source", default="pydocs", help="clean documents, as data.source")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = clean(args.source, args.count, args.seed)
    names = [step.name for step in STEPS]
    print(f"{len(texts)} documents of each kind, {sum(map(len, texts)) // len(texts)} characters\n")
    print("| documents | " + " | ".join(names) + " | any |")
    print("|---" * (len(names) + 2) + "|")
    for name, fault in FAULTS.items():
        draw = random.Random(f"{args.seed}:{name}")
        planted = [fault(text, draw) for text in texts]
        gone = [removed(step, planted) for step in STEPS]
        shares = [sum(own) / len(own) for own in gone]
        shares.append(sum(map(any, zip(*gone, strict=True))) / len(texts))
        print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    rates = [rate(step, texts) for step in STEPS]
    print("| texts a CPU second | " + " | ".join(f"{value:,.0f}" for value in rates) + " | |")


if __name__ == "__main__":
    main()
