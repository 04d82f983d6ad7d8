"""jaxlm serve: a trained model behind HTTP."""

import functools
import pathlib
import signal
from collections.abc import Sequence

import tyro

from jaxlm.core import cache as program_cache
from jaxlm.core.remote import staging
from jaxlm.decode import prompt_tokens
from jaxlm.decode.serve import engine, worker
from jaxlm.ops.quant.cache_entries import Numbers
from jaxlm.parallel import devices
from jaxlm.train import trained_weights
from jaxlm.train.run import directory


def serve(args: Sequence[str]) -> int:
    """The exit code of `jaxlm serve` with these arguments."""
    return tyro.cli(_command, args=list(args), prog="jaxlm serve")


def _command(
    run: tyro.conf.Positional[pathlib.Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    template: str | None = None,
    checkpoint: trained_weights.Which = "last",
    cache: Numbers | None = None,
    capacity: tyro.conf.OmitArgPrefixes[engine.Capacity] = engine.Capacity(),
) -> int:
    """Answer requests in the form of OpenAI's API: completions, chat completions, streams.

    SIGTERM and Ctrl-C end it once the requests that it has are answered.

    Args:
        run: The run directory, such as runs/demo.
        host: The address to listen at; 0.0.0.0 is every address of this machine.
        port: The port; 0 takes a free one.
        name: The model's name in requests; the run's name where none is given.
        template: The template of conversations, as `jaxlm sample` has it.
        checkpoint: The last checkpoint, or the one with the best evaluation.
        cache: Numbers of the KV cache, 8 bits each; the model's own where none are given.
        capacity: Slots, their length, and what is shared.
    """
    try:
        import uvicorn

        from jaxlm.decode.serve import http_api
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'jaxlm[serve]'") from error
    program_cache.programs()
    run = staging.local(run)
    saved = trained_weights.load(run, checkpoint, cache=cache)
    tokenizer = directory.tokenizer(run, saved.run)
    trained_weights.refuse_template(run, saved.run, template)
    chat = prompt_tokens.written(saved.run.data, template)
    running = engine.Engine(saved.model, saved.params, capacity, tokenizer)
    size = devices.binary(running.cache_bytes)
    print(
        f"{run}: {capacity.slots} slots of {capacity.length:,} tokens, {size} of cache when all "
        f"are full, and up to {capacity.prefix_mib:g} MiB of prefixes",
        flush=True,
    )
    conversation = (
        None
        if chat is None
        else functools.partial(prompt_tokens.asked, saved.run.data, chat, tokenizer)
    )
    ends = (tokenizer.special["eos"], *trained_weights.stop_tokens(run))
    served = http_api.Served(
        name or saved.run.name, worker.Worker(running), tokenizer, ends, conversation
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn, which ends by them, raises them once more
    uvicorn.run(http_api.app(served), host=host, port=port, log_level="info", access_log=False)
    return 0
