"""Machine code for products of few rows on a CPU (extra `cpu`): LLVM's text, compiled by llvmlite
for the processor it runs on, and called by XLA through its foreign function interface.

y[M, O] = x[M, I] w[I, O], where w lies in tiles of LANES outputs, [O / LANES, I, LANES]. A tile is
read once, in order, for up to MOST rows, whose sums stay in registers. Each of y's numbers is the
sum of its products in the order of the inputs, one after another, so that it does not depend on
which other rows there are, how many, or which thread computes it.

A product is cut into tiles, which the calling thread and XLA's own threads take from a common
counter. The caller waits for tiles that others have begun, and never for a task that has not: so it
ends even where all of XLA's threads are within such calls.
"""

import functools
from typing import Any

LANES = 32
"""Outputs of a tile."""
VECTOR = 16  # numbers of a register of 512 bits; where they are smaller LLVM takes several
HALVES = LANES // VECTOR
FORMATS = {"f32": 4 * LANES, "bf16": 2 * LANES, "s8": LANES, "u8": LANES, "u4": LANES // 2}
"""Bytes of one input of a tile: numbers; signed integers with scales; integers with scales and
zeros; the same in 4 bits, of which a byte holds inputs 2n (low) and 2n + 1."""
BLOCK = 128  # inputs whose products are summed before they are added to y, where w has no scales
SMALL = 2**16  # bytes of w up to which waking another thread costs more than it saves


def blocks(features: str) -> tuple[int, ...]:
    """Numbers of rows that are computed at a time, by the processor's registers."""
    return (12, 8, 6, 4, 3, 2, 1) if "+avx512f" in features else (3, 2, 1)


@functools.cache
def compiled(name: str) -> int:
    """The address of the handler for a format.

    Raises: ImportError without llvmlite.
    """
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3, jit=True
    )
    module = binding.parse_assembly(text(name, blocks(features)))
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _ENGINES.append(engine)  # the code lives as long as its engine
    return engine.get_function_address("handler")


_ENGINES: list[Any] = []


def text(name: str, rows: tuple[int, ...]) -> str:
    """LLVM's text of a format's handler."""
    parts = [_HEAD, *(_rows(name, n) for n in rows), _work(name, rows), _TASK, _handler(name)]
    return "\n".join(parts)


def _rows(name: str, rows: int) -> str:
    """The product of some rows with one tile."""
    pairs = [(r, h) for r in range(rows) for h in range(HALVES)]
    steps = 2 if name == "u4" else 1
    point = [f"%x{r} = getelementptr float, ptr %x, i64 {{}}" for r in range(rows)]
    lines = [
        f"define internal void @rows{rows}(ptr %x, i64 %ldx, ptr noalias %w, ptr %s, ptr %z, "
        "ptr noalias %y, i64 %ldy, i64 %n, i64 %group) {",
        "entry:",
    ]
    for r in range(rows):
        lines += [
            f"  %xo{r} = mul i64 %ldx, {r}",
            f"  {point[r].format(f'%xo{r}')}",
            f"  %yo{r} = mul i64 %ldy, {r}",
            f"  %y{r} = getelementptr float, ptr %y, i64 %yo{r}",
        ]
    lines += [
        "  br label %groups",
        "groups:",
        "  %g = phi i64 [0, %entry], [%g.next, %add]",
        "  %from = phi i64 [0, %entry], [%to, %add]",
        "  %far = add i64 %from, %group",
        "  %to = call i64 @llvm.smin.i64(i64 %far, i64 %n)",
        "  %at = mul i64 %g, " + str(LANES),
        *(_zeros() if name in ("u8", "u4") else []),
        "  br label %sum",
        "sum:",
        "  %i = phi i64 [%from, %groups], [%i.next, %sum]",
        *(f"  %a{r}.{h} = phi {V} [zeroinitializer, %groups], [%b{r}.{h}.{steps - 1}, %sum]"
          for r, h in pairs),
        *_weights(name),
    ]
    for step in range(steps):
        lines += [f"  %i{step} = add i64 %i, {step}"]
        for r in range(rows):
            at = f"{r}.{step}"
            lines += [
                f"  %xp{at} = getelementptr float, ptr %x{r}, i64 %i{step}",
                f"  %xs{at} = load float, ptr %xp{at}, align 4",
                f"  %xv{at} = insertelement {V} poison, float %xs{at}, i32 0",
                f"  %xb{at} = shufflevector {V} %xv{at}, {V} poison, <{VECTOR} x i32> zeroinitializer",
            ]
            for h in range(HALVES):
                before = f"%b{r}.{h}.{step - 1}" if step else f"%a{r}.{h}"
                lines += [
                    f"  %b{r}.{h}.{step} = call {V} @llvm.fma.v{VECTOR}f32("
                    f"{V} %w{h}.{step}, {V} %xb{at}, {V} {before})"
                ]
    lines += [
        f"  %i.next = add i64 %i, {steps}",
        "  %more = icmp slt i64 %i.next, %to",
        "  br i1 %more, label %sum, label %add",
        "add:",
        "  %first = icmp eq i64 %g, 0",
    ]
    for h in range(HALVES):
        if name in ("f32", "bf16"):
            lines += [f"  %s{h} = fadd {V} zeroinitializer, splat (float 1.0)"]
        else:
            lines += _load(f"s{h}", "%s", "%at", h, 4, V) if name != "u4" else _wide(f"s{h}", "%s", "%at", h)
    for r, h in pairs:
        lines += [
            f"  %yp{r}.{h} = getelementptr float, ptr %y{r}, i64 {h * VECTOR}",
            f"  %yr{r}.{h} = load {V}, ptr %yp{r}.{h}, align 4",
            f"  %yq{r}.{h} = select i1 %first, {V} zeroinitializer, {V} %yr{r}.{h}",
            f"  %yn{r}.{h} = call {V} @llvm.fma.v{VECTOR}f32("
            f"{V} %s{h}, {V} %b{r}.{h}.{steps - 1}, {V} %yq{r}.{h})",
            f"  store {V} %yn{r}.{h}, ptr %yp{r}.{h}, align 4",
        ]
    lines += [
        "  %g.next = add i64 %g, 1",
        "  %left = icmp slt i64 %to, %n",
        "  br i1 %left, label %groups, label %end",
        "end:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


V = f"<{VECTOR} x float>"
I8, I16, I32 = (f"<{VECTOR} x i{n}>" for n in (8, 16, 32))


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


# A product in progress, as 8-byte fields.
JOB = ("next", "done", "users", "tiles", "m", "n", "ldx", "ldy", "groups", "group",
       "x", "w", "s", "z", "y")  # fmt: skip


def _field(name: str, to: str, job: str = "%job") -> str:
    return f"  %{to} = getelementptr i64, ptr {job}, i64 {JOB.index(name)}"


def _work(name: str, rows: tuple[int, ...]) -> str:
    """Computes tiles until none is left."""
    lines = ["define internal void @work(ptr %job) {", "entry:"]
    for field in JOB:
        lines += [_field(field, f"p.{field}")]
        if field not in ("next", "done", "users"):
            kind = "ptr" if field in "xwszy" else "i64"
            lines += [f"  %{field} = load {kind}, ptr %p.{field}, align 8"]
    lines += [
        f"  %tile.bytes = mul i64 %n, {FORMATS[name]}",
        f"  %group.numbers = mul i64 %groups, {LANES}",
        "  br label %take",
        "take:",
        "  %t = atomicrmw add ptr %p.next, i64 1 seq_cst",
        "  %there = icmp slt i64 %t, %tiles",
        "  br i1 %there, label %tile, label %end",
        "tile:",
        "  %w.off = mul i64 %t, %tile.bytes",
        "  %w.at = getelementptr i8, ptr %w, i64 %w.off",
        "  %g.off = mul i64 %t, %group.numbers",
        f"  %s.at = getelementptr {'i16' if name == 'u4' else 'float'}, ptr %s, i64 %g.off",
        "  %z.at = getelementptr i8, ptr %z, i64 %g.off",
        f"  %y.off = mul i64 %t, {LANES}",
        "  %y.at = getelementptr float, ptr %y, i64 %y.off",
        f"  br label %more{rows[0]}",
    ]
    before = "tile"
    for i, n in enumerate(rows):
        after = f"more{rows[i + 1]}" if i + 1 < len(rows) else "next"
        start = "0" if before == "tile" else f"%r{rows[i - 1]}"
        lines += [
            f"more{n}:",
            f"  %r{n} = phi i64 [{start}, %{before}], [%r{n}.next, %some{n}]",
            f"  %r{n}.next = add i64 %r{n}, {n}",
            f"  %fits{n} = icmp sle i64 %r{n}.next, %m",
            f"  br i1 %fits{n}, label %some{n}, label %{after}",
            f"some{n}:",
            f"  %xo{n} = mul i64 %r{n}, %ldx",
            f"  %xr{n} = getelementptr float, ptr %x, i64 %xo{n}",
            f"  %yo{n} = mul i64 %r{n}, %ldy",
            f"  %yr{n} = getelementptr float, ptr %y.at, i64 %yo{n}",
            f"  call void @rows{n}(ptr %xr{n}, i64 %ldx, ptr %w.at, ptr %s.at, ptr %z.at, "
            f"ptr %yr{n}, i64 %ldy, i64 %n, i64 %group)",
            f"  br label %more{n}",
        ]
        before = f"more{n}"
    lines += [
        "next:",
        "  %d = atomicrmw add ptr %p.done, i64 1 seq_cst",
        "  br label %take",
        "end:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


_HEAD = f"""
declare {V} @llvm.fma.v{VECTOR}f32({V}, {V}, {V})
declare i64 @llvm.smin.i64(i64, i64)
declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()
"""

_TASK = f"""
define internal void @leave(ptr %job) {{
  %p = getelementptr i64, ptr %job, i64 {JOB.index("users")}
  %users = atomicrmw sub ptr %p, i64 1 seq_cst
  %last = icmp eq i64 %users, 1
  br i1 %last, label %drop, label %end
drop:
  call void @free(ptr %job)
  br label %end
end:
  ret void
}}
define internal void @task(ptr %job) {{
  call void @work(ptr %job)
  call void @leave(ptr %job)
  ret void
}}
"""

# XLA's structs by bytes, xla/ffi/api/c_api.h. Of a frame: 8 extension, 16 api, 24 ctx, 72 args.args,
# 112 rets.rets. Of a buffer: 24 data, 40 dims. Of an api: 32 and 36 its version, 64 Error_Destroy,
# 136 ThreadPool_Schedule, 144 ThreadPool_NumThreads. A frame with an extension asks for the
# handler's version, which goes to bytes 24 and 28 of the metadata.
_HANDLER = """
define ptr @handler(ptr %frame) {{
  %query = call ptr @at(ptr %frame, i64 8)
  %api = call ptr @at(ptr %frame, i64 16)
  %asked = icmp ne ptr %query, null
  br i1 %asked, label %version, label %execute
version:
  %metadata = call ptr @at(ptr %query, i64 24)
  %api.version = getelementptr i8, ptr %api, i64 32
  %both = load i64, ptr %api.version, align 4
  %major = trunc i64 %both to i32
  %known = icmp eq i32 %major, 0
  br i1 %known, label %tell, label %back
tell:
  %version.to = getelementptr i8, ptr %metadata, i64 24
  store i64 %both, ptr %version.to, align 4
  br label %back
back:
  ret ptr null
execute:
  %ctx = call ptr @at(ptr %frame, i64 24)
  %args = call ptr @at(ptr %frame, i64 72)
  %rets = call ptr @at(ptr %frame, i64 112)
  %x = call ptr @at(ptr %args, i64 0)
  %w = call ptr @at(ptr %args, i64 8)
  %s = call ptr @at(ptr %args, i64 {scales})
  %z = call ptr @at(ptr %args, i64 {zeros})
  %y = call ptr @at(ptr %rets, i64 0)
  %m = call i64 @dim(ptr %x, i64 0)
  %n = call i64 @dim(ptr %x, i64 1)
  %o = call i64 @dim(ptr %y, i64 1)
  %tiles = sdiv i64 %o, {lanes}
{group}
  %job = call ptr @malloc(i64 {size})
{fill}
  %bytes.tile = mul i64 %n, {tile}
  %bytes = mul i64 %bytes.tile, %tiles
  %large = icmp sgt i64 %bytes, {small}
  br i1 %large, label %ask, label %compute
ask:
  %count = alloca i64, align 8
  store i64 1, ptr %count, align 8
  %q = alloca [4 x i64], align 8
  call void @set(ptr %q, i64 0, i64 32)
  call void @set(ptr %q, i64 1, i64 0)
  call void @put(ptr %q, i64 2, ptr %ctx)
  call void @put(ptr %q, i64 3, ptr %count)
  %threads = call ptr @at(ptr %api, i64 144)
  %failed = call ptr %threads(ptr %q)
  call void @drop(ptr %api, ptr %failed)
  %all = load i64, ptr %count, align 8
  %most = call i64 @llvm.smin.i64(i64 %all, i64 %tiles)
  br label %call
call:
  %k = phi i64 [1, %ask], [%k.next, %again]
  %k.next = add i64 %k, 1
  %wanted = icmp slt i64 %k, %most
  br i1 %wanted, label %send, label %compute
send:
  %users = getelementptr i64, ptr %job, i64 {users}
  %u = atomicrmw add ptr %users, i64 1 seq_cst
  %a = alloca [5 x i64], align 8
  call void @set(ptr %a, i64 0, i64 40)
  call void @set(ptr %a, i64 1, i64 0)
  call void @put(ptr %a, i64 2, ptr %ctx)
  call void @put(ptr %a, i64 3, ptr @task)
  call void @put(ptr %a, i64 4, ptr %job)
  %schedule = call ptr @at(ptr %api, i64 136)
  %refused = call ptr %schedule(ptr %a)
  %sent = icmp eq ptr %refused, null
  br i1 %sent, label %again, label %alone
alone:
  call void @drop(ptr %api, ptr %refused)
  call void @leave(ptr %job)
  br label %compute
again:
  br label %call
compute:
  call void @work(ptr %job)
  br label %wait
wait:
  %done.at = getelementptr i64, ptr %job, i64 {done}
  %done = load atomic i64, ptr %done.at seq_cst, align 8
  %whole = icmp sge i64 %done, %tiles
  br i1 %whole, label %end, label %idle
idle:
  %yielded = call i32 @sched_yield()
  br label %wait
end:
  call void @leave(ptr %job)
  ret ptr null
}}
define internal ptr @at(ptr %p, i64 %bytes) {{
  %q = getelementptr i8, ptr %p, i64 %bytes
  %v = load ptr, ptr %q, align 8
  ret ptr %v
}}
define internal i64 @dim(ptr %buffer, i64 %axis) {{
  %dims = call ptr @at(ptr %buffer, i64 40)
  %q = getelementptr i64, ptr %dims, i64 %axis
  %v = load i64, ptr %q, align 8
  ret i64 %v
}}
define internal void @set(ptr %p, i64 %i, i64 %v) {{
  %q = getelementptr i64, ptr %p, i64 %i
  store i64 %v, ptr %q, align 8
  ret void
}}
define internal void @put(ptr %p, i64 %i, ptr %v) {{
  %q = getelementptr ptr, ptr %p, i64 %i
  store ptr %v, ptr %q, align 8
  ret void
}}
define internal void @drop(ptr %api, ptr %error) {{
  %none = icmp eq ptr %error, null
  br i1 %none, label %end, label %destroy
destroy:
  %a = alloca [3 x i64], align 8
  call void @set(ptr %a, i64 0, i64 24)
  call void @set(ptr %a, i64 1, i64 0)
  call void @put(ptr %a, i64 2, ptr %error)
  %f = call ptr @at(ptr %api, i64 64)
  call void %f(ptr %a)
  br label %end
end:
  ret void
}}
"""


def _handler(name: str) -> str:
    """What XLA calls: `x, w[, scales[, zeros]] -> y`."""
    scaled, affine = name not in ("f32", "bf16"), name in ("u8", "u4")
    group = ["  %groups = add i64 0, 1", f"  %group = add i64 0, {BLOCK}"]
    if scaled:
        group = ["  %groups = call i64 @dim(ptr %s, i64 1)", "  %group = sdiv i64 %n, %groups"]
    first = {"next": "0", "done": "0", "users": "1", "ldx": "%n", "ldy": "%o"}
    fill = []
    for i, field in enumerate(JOB):
        if field in ("x", "w", "s", "z", "y"):
            fill += [
                f"  %{field}.data = call ptr @at(ptr %{field}, i64 24)",
                f"  call void @put(ptr %job, i64 {i}, ptr %{field}.data)",
            ]
        else:
            value = first.get(field, f"%{field}")
            fill += [f"  call void @set(ptr %job, i64 {i}, i64 {value})"]
    return _HANDLER.format(
        scales=16 if scaled else 8,
        zeros=24 if affine else 8,
        lanes=LANES,
        group="\n".join(group),
        size=8 * len(JOB),
        fill="\n".join(fill),
        tile=FORMATS[name],
        small=SMALL,
        users=JOB.index("users"),
        done=JOB.index("done"),
    )
