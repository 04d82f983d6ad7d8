"""Curation on a CPU: near duplicates beside datatrove's MinHash stages, and a whole recipe.

    python experiments/benchmarks/curate_cpu.py                     # 10^5 documents
    python experiments/benchmarks/curate_cpu.py --documents 2000

Documents are drawn from 50,000 words by Zipf's law, 20 to 500 words each, seeded; one in ten is a
copy of an earlier one with 2 % of its words changed. Every part runs in a process of its own, one
after the other, on one core: CPU seconds are user and system time of that process less its start
(importing, drawing the documents), memory is its peak. `near` measures, proposes, verifies and
decides; `datatrove` is signatures, buckets, clusters and filter with its defaults (14 buckets of
8), which verify nothing; both have shingles of five words. `recipe` is everything from a .jsonl
file to the curated directory: exact copies, lines, near copies, decontamination.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

VOCABULARY = 50_000
PARTS = ("near", "datatrove", "recipe")


def texts(count: int, seed: int = 0) -> list[str]:
    """The documents."""
    import numpy as np

    rng, drawn = random.Random(seed), np.random.default_rng(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randrange(2, 10))) for _ in range(VOCABULARY)]
    weights = 1 / np.arange(1, VOCABULARY + 1)
    cumulative = np.cumsum(weights / weights.sum())
    out: list[str] = []
    for number in range(count):
        if out and number % 10 == 9:
            copy = rng.choice(out).split(" ")
            out.append(" ".join(rng.choice(words) if rng.random() < 0.02 else w for w in copy))
            continue
        places = np.searchsorted(cumulative, drawn.random(rng.randrange(20, 500)))
        out.append(" ".join(words[min(place, VOCABULARY - 1)] for place in places.tolist()))
    return out


def near(documents: list[str], folder: pathlib.Path) -> dict[str, int]:
    """The near step alone, from texts in the work folder to the decision."""
    import numpy as np

    from jaxlm.data.curate import corpus_step, recipe, scoring
    from jaxlm.data.curate.duplicates.near import Near
    from jaxlm.data.curate.workspace import Workspace

    work, step = Workspace(str(folder / "work")), Near()
    stage = [scoring.Stage(step, recipe.identity(step, 0), 0)]
    shards = [documents[i : i + 2000] for i in range(0, len(documents), 2000)]
    chains = [scoring.score(work, scoring.Chain(work.put_texts(s), ()), stage) for s in shards]
    count = len(documents)
    sizes = np.array([len(text) for text in documents], np.int64)
    ids = [f"{number:08}" for number in range(count)]
    first = np.cumsum([0, *map(len, shards)])
    arrays = [work.arrays(chain.keys[0]) for chain in chains]
    given = corpus_step.Documents(ids, np.zeros(count, np.int32), sizes, first, arrays, ids)
    alive = np.ones(count, bool)
    decision = step.decide(corpus_step.Corpus(given, alive, corpus_step.none(), lambda *_: alive))
    return {"removed": len(decision.removals)}


def datatrove(documents: list[str], folder: pathlib.Path) -> dict[str, int]:
    """datatrove's four stages, the documents in memory."""
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from loguru import logger

    logger.remove()
    plain = xxhash.xxh64_intdigest
    # datatrove 0.10.1 hands text to xxhash, whose fourth version takes bytes alone
    setattr(xxhash, "xxh64_intdigest", lambda text: plain(text.encode()))  # noqa: B010
    given = [Document(text=text, id=str(n)) for n, text in enumerate(documents)]
    paths = [str(folder / name) for name in ("signatures", "buckets", "removed")]
    config = minhash.MinhashConfig()
    minhash.MinhashDedupSignature(paths[0], config).run(iter(given), 0, 1)
    buckets = minhash.MinhashDedupBuckets(paths[0], paths[1], config=config)
    for rank in range(config.num_buckets):
        buckets.run(None, rank, config.num_buckets)
    minhash.MinhashDedupCluster(paths[1], paths[2], config=config).run(None, 0, 1)
    kept = sum(1 for _ in minhash.MinhashDedupFilter(paths[2]).run(iter(given), 0, 1))
    return {"removed": len(documents) - kept}


def write(documents: list[str], folder: pathlib.Path) -> None:
    """The files that a recipe reads: a source, and a task of 1,000 items."""
    with (folder / "in.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    with (folder / "task.jsonl").open("w") as file:
        for text in texts(1000, seed=1):
            file.write(json.dumps({"question": text[:200], "answer": "yes"}) + "\n")


def recipe(documents: list[str], folder: pathlib.Path) -> dict[str, int]:
    """A whole recipe, from a file to a directory."""
    from jaxlm.data.curate import curation
    from jaxlm.data.curate.decontaminate import Decontaminate
    from jaxlm.data.curate.duplicates.copies import Exact
    from jaxlm.data.curate.duplicates.near import Near
    from jaxlm.data.curate.duplicates.repeated_lines import Lines
    from jaxlm.data.curate.recipe import Recipe, Source

    steps = (Exact(), Lines(), Near(), Decontaminate(tasks=(str(folder / "task.jsonl"),)))
    given = Recipe((Source("in", str(folder / "in.jsonl")),), steps)
    manifest = curation.curate(given, folder / "out")
    return {"removed": len(documents) - manifest["documents"]}


def measure(part: str, count: int) -> dict[str, float]:
    """One part, in this process."""
    documents = texts(count)
    with tempfile.TemporaryDirectory() as folder:
        write(documents, pathlib.Path(folder))
        before, began = time.process_time(), time.monotonic()
        result = {"near": near, "datatrove": datatrove, "recipe": recipe}[part](
            documents, pathlib.Path(folder)
        )
        seconds = time.process_time() - before
        wall = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rate = count / seconds
    return {"cpu_s": seconds, "wall_s": wall, "per_cpu_s": rate, "peak_gib": peak, **result}


def main() -> None:
    """Run every part in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--here", action="store_true", help="one part, in this process, as JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.parts[0], options.documents)))
        return
    print("| part | documents per CPU second | CPU s | wall s | peak GiB | removed |")
    print("|---|---|---|---|---|---|")
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for part in options.parts:
        line = [sys.executable, __file__, "--here", "--documents", str(options.documents)]
        done = subprocess.run([*line, "--parts", part], env=env, check=True, capture_output=True)
        r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {part} | {r['per_cpu_s']:,.0f} | {r['cpu_s']:.1f} | {r['wall_s']:.1f} "
            f"| {r['peak_gib']:.2f} | {r['removed']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
