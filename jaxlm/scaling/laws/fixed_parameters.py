"""Parameters that a study holds at values: `--fix alpha=0.35`."""

from collections.abc import Sequence

from jaxlm.scaling.laws import loss_laws


def parse(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """{law: {parameter: value}} of NAME=VALUE, held in every law that has the parameter with the
    meaning of E + A/N^alpha + B/D^beta (not farseer), and LAW.NAME=VALUE, held in one law.

    Raises: ValueError naming the text and what fits.
    """
    out: dict[str, dict[str, float]] = {name: {} for name in loss_laws.LAWS}
    for text in texts:
        left, sign, right = text.partition("=")
        law, dot, name = left.rpartition(".")
        try:
            value = float(right)
        except ValueError:
            raise ValueError(
                f"--fix {text!r}: NAME=VALUE or LAW.NAME=VALUE is needed, such as alpha=0.35"
            ) from None
        if dot and law not in loss_laws.LAWS:
            raise ValueError(f"--fix {text!r}: {law!r} is none of {', '.join(loss_laws.LAWS)}")
        among = [law] if dot else [k for k in loss_laws.LAWS if k != "farseer"]
        having = [k for k in among if name in loss_laws.LAWS[k].held]
        if not having:
            names = sorted({n for k in among for n in loss_laws.LAWS[k].held})
            raise ValueError(f"--fix {text!r}: {name!r} is none of {', '.join(names)}")
        for k in having:
            if name in out[k]:
                raise ValueError(f"--fix {text!r}: {k}.{name} is fixed twice")
            out[k][name] = value
    return {k: v for k, v in out.items() if v}
