"""LLVM's text of products of few rows with a tile of a matrix.

y[M, O] = x[M, I] w[I, O], where w lies in tiles of LANES outputs, [O / LANES, I, LANES], and x in
blocks of rows, [I, rows] each. A tile is read once, in order, for a block of up to 12 rows, whose
sums stay in registers. Each number of y is a sum in the order of the inputs, group after group, so
that it does not depend on which other rows there are, how many, or which thread computes it.
"""

LANES = 32
"""Outputs of a tile."""

VECTOR = 16  # numbers of a register of 512 bits; where they are smaller LLVM takes several
HALVES = LANES // VECTOR
FORMATS = {"f32": 4 * LANES, "bf16": 2 * LANES, "s8": LANES, "u8": LANES, "u4": LANES // 2}
"""Bytes of one input of a tile: numbers; signed integers with scales; integers with scales and
zeros; the same in 4 bits, of which a byte holds inputs 2n (low) and 2n + 1."""
BLOCK = 128  # inputs whose products are summed before they are added to y, where w has no scales


V = f"<{VECTOR} x float>"
I8, I16, I32 = (f"<{VECTOR} x i{n}>" for n in (8, 16, 32))
FMA = f"call {V} @llvm.fma.v{VECTOR}f32"


def text(name: str, rows: tuple[int, ...]) -> str:
    """Functions @rows<n> of a format for each number of rows, and what they call."""
    return "\n".join([_HEAD, *(_rows(name, n) for n in rows)])


_HEAD = f"""
declare {V} @llvm.fma.v{VECTOR}f32({V}, {V}, {V})
declare i64 @llvm.smin.i64(i64, i64)
"""


def _rows(name: str, rows: int) -> str:
    """The product of some rows with one tile. %x is [inputs, rows]."""
    pairs = [(r, h) for r in range(rows) for h in range(HALVES)]
    steps = 2 if name == "u4" else 1
    lines = [
        f"define internal void @rows{rows}(ptr %x, ptr noalias %w, ptr %s, ptr %z, ptr noalias %y, "
        "i64 %ldy, i64 %n, i64 %group) {",
        "entry:",
        "  br label %groups",
        "groups:",
        "  %g = phi i64 [0, %entry], [%g.next, %add]",
        "  %from = phi i64 [0, %entry], [%to, %add]",
        "  %far = add i64 %from, %group",
        "  %to = call i64 @llvm.smin.i64(i64 %far, i64 %n)",
        f"  %at = mul i64 %g, {LANES}",
        *(_zeros() if name in ("u8", "u4") else []),
        "  br label %sum",
        "sum:",
        "  %i = phi i64 [%from, %groups], [%i.next, %sum]",
    ]
    for r, h in pairs:
        last = f"%b{r}.{h}.{steps - 1}"
        lines += [f"  %a{r}.{h} = phi {V} [zeroinitializer, %groups], [{last}, %sum]"]
    lines += _weights(name)
    for step in range(steps):
        lines += _products(rows, step)
    lines += [
        f"  %i.next = add i64 %i, {steps}",
        "  %more = icmp slt i64 %i.next, %to",
        "  br i1 %more, label %sum, label %add",
        "add:",
        *_added(name, pairs, steps - 1),
        "  %g.next = add i64 %g, 1",
        "  %left = icmp slt i64 %to, %n",
        "  br i1 %left, label %groups, label %end",
        "end:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _products(rows: int, step: int) -> list[str]:
    """Every row's sums after the input %i + step: %b<row>.<half>.<step>."""
    lines = [
        f"  %i{step} = add i64 %i, {step}",
        f"  %io{step} = mul i64 %i{step}, {rows}",
        f"  %x{step} = getelementptr float, ptr %x, i64 %io{step}",
    ]
    for r in range(rows):
        at = f"{r}.{step}"
        lines += [
            f"  %xp{at} = getelementptr float, ptr %x{step}, i64 {r}",
            f"  %xs{at} = load float, ptr %xp{at}, align 4",
            f"  %xv{at} = insertelement {V} poison, float %xs{at}, i32 0",
            f"  %xb{at} = shufflevector {V} %xv{at}, {V} poison, <{VECTOR} x i32> zeroinitializer",
        ]
        for h in range(HALVES):
            before = f"%b{r}.{h}.{step - 1}" if step else f"%a{r}.{h}"
            lines += [f"  %b{r}.{h}.{step} = {FMA}({V} %w{h}.{step}, {V} %xb{at}, {V} {before})"]
    return lines


def _added(name: str, pairs: list[tuple[int, int]], step: int) -> list[str]:
    """A group's sums times their scales, added to y, which holds anything before the first."""
    lines = ["  %first = icmp eq i64 %g, 0"]
    for h in range(HALVES):
        if name == "u4":
            lines += _wide(f"s{h}", "%s", "%at", h)
        elif name in ("s8", "u8"):
            lines += _load(f"s{h}", "%s", "%at", h, 4, V)
        else:
            lines += [f"  %s{h} = fadd {V} zeroinitializer, splat (float 1.0)"]
    for r, h in pairs:
        at = f"{r}.{h}"
        lines += [
            f"  %yo{at} = mul i64 %ldy, {r}",
            f"  %ya{at} = add i64 %yo{at}, {h * VECTOR}",
            f"  %yp{at} = getelementptr float, ptr %y, i64 %ya{at}",
            f"  %yr{at} = load {V}, ptr %yp{at}, align 4",
            f"  %yq{at} = select i1 %first, {V} zeroinitializer, {V} %yr{at}",
            f"  %yn{at} = {FMA}({V} %s{h}, {V} %b{at}.{step}, {V} %yq{at})",
            f"  store {V} %yn{at}, ptr %yp{at}, align 4",
        ]
    return lines


def _load(to: str, base: str, index: str, half: int, size: int, kind: str) -> list[str]:
    """A register from element `index` + half * VECTOR of an array of elements of `size` bytes."""
    return [
        f"  %{to}.o = add i64 {index}, {half * VECTOR}",
        f"  %{to}.b = mul i64 %{to}.o, {size}",
        f"  %{to}.p = getelementptr i8, ptr {base}, i64 %{to}.b",
        f"  %{to} = load {kind}, ptr %{to}.p, align {size}",
    ]


def _wide(to: str, base: str, index: str, half: int) -> list[str]:
    """The same of an array of bfloat16, as float32: its numbers are the high halves."""
    return [
        *_load(f"{to}.h", base, index, half, 2, I16),
        f"  %{to}.w = zext {I16} %{to}.h to {I32}",
        f"  %{to}.s = shl {I32} %{to}.w, splat (i32 16)",
        f"  %{to} = bitcast {I32} %{to}.s to {V}",
    ]


def _zeros() -> list[str]:
    """The codes of 0 of the group's outputs, as numbers."""
    lines = []
    for h in range(HALVES):
        lines += _load(f"zc{h}", "%z", "%at", h, 1, I8)
        lines += [f"  %z{h} = uitofp {I8} %zc{h} to {V}"]
    return lines


def _weights(name: str) -> list[str]:
    """The tile's numbers of input %i, of two inputs where a byte holds both: %w<half>.<step>."""
    lines = [f"  %wi = mul i64 %i, {LANES // 2 if name == 'u4' else LANES}"]
    for h in range(HALVES):
        if name == "f32":
            lines += _load(f"w{h}.0", "%w", "%wi", h, 4, V)
        elif name == "bf16":
            lines += _wide(f"w{h}.0", "%w", "%wi", h)
        else:
            lines += _load(f"wc{h}", "%w", "%wi", h, 1, I8)
            if name == "s8":
                lines += [f"  %w{h}.0 = sitofp {I8} %wc{h} to {V}"]
                continue
            lines += [f"  %ww{h} = zext {I8} %wc{h} to {I32}"]
            if name == "u8":
                parts = {0: f"%ww{h}"}
            else:
                lines += [
                    f"  %wl{h} = and {I32} %ww{h}, splat (i32 15)",
                    f"  %wu{h} = lshr {I32} %ww{h}, splat (i32 4)",
                ]
                parts = {0: f"%wl{h}", 1: f"%wu{h}"}
            for step, part in parts.items():
                lines += [
                    f"  %wf{h}.{step} = sitofp {I32} {part} to {V}",
                    f"  %w{h}.{step} = fsub {V} %wf{h}.{step}, %z{h}",
                ]
    return lines
