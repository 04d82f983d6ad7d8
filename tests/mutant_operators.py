"""Small changes to one node of a module's syntax tree: the mutation operators of `mutants.py`."""

import ast
from collections.abc import Iterator

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
        yield from of_returned(node.value)


def of_operation(node: ast.BinOp) -> Iterator[Replacement]:
    if type(node.op) in ARITHMETIC:
        yield "operator", ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    if isinstance(node.op, ast.Sub | ast.Div | ast.Pow | ast.MatMult | ast.FloorDiv):
        yield "exchange", ast.BinOp(node.right, node.op, node.left)
    if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow):
        yield "drop", node.left
    if isinstance(node.op, ast.Add | ast.Mult):
        yield "drop", node.right


def of_returned(node: ast.Tuple) -> Iterator[Replacement]:
    if len(node.elts) == 2:
        yield "exchange", ast.Return(ast.Tuple(node.elts[::-1], ast.Load()))


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
