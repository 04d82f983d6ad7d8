"""Mutation analysis of `jaxlm/objectives` and `jaxlm/ops`: small changes to one line each, and
whether the tests of that module notice.

    python -m tests.mutants                      200 mutants, sampled by seed 0
    python -m tests.mutants --sample 20 --file jaxlm/ops/losses/surrogate.py
    python -m tests.mutants --slow               also the slow tests, on what the fast ones miss

A mutant is caught where a test fails or a run takes longer than `--seconds`. Mutants are drawn by a
hash of their function, their line's text and their change, so that most of a sample stays the same
when other lines change. Each mutant runs in a fork of one process that has imported JAX; only its
own module is compiled from changed source, nothing on disk is changed.

Measured over seed 0's sample of 200, fast tests alone: 191 are caught; before the oracles in NumPy
(`test_*pins.py`) 61 of the first 74, as the sample was then, and 101 of the later 125 that there
were. Of the other nine no value changes: operands of a maximum exchanged (twice), a mean for a sum
of which the sign is read, the last axis by default or counted from the front, a tile's size
(twice), the dtype of a count, a column past the only one. By hand: the rejected response's term of
RPO survived before; CPO's, exchanged teacher and student, a dropped power or share, a margin's sign
and smoothing are caught too.
"""

import argparse
import ast
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import pathlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("jaxlm/objectives", "jaxlm/ops")
# Kernels that no CPU runs.
EXCLUDED = ("jaxlm/ops/kernels/cudnn.py", "jaxlm/ops/kernels/splash.py")

PLAIN = "tests/objectives/test_pins.py"
PAIRS = "tests/objectives/preference/test_preference_pins.py"
RL = (
    "tests/objectives/rl/test_rollout_pins.py",
    "tests/ops/losses/test_advantages.py",
    "tests/objectives/rl/test_grpo.py",
    "tests/objectives/rl/test_ppo.py",
    "tests/objectives/rl/test_ratios.py",
)
ATTENTION = ("tests/ops/test_attention.py", "tests/ops/test_position_bias.py")
DPO = (PAIRS, "tests/objectives/preference/test_dpo.py")
REWARD = (PLAIN, "tests/objectives/preference/test_reward.py")
HIDDEN = (PLAIN, "tests/objectives/test_hidden.py")
SFT = (PLAIN, "tests/objectives/test_sft.py")
EXPERTS = "tests/objectives/test_load_balancing.py"
# Test files of each module, the most telling first; of those not named here, its own file.
TESTS: dict[str, tuple[str, ...]] = {
    "objectives/__init__": (PLAIN, PAIRS, "tests/objectives/test_hidden.py"),
    "objectives/multi_token": (PLAIN, "tests/models/test_deepseek.py"),
    "objectives/clm": (*SFT, EXPERTS),
    "objectives/distill": (PLAIN,),
    "objectives/preference/dpo": DPO,
    "objectives/rl/grpo": RL,
    "objectives/log_probs": (*DPO, *REWARD),
    "objectives/mlm": HIDDEN,
    "objectives/objective": ("tests/objectives/test_lora.py",),
    "objectives/rl/ppo": RL,
    "objectives/preference/responses": DPO,
    "objectives/preference/reward": REWARD,
    "objectives/rl/policy_terms": RL,
    "objectives/seq2seq": HIDDEN,
    "objectives/sft": SFT,
    "objectives/targets": HIDDEN,
    "objectives/preference/kto": DPO,
    "ops/attention": ATTENTION,
    "ops/position_bias": (*reversed(ATTENTION),),
    "ops/kernels/blockwise": ATTENTION,
    "ops/losses/divergence": ("tests/ops/losses/test_divergence.py", PLAIN),
    "ops/linear": ("tests/ops/test_linear.py", "tests/objectives/test_lora.py"),
    "ops/losses/cross_entropy": ("tests/ops/losses/test_cross_entropy.py", *SFT),
    "ops/losses/preference": ("tests/ops/losses/test_preference.py", *DPO),
    "ops/losses/ranking": REWARD,
    "ops/losses/advantages": RL,
    "ops/routing": ("tests/ops/test_routing.py", EXPERTS),
    "ops/masks": ATTENTION,
    "ops/losses/shift": (PLAIN, "tests/models/test_deepseek.py"),
    "ops/losses/surrogate": RL,
}

Replacement = tuple[str, ast.AST]

ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
}  # fmt: skip
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
FUNCTIONS = {
    "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "sum": "mean",
    "mean": "sum", "any": "all", "all": "any", "exp": "expm1", "expm1": "exp", "log": "log1p",
    "log1p": "log", "argmax": "argmin", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
    "ones_like": "zeros_like", "sqrt": "square", "square": "abs", "sigmoid": "tanh",
    "log_sigmoid": "sigmoid", "logsumexp": "max", "softmax": "log_softmax",
    "log_softmax": "softmax", "cumsum": "cumprod", "ceil": "floor", "sin": "cos", "cos": "sin",
}  # fmt: skip
# Calls that return their first argument, changed: the change is left out.
IDENTITY = ("stop_gradient", "where", "clip", "maximum", "minimum", "relu", "reshape", "abs")


class Mutant(NamedTuple):
    """A change: of the module at `path` (relative to ROOT), the node of `index` in `ast.walk`'s
    order becomes `replacement`. key orders mutants at random."""

    path: str
    index: int
    replacement: ast.AST
    line: int
    change: str
    key: str


def mutants(path: str, seed: int) -> Iterator[Mutant]:
    """All mutants of a module: of what it computes, not of its annotations, texts, errors."""
    text = (ROOT / path).read_text("utf-8")
    tree = ast.parse(text)
    owner, left_out = owners(tree), exempt(tree)
    lines, seen = text.splitlines(), Counter()
    for index, node in enumerate(ast.walk(tree)):
        if node in left_out:
            continue
        for kind, new in changes(node):
            before, after = ast.unparse(node), ast.unparse(ast.fix_missing_locations(new))
            if before == after:
                continue
            name = f"{path}|{owner.get(node, '')}|{lines[node.lineno - 1].strip()}|{kind}|{after}"
            seen[name] += 1
            key = hashlib.sha256(f"{seed}|{name}|{seen[name]}".encode()).hexdigest()
            change = f"{kind}: {before} -> {after}".replace("\n", " ")
            yield Mutant(path, index, new, node.lineno, change[:200], key)


def owners(tree: ast.AST) -> dict[ast.AST, str]:
    """The function or class that each node is in."""
    names: dict[ast.AST, str] = {}

    def visit(node: ast.AST, name: str) -> None:
        names[node] = name
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}"
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    visit(tree, "")
    return names


def exempt(tree: ast.AST) -> set[ast.AST]:
    """Nodes whose change is no change of a value: annotations, decorators, errors, assertions."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            roots += [
                x.annotation for x in (*a.args, *a.kwonlyargs, *a.posonlyargs) if x.annotation
            ]
            roots += [node.returns] if node.returns else []
            roots += node.decorator_list
        elif isinstance(node, ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            roots.append(node)
        else:
            literal = isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"
            check = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_check")
            roots += [node] if literal or check else []
    return {inner for root in roots for inner in ast.walk(root)}


def changes(node: ast.AST) -> Iterator[Replacement]:
    """(what kind of change, the node that takes its place) of one node."""
    if isinstance(node, ast.BinOp):
        yield from of_operation(node)
    elif isinstance(node, ast.Compare):
        if len(node.ops) == 1:
            for op in COMPARISONS[type(node.ops[0])]:
                yield "compare", ast.Compare(node.left, [op()], node.comparators)
    elif isinstance(node, ast.UnaryOp):
        if not isinstance(node.operand, ast.Constant) or isinstance(node.op, ast.USub):
            yield "sign", node.operand
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", ast.BoolOp(other, node.values)
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "operator", ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
        yield "drop", ast.Pass(lineno=node.lineno, col_offset=node.col_offset)
    elif isinstance(node, ast.IfExp):
        yield "branch", node.body
        yield "branch", node.orelse
    elif isinstance(node, ast.If):
        yield "condition", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant):
        yield from of_constant(node)
    elif isinstance(node, ast.Call):
        yield from of_call(node)
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        first, *rest = node.value.elts
        if len(rest) == 1:
            yield "exchange", ast.Return(ast.Tuple([rest[0], first], ast.Load()))


def of_operation(node: ast.BinOp) -> Iterator[Replacement]:
    if type(node.op) in ARITHMETIC:
        yield "operator", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    if isinstance(node.op, ast.Sub | ast.Div | ast.Pow | ast.MatMult | ast.FloorDiv):
        yield "exchange", ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow):
        yield "drop", node.left
    if isinstance(node.op, ast.Add | ast.Mult):
        yield "drop", node.right


def of_constant(node: ast.Constant) -> Iterator[Replacement]:
    if isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield "constant", ast.Constant(node.value + 1)
    elif isinstance(node.value, float):
        yield "constant", ast.Constant(node.value * 1.5 if node.value else 1.0)


def of_call(node: ast.Call) -> Iterator[Replacement]:
    *place, name = ast.unparse(node.func).split(".")
    if name in FUNCTIONS and (place or name in ("min", "max", "sum", "any", "all")):
        other = ast.parse(".".join([*place, FUNCTIONS[name]]), mode="eval").body
        yield "function", ast.Call(other, node.args, node.keywords)
    plain = [a for a in node.args if not isinstance(a, ast.Starred)]
    if len(plain) == len(node.args):
        for i in range(min(len(plain), 4) - 1):
            order = [*plain]
            order[i], order[i + 1] = order[i + 1], order[i]
            yield "exchange", ast.Call(node.func, order, node.keywords)
    for i in range(len(node.keywords)):
        if node.keywords[i].arg is not None:
            rest = node.keywords[:i] + node.keywords[i + 1 :]
            yield "drop", ast.Call(node.func, node.args, rest)
    if name in IDENTITY and plain:
        inner = plain[1] if name == "where" and len(plain) == 3 else plain[0]
        yield "drop", inner


def source(mutant: Mutant) -> str:
    """The module's text with the change."""
    tree = ast.parse((ROOT / mutant.path).read_text("utf-8"))
    target = list(ast.walk(tree))[mutant.index]

    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return mutant.replacement if node is target else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Swap().visit(tree)))


class Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds and loads one module from changed text."""

    def __init__(self, name: str, path: pathlib.Path, text: str) -> None:
        super().__init__(name, str(path))
        self.text = text

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.name:
            return None
        package = (
            [str(ROOT / "jaxlm" / "objectives")] if self.path.endswith("__init__.py") else None
        )
        return importlib.machinery.ModuleSpec(
            fullname, self, origin=self.path, is_package=package is not None
        )

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec")


def tests_of(path: str) -> list[str]:
    """The test files that exist of a module."""
    name = path.removeprefix("jaxlm/").removesuffix(".py")
    folder, _, stem = name.partition("/")
    files = TESTS.get(name, (f"tests/{folder}/test_{stem}.py",))
    return [file for file in files if (ROOT / file).is_file()]


def warm() -> None:
    """Import all that tests import, then forget the project's own modules."""
    import tests.conftest  # noqa: F401, I001  sets the environment before jax starts
    import pytest  # noqa: F401
    import jaxlm.train.loop  # noqa: F401
    import jaxlm.convert  # noqa: F401

    for name in [n for n in sys.modules if n.split(".")[0] in ("jaxlm", "tests", "experiments")]:
        del sys.modules[name]


def run(mutant: Mutant | None, files: list[str], marks: str, seconds: float) -> tuple[str, float]:
    """("caught", "survived", "late" or "broken"; seconds) of the files' tests under a mutant."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_tested(mutant, files, marks))
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - began > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "late", time.monotonic() - began
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(status)
    # pytest: 0 all passed, 5 nothing was selected; a mutant may also fail while it is imported
    return ("survived" if code in (0, 5) else "caught"), time.monotonic() - began


def _tested(mutant: Mutant | None, files: list[str], marks: str) -> int:
    import pytest

    os.setpgrp()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if mutant is not None:
        name = mutant.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        sys.meta_path.insert(0, Changed(name, ROOT / mutant.path, source(mutant)))
    where = [str(ROOT / file) for file in files]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", marks]
    return int(pytest.main([f"--rootdir={ROOT}", *options, *where]))


def judged(mutant: Mutant, seconds: float, slow: bool) -> tuple[str, float]:
    """(result, seconds) of a mutant under its module's tests; see `run`."""
    files = tests_of(mutant.path)
    result, spent = run(mutant, files, "not slow and not parity", seconds)
    if result == "survived" and slow:
        result, more = run(mutant, files, "slow and not parity", 4 * seconds)
        result, spent = {"caught": "caught slowly"}.get(result, result), spent + more
    return result, spent


def recorded(path: pathlib.Path) -> dict[str, str]:
    """{key: result} of a file that `--out` wrote."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {row["key"]: row["result"] for row in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="how many mutants")
    parser.add_argument("--skip", type=int, default=0, help="leave out the sample's first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", action="append", help="only of this module; may be repeated")
    parser.add_argument("--seconds", type=float, default=240, help="limit of one mutant's tests")
    parser.add_argument("--slow", action="store_true", help="slow tests too, on survivors")
    parser.add_argument("--list", action="store_true", help="print the sample and run nothing")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON object a mutant, to go on from")
    parser.add_argument("--again", type=pathlib.Path, help="only the survivors in such a file")
    options = parser.parse_args()
    modules = options.file or [
        str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.py")
    ]
    every = [m for path in modules if path not in EXCLUDED for m in mutants(path, options.seed)]
    chosen = sorted(every, key=lambda m: m.key)[options.skip : options.sample]
    print(f"{len(chosen)} of {len(every)} mutants", flush=True)
    if not options.list:
        warm()
    known = recorded(options.out) if options.out is not None else {}
    if options.again is not None:
        survived = {key for key, result in recorded(options.again).items() if result == "survived"}
        chosen = [m for m in chosen if m.key[:12] in survived]
    counts = Counter(known.values())
    for m in chosen:
        if m.key[:12] in known:
            continue
        result, seconds = "listed", 0.0
        if not options.list:
            result, seconds = judged(m, options.seconds, options.slow)
        counts[result] += 1
        print(f"{result:9} {seconds:5.1f} s  {m.path}:{m.line}  {m.change}", flush=True)
        if options.out is not None:
            row = {"result": result, "path": m.path, "line": m.line, "change": m.change}
            with options.out.open("a") as file:
                file.write(json.dumps(row | {"key": m.key[:12]}) + "\n")
    print(", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
