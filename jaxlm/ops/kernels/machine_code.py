"""Machine code for products of few rows on a CPU (extra `cpu`): `tile_products`, compiled by
llvmlite for the processor it runs on, and called by XLA through its foreign function interface.

A product is cut into tiles, which the calling thread and XLA's own threads take from a common
counter. The caller waits for tiles that others have begun, and never for a task that has not: so it
ends even where all of XLA's threads are within such calls.
"""

import functools
from typing import Any

from jaxlm.ops.kernels import tile_products
from jaxlm.ops.kernels.tile_products import BLOCK, FORMATS, LANES

SMALL = 2**16  # bytes of w up to which waking another thread costs more than it saves


def blocks(features: str) -> tuple[int, ...]:
    """Numbers of rows that are computed at a time, by the processor's registers."""
    return (12, 8, 6, 4, 3, 2, 1) if "+avx512f" in features else (3, 2, 1)


def pieces(rows: int) -> list[tuple[int, int]]:
    """[(number of blocks, rows of each), ...] of so many rows here, in their order."""
    from llvmlite import binding

    left, cut = rows, []
    for size in blocks(binding.get_host_cpu_features().flatten()):
        cut += [(left // size, size)] if left >= size else []
        left %= size
    return cut


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
    products = tile_products.text(name, rows)
    parts = [products, _EXTERNAL, _work(name, rows), _TASK, _handler(name)]
    return "\n".join(parts)


_EXTERNAL = """
declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()
"""

# A product in progress, as 8-byte fields.
POINTERS = ("x", "w", "s", "z", "y")
# `users`, field 2, counts those who still read it: the last one frees it.
JOB = ("next", "done", "users", "tiles", "m", "n", "ldy", "groups", "group", *POINTERS)


def _work(name: str, rows: tuple[int, ...]) -> str:
    """Computes tiles until none is left."""
    lines = ["define internal void @work(ptr %job) {", "entry:"]
    for i, field in enumerate(JOB):
        lines += [f"  %p.{field} = getelementptr i64, ptr %job, i64 {i}"]
        if field not in ("next", "done", "users"):
            kind = "ptr" if field in POINTERS else "i64"
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
        *_cut(rows),
        "next:",
        "  %d = atomicrmw add ptr %p.done, i64 1 seq_cst",
        "  br label %take",
        "end:",
        "  ret void",
        "}",
    ]
    return "\n".join(lines)


def _cut(rows: tuple[int, ...]) -> list[str]:
    """All rows with a tile, by as many blocks of each size as fit, in the order of `pieces`."""
    lines, start, before = [], "0", "tile"
    for n, after in zip(rows, [*(f"more{n}" for n in rows[1:]), "next"]):
        lines += [
            f"more{n}:",
            f"  %r{n} = phi i64 [{start}, %{before}], [%r{n}.next, %some{n}]",
            f"  %r{n}.next = add i64 %r{n}, {n}",
            f"  %fits{n} = icmp sle i64 %r{n}.next, %m",
            f"  br i1 %fits{n}, label %some{n}, label %{after}",
            f"some{n}:",
            f"  %xo{n} = mul i64 %r{n}, %n",
            f"  %xr{n} = getelementptr float, ptr %x, i64 %xo{n}",
            f"  %yo{n} = mul i64 %r{n}, %ldy",
            f"  %yr{n} = getelementptr float, ptr %y.at, i64 %yo{n}",
            f"  call void @rows{n}(ptr %xr{n}, ptr %w.at, ptr %s.at, ptr %z.at, ptr %yr{n}, "
            "i64 %ldy, i64 %n, i64 %group)",
            f"  br label %more{n}",
        ]
        start, before = f"%r{n}", f"more{n}"
    return lines


_TASK = """
define internal void @leave(ptr %job) {
  %p = getelementptr i64, ptr %job, i64 2
  %users = atomicrmw sub ptr %p, i64 1 seq_cst
  %last = icmp eq i64 %users, 1
  br i1 %last, label %drop, label %end
drop:
  call void @free(ptr %job)
  br label %end
end:
  ret void
}
define internal void @task(ptr %job) {
  call void @work(ptr %job)
  call void @leave(ptr %job)
  ret void
}
"""

# XLA's structs by bytes, xla/ffi/api/c_api.h. Of a frame: 8 extension, 16 api, 24 ctx, 72
# args.args, 112 rets.rets. Of a buffer: 24 data, 40 dims. Of an api: 32 and 36 its version, 64
# Error_Destroy, 136 ThreadPool_Schedule, 144 ThreadPool_NumThreads. A frame with an extension asks
# for the handler's version, which goes to bytes 24 and 28 of the metadata.
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
  %m = call i64 @dim(ptr %y, i64 0)
  %all.x = call i64 @dim(ptr %x, i64 0)
  %n = sdiv i64 %all.x, %m
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
    """The function that XLA calls: x, w[, scales[, zeros]] -> y."""
    scaled, affine = name not in ("f32", "bf16"), name in ("u8", "u4")
    group = ["  %groups = add i64 0, 1", f"  %group = add i64 0, {BLOCK}"]
    if scaled:
        group = ["  %groups = call i64 @dim(ptr %s, i64 1)", "  %group = sdiv i64 %n, %groups"]
    first = {"next": "0", "done": "0", "users": "1", "ldy": "%o"}
    fill = []
    for i, field in enumerate(JOB):
        if field in POINTERS:
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
