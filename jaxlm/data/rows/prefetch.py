"""Batches read ahead of use, in threads or in processes."""

import multiprocessing
import os
import threading
from collections.abc import Generator
from typing import Any

ENDLESS = 1 << 40  # steps
_THREADS = 2  # batches read at once, and
_AHEAD = 4  # read ahead of use, when workers = 0


def end_with_parent() -> None:
    """In a worker, end the process when the one that started it is gone, however it went: a killed
    run cannot stop its workers, and they would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_ahead(steps: Any, workers: int) -> Generator[Any]:
    """steps[0], steps[1], ... read ahead in threads, or in `workers` processes, by grain."""
    import grain
    from absl import flags

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    ahead: Any = grain.MapDataset.source(steps).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # grain hands absl flags to its workers and fails unless someone parsed them.
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(ahead)
    try:
        yield from iterator
    finally:
        iterator.close()
