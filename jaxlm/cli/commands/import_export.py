"""`jaxlm import` and `jaxlm export`: checkpoints of transformers as run directories, and back."""

import pathlib
from collections.abc import Sequence
from typing import Literal

import tyro

from jaxlm.cli import launch
from jaxlm.parallel.plan import Plan
from jaxlm.train import trained_weights
from jaxlm.train.run import environment


def import_(args: Sequence[str]) -> int:
    """jaxlm import HF_DIR RUN"""

    def command(
        checkpoint: tyro.conf.Positional[pathlib.Path],
        run: tyro.conf.Positional[pathlib.Path],
        tokenizer: str | None = None,
        ignore: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        context: int | None = None,
        dequantize: bool = False,
        plan: Plan = Plan(),
    ) -> int:
        """Make a run directory of a checkpoint of transformers (safetensors and config.json).

        Args:
            checkpoint: The directory that holds config.json and the weights; or a checkpoint on the
                Hugging Face hub, hf://org/name or hf://org/name@revision, which is fetched (so is
                org/name where there is no folder org here).
            run: The run directory to make, such as runs/llama; it must not exist.
            tokenizer: `bytes`, or the path of a tokenizer, in place of the checkpoint's own.
            ignore: A field of config.json that is unknown here and that you know to change
                nothing; may be given several times. A field that is understood is never ignored.
            context: For LongRoPE and dynamic NTK, whose angles depend on the length of a text: the
                length that they are wanted for, in place of the original context.
            dequantize: Keep weights that are stored in few bits (GPTQ, AWQ, compressed-tensors,
                bitsandbytes, MXFP4, float8) as float32 arrays; else they stay in few bits where a
                form here holds them exactly.
            plan: The devices over which the weights are split meanwhile.
        """
        launch.devices(plan.devices)
        from jaxlm.convert import pretrained
        from jaxlm.convert.families import rope_parameters
        from jaxlm.train.run import run as runs

        environment.quiet()
        imported = pretrained.import_run(
            checkpoint, run, tokenizer, plan, ignore, context, dequantize
        )
        for name in ignore:
            print(f"config.json: {name} was ignored: nothing here computes with it")
        if notice := rope_parameters.notice(imported.model):
            print(notice)
        print(
            f"{run}: {runs.parameters(imported):,} parameters, tokenizer {imported.data.tokenizer}"
        )
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm import")


def export(args: Sequence[str]) -> int:
    """jaxlm export RUN HF_DIR"""

    def command(
        run: tyro.conf.Positional[pathlib.Path],
        target: tyro.conf.Positional[pathlib.Path],
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        shard_gb: float = 5.0,
        model_type: str | None = None,
        checkpoint: trained_weights.Which = "last",
        tokenizer: bool = True,
    ) -> int:
        """Write a trained model as a directory that transformers loads.

        Args:
            run: The run directory, such as runs/demo.
            target: The directory to make; it must not exist.
            dtype: What the weights are stored in.
            shard_gb: The largest file, in 10**9 bytes; one tensor is never cut.
            model_type: Which architecture of transformers; the first that can express the model's
                config, or the one it was imported as, where nothing is given.
            checkpoint: The last checkpoint, or the one with the best evaluation.
            tokenizer: Whether the tokenizer is written too.
        """
        from jaxlm.convert import pretrained

        if shard_gb <= 0:
            raise ValueError(f"shard_gb: {shard_gb} given; a positive number of 10**9 bytes")
        kind = pretrained.export_run(
            run,
            target,
            dtype=dtype,
            shard_bytes=int(shard_gb * 10**9),
            model_type=model_type,
            with_tokenizer=tokenizer,
            which=checkpoint,
        )
        print(f"{target}: {kind}, {dtype}")
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm export")
