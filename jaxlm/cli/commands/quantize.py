"""`jaxlm quantize`: the matrices of a trained model in 8, 4 or 2 bits."""

import pathlib
from collections.abc import Sequence

import tyro

from jaxlm.convert.quantised import rounded_runs
from jaxlm.core import cache
from jaxlm.eval import paired_weights
from jaxlm.ops import quant
from jaxlm.train import trained_weights
from jaxlm.train.run import environment


def quantize(args: Sequence[str]) -> int:
    """jaxlm quantize RUN OUT --scheme int4"""

    def command(
        run: tyro.conf.Positional[pathlib.Path],
        out: tyro.conf.Positional[pathlib.Path],
        scheme: quant.Name,
        group: int | None = None,
        affine: bool | None = None,
        double_quant: bool = False,
        tables: bool = False,
        method: rounded_runs.Method = "rtn",
        calibration: str | None = None,
        data: str | None = None,
        checkpoint: trained_weights.Which = "last",
        windows: int = 128,
        documents: int = 256,
    ) -> int:
        """Make a run directory with the matrices of a trained model's layers in few bits.

        `jaxlm sample`, `jaxlm eval` and `jaxlm.load` read it as any other, adapters are trained on
        it (Run.adapter), and `jaxlm export` writes it in few bits. Norms, biases and routers stay
        as they are, and so do the embedding table and the output matrix without --tables.

        Args:
            run: The run directory, such as runs/demo.
            out: The run directory to make; it must not exist.
            scheme: Integers of 8, 4 or 2 bits, nf4 (QLoRA's 4 bits), mxfp4 (4 bits of floating
                point with powers of two for scales) or fp8 (E4M3).
            group: Inputs that share a scale, for integers: 64 for int4 and int2 where nothing is
                given, and all of an output's for int8.
            affine: Whether integers have a zero for each scale; where nothing is given, int4 and
                int2 do.
            double_quant: Whether the scales of nf4 are in 8 bits, too.
            tables: Whether the embedding table and the output matrix are packed, too; by rounding,
                as integers.
            method: rtn rounds to the nearest; gptq and awq choose integers by what the matrices
                read on the calibration text.
            calibration: A file of texts, or a corpus, that gptq and awq read.
            data: A file of texts, or a corpus, on which both models are compared; the calibration
                text where only that is given.
            checkpoint: The last checkpoint, or the one with the best evaluation.
            windows: Rows of data.seq tokens of the calibration text that are read.
            documents: Documents that are compared.
        """
        environment.quiet()
        cache.programs()
        settings = quant.Scheme(scheme, group, affine, double_quant, tables)
        result = rounded_runs.quantise(
            run, out, settings, method, calibration, data,
            which=checkpoint, windows=windows, documents=documents,
        )  # fmt: skip
        print(f"{out}: {scheme}, {method}; {_sizes(result)}")
        if result.comparison is not None:
            _show(result.comparison, data or f"{calibration}, which was calibrated on")
        return 0

    return tyro.cli(command, args=list(args), prog="jaxlm quantize")


def _sizes(result: rounded_runs.Quantised) -> str:
    size = result.size
    whole = 8 * result.file_bytes / (size.packed + size.others)
    return (
        f"{size.packed:,} weights at {size.bits:.3f} bits each, "
        f"{size.others:,} others at {8 * size.others_bytes / size.others:.0f}; "
        f"{result.file_bytes:,} bytes on disk, {whole:.3f} bits a weight in all"
    )


def _show(c: paired_weights.Comparison, name: str) -> None:
    low, high = c.interval
    print(f"on {name} ({c.documents} documents, {c.tokens:,} tokens):")
    print(f"  nats per token    {c.before:.4f} -> {c.after:.4f}")
    print(f"  difference        {c.after - c.before:+.4f}, 95 % [{low:+.4f}, {high:+.4f}]")
    print(f"  perplexity        times {c.ratio:.4f}")
    print(f"  same top token    {c.agreement:.2%}")
    print(f"  KL                {c.kl:.3e}; by position:")
    for first, value in c.kl_by_position:
        print(f"    from {first:<6} {value:.3e}")
