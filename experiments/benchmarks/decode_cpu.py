"""Decoding on CPU beside `transformers.generate`: tokens per second on the same weights.

    python experiments/benchmarks/decode_cpu.py [--sizes 10m 124m] [--batches 1 4 16] [--rounds 3]
                                                [--minutes 8]

All sides decode greedily from the same random weights (exported to transformers in memory), with
the same prompts and the same number of new tokens. Each has a process of its own, all with large
pages, and they take turns: in one process, torch's threads wait busily for their next task and slow
the other side. The time of each is its median over the rounds, prefill included, compilation
excluded. `float32` is products as they come, by tiles where extra `cpu` is installed; `xla` those
of XLA alone; `int8` and `int4` (--weights) matrices and tables in few bits, at the first batch.
The table's last columns say how many bytes of weights and cache a step reads per second, beside
what the machine's memory gave a plain sum in the same minute, how many tokens agree with
transformers', and the bytes of weights, as they are prepared, beside those of float32.
Rounds are left out, but for one of each row, where --minutes would not do: the last line says how
many there were. Needs torch and transformers (`pip install 'jaxlm[parity]'`).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxlm import models
from jaxlm.core import param
from jaxlm.decode import token_sampling
from jaxlm.models import gpt, llama, packed_weights
from jaxlm.models.model import Model
from jaxlm.ops import quant
from jaxlm.ops.kernels import tiles

SIZES: dict[str, tuple[Any, int]] = {  # config, new tokens
    "10m": (
        llama.Config(
            vocab=4096, embed=320, layers=6, heads=5, kv=5, head=64, ffn=864, context=1024
        ),
        128,
    ),
    "124m": (gpt.Config(), 64),
}
PROMPT = 32
PAUSE_SECONDS = 0.3  # the other side's worker threads spin for a while after their last task
ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS = ("float32", "int8", "int4")
OURS = ("xla", *WEIGHTS)
SIDES = (*OURS, "theirs", "memory")


def torch_linear(w: np.ndarray, inputs: int) -> torch.Tensor:
    """[out, in] from [in..., out...] whose first `inputs` axes are summed."""
    rows = int(np.prod(w.shape[:inputs]))
    return torch.from_numpy(np.ascontiguousarray(w.reshape(rows, -1).T))


def to_llama(cfg: llama.Config, params: Any) -> Any:
    """transformers' LlamaForCausalLM with these weights."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=cfg.vocab,
            hidden_size=cfg.embed,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv,
            head_dim=cfg.head,
            intermediate_size=cfg.ffn,
            rms_norm_eps=cfg.eps,
            rope_parameters={"rope_type": "default", "rope_theta": cfg.theta},
            max_position_embeddings=cfg.context,
            tie_word_embeddings=cfg.tied,
        )
    )
    stacked = params["stack"]["0"]["0_global"]
    state = {
        "model.embed_tokens.weight": torch.tensor(params["embed"]["table"]),
        "model.norm.weight": torch.tensor(params["norm"]),
        "lm_head.weight": torch_linear(params["unembed"], 1),
    }
    for i in range(cfg.layers):
        w = jax.tree.map(lambda x, i=i: x[i], stacked)
        at = f"model.layers.{i}."
        state |= {
            at + "input_layernorm.weight": torch.tensor(w["attn_norm"]),
            at + "post_attention_layernorm.weight": torch.tensor(w["ffn_norm"]),
            at + "self_attn.o_proj.weight": torch_linear(w["attn"]["o"], 2),
            **{
                f"{at}self_attn.{n}_proj.weight": torch_linear(w["attn"][n], 1)
                for n in ("q", "k", "v")
            },
            **{
                f"{at}mlp.{n}_proj.weight": torch_linear(w["ffn"][n], 1)
                for n in ("gate", "up", "down")
            },
        }
    model.load_state_dict(state)
    return model.eval()


def to_gpt(cfg: gpt.Config, params: Any) -> Any:
    """transformers' GPT2LMHeadModel with these weights; its linear layers hold [in, out]."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=cfg.vocab,
            n_embd=cfg.embed,
            n_layer=cfg.layers,
            n_head=cfg.heads,
            n_positions=cfg.context,
            layer_norm_epsilon=cfg.eps,
        )
    )
    d, p = cfg.embed, params
    flat = {
        "wte.weight": p["embed"]["table"],
        "wpe.weight": p["embed"]["positions"],
        "ln_f.weight": p["norm"]["scale"],
        "ln_f.bias": p["norm"]["bias"],
    }
    for i in range(cfg.layers):
        w = jax.tree.map(lambda x, i=i: x[i], p["stack"]["0"]["0_pre"])
        a, f, at = w["attn"], w["ffn"], f"h.{i}."
        flat |= {
            at + "ln_1.weight": w["attn_norm"]["scale"],
            at + "ln_1.bias": w["attn_norm"]["bias"],
            at + "ln_2.weight": w["ffn_norm"]["scale"],
            at + "ln_2.bias": w["ffn_norm"]["bias"],
            at + "attn.c_attn.weight": np.concatenate([a[n].reshape(d, d) for n in "qkv"], 1),
            at + "attn.c_attn.bias": np.concatenate([a[f"{n}_bias"].reshape(d) for n in "qkv"]),
            at + "attn.c_proj.weight": a["o"].reshape(d, d),
            at + "attn.c_proj.bias": a["o_bias"],
            at + "mlp.c_fc.weight": f["up"],
            at + "mlp.c_fc.bias": f["up_bias"],
            at + "mlp.c_proj.weight": f["down"],
            at + "mlp.c_proj.bias": f["down_bias"],
        }
    state = {f"transformer.{n}": torch.from_numpy(np.ascontiguousarray(x)) for n, x in flat.items()}
    model.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    return model.eval()


def weights(model: Model) -> Any:
    """Random weights, with matrices twice as large as at the start of training, so that the next
    token is rarely a near-tie that rounding decides."""
    params = jax.jit(lambda key: param.init(model.spec, key))(jax.random.key(0))
    return param.map(lambda p, w: np.asarray(2 * w if p.fan_in else w), model.spec, params)


def memory_bytes_per_second() -> float:
    """What reading memory gives torch's threads: the best of ten sums over 256 MB."""
    x = torch.ones(2**26)
    return max(x.nbytes / clock(lambda: x.sum()) for _ in range(10))


def clock(f: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def prepared(side: str, model: Model, host: Any) -> Any:
    """The weights of one of our sides as decoding reads them."""
    params = jax.device_put(host)
    if side in ("int8", "int4"):
        scheme = quant.Scheme(side, tables=True)
        make = packed_weights.rounding(scheme)
        params = packed_weights.encode(model.spec, params, make, scheme)
    return token_sampling.prepare(model, params, "xla" if side == "xla" else "platform")


def generator(side: str, size: str, batch: int) -> tuple[Callable[[], np.ndarray], int]:
    """(a function that decodes once: token ids int[batch, new], bytes of weights)."""
    cfg, new = SIZES[size]
    model = models.build(cfg)
    host = weights(model)
    prompts = np.random.default_rng(0).integers(0, cfg.vocab, (batch, PROMPT))
    count = param.count(model.spec)
    if side in OURS:
        params = prepared(side, model, host)
        settings = token_sampling.Sampling(max_new=new, temperature=0.0)
        stored = sum(x.nbytes for x in jax.tree.leaves(params))
        return lambda: np.asarray(
            token_sampling.generate(model, params, prompts.tolist(), settings).tokens
        ), stored
    theirs = (to_llama if size == "10m" else to_gpt)(cfg, host)
    theirs.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompts)

    def generate() -> np.ndarray:
        with torch.inference_mode():
            out = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, PROMPT:].numpy()

    return generate, 4 * count


def work(side: str, size: str, batch: int) -> None:
    """One side's process: for every line read, decode once and print the seconds it took."""
    if side == "memory":
        for _ in sys.stdin:
            print(json.dumps(memory_bytes_per_second()), flush=True)
        return
    generate, stored = generator(side, size, batch)
    print(json.dumps([generate().tolist(), stored]), flush=True)  # also the warm-up
    for _ in sys.stdin:
        print(json.dumps(clock(generate)), flush=True)


def started(side: str, size: str, batch: int) -> subprocess.Popen:
    """One side's process, waiting for its first line."""
    given = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONWARNINGS": "ignore"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", side, "--sizes", size, "--batches", str(batch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | given | {"PYTHONPATH": path},
    )


def told(process: subprocess.Popen) -> Any:
    """What a process prints next."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def asked(process: subprocess.Popen) -> float:
    """What a process answers to a line, after the others have come to rest."""
    assert process.stdin is not None
    time.sleep(PAUSE_SECONDS)
    process.stdin.write("go\n")
    process.stdin.flush()
    return told(process)


def measure(
    size: str, batch: int, rounds: int, weights: list[str], until: float
) -> tuple[list[str], int]:
    """(rows of the table, one for each of our sides; rounds that were made: one at least, and none
    that begins after `until`, by `time.monotonic`)."""
    cfg, new = SIZES[size]
    model = models.build(cfg)
    ours = ["xla", *weights]
    processes = {side: started(side, size, batch) for side in (*ours, "theirs", "memory")}
    first = {side: told(processes[side]) for side in (*ours, "theirs")}
    times: dict[str, list[float]] = {side: [] for side in processes}
    done = 0
    while done < rounds and (not done or time.monotonic() < until):
        done += 1
        for side, process in processes.items():
            times[side].append(asked(process))
    for process in processes.values():
        process.communicate()
    memory = max(times["memory"])
    seconds = {side: statistics.median(times[side]) for side in (*ours, "theirs")}
    count = param.count(model.spec)
    # a step reads every weight but the embedding tables it only looks into, and the filled cache
    looked_into = (cfg.vocab if size == "10m" else cfg.context) * cfg.embed / count
    heads = cfg.kv if size == "10m" else cfg.heads
    cache = 4 * 2 * batch * cfg.layers * heads * cfg.head * (PROMPT + new // 2)
    rows = []
    for side in ours:
        tokens, stored = first[side]
        rate = ((1 - looked_into) * stored + cache) * new / seconds[side]
        ratios = [b / a for a, b in zip(times[side], times["theirs"], strict=True)]
        equal = np.mean(np.array(tokens) == np.array(first["theirs"][0]))
        rows += [
            f"| {size} | {batch} | {side} | {batch * new / seconds[side]:,.0f} "
            f"| {batch * new / seconds['theirs']:,.0f} | {seconds['theirs'] / seconds[side]:.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {seconds['xla'] / seconds[side]:.2f}x "
            f"| {rate / 1e9:.1f} | {memory / 1e9:.1f} | {rate / memory:.0%} | {equal:.1%} "
            f"| {stored / 1e6:.0f} MB, {stored / 4 / count:.3f}x |"
        ]
    return rows, done


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.worker:
        return work(args.worker, args.sizes[0], args.batches[0])
    print(
        f"jax {jax.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads), "
        f"transformers {transformers.__version__}; {PROMPT} prompt tokens; tiles "
        f"{'available' if tiles.available() else 'not installed'}\n"
    )
    print(
        "| size | batch | weights | jaxlm tokens/s | transformers | ratio | / xla | GB/s | memory "
        "| share | equal | weights |"
    )
    print(12 * "|---" + "|")
    begun, least = time.monotonic(), args.rounds
    pairs = [(size, batch) for size in args.sizes for batch in args.batches]
    for number, (size, batch) in enumerate(pairs):
        few = args.weights if batch == args.batches[0] else ["float32"]
        until = begun + 60 * args.minutes * (number + 1) / len(pairs)
        rows, done = measure(size, batch, args.rounds, few, until)
        least = min(least, done)
        print(*rows, sep="\n", flush=True)
    print(f"\nMedians of {least} to {args.rounds} rounds, {time.monotonic() - begun:.0f} s in all.")


if __name__ == "__main__":
    main()
