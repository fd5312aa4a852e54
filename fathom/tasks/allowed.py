"""What a Triton program of a model may say: kernels, one launcher, and nothing that reaches past them.

The tree of the program is walked before anything runs. Everything is refused that is not listed, so that a program has
no name for torch, for a file, for the process that judges it, and no place to keep an output from one call to the next.
"""

import ast

_WORDS = """
abs advance arange argmax argmin atomic_add atomic_max atomic_min bfloat16 broadcast_to cast cdiv ceil clamp
constexpr cos cumsum debug_barrier div_rn dot erf exp exp2 expand_dims fdiv flip float16 float32 float64 floor
fma full gather int1 int16 int32 int64 int8 join load log log2 make_block_ptr max max_constexpr max_contiguous
maximum min minimum multiple_of num_programs permute program_id range ravel reshape rsqrt sigmoid sin softmax
sort split sqrt sqrt_rn static_range store sum swizzle2d trans uint16 uint32 uint8 umulhi view where xor_sum
zeros zeros_like
"""
TL = frozenset(_WORDS.split())
TRITON = frozenset({"jit", "cdiv", "next_power_of_2"})
OF_TILES = frozenset({"to", "T", "shape", "dtype"})  # inside a kernel
OF_TENSORS = frozenset({"shape", "stride", "numel", "size", "new_empty"})  # inside the launcher
BUILTINS = frozenset({"range", "min", "max", "len", "abs", "int", "float"})
MODULES = {"triton": TRITON, "tl": TL}
IMPORTS = {("triton", None), ("triton.language", "tl")}

# no comprehension, lambda, class, try, with, global, del, yield, f-string, walrus, star
NODES = (
    ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While,
    ast.If, ast.IfExp, ast.Expr, ast.Pass, ast.Break, ast.Continue, ast.Call, ast.keyword, ast.Name, ast.Attribute,
    ast.Subscript, ast.Slice, ast.Tuple, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator,
    ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip


def refusal(source: str) -> str | None:
    """Why a program may not run, in one sentence; None where it may."""
    try:
        tree = ast.parse(source)
        return _refusal(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is no Python"


def _refusal(tree: ast.Module) -> str | None:
    functions = [part for part in tree.body if isinstance(part, ast.FunctionDef)]
    for part in tree.body:
        if not (isinstance(part, ast.FunctionDef) or _is_import(part) or _is_text(part) or _is_constant(part)):
            return f"line {part.lineno}: only imports of triton, constants and functions stand outside of functions"
    names = [function.name for function in functions]
    if names.count("run") != 1 or len(set(names)) != len(names):
        return "it needs one function run, and every function a name of its own"
    bound = {*names, *(_constants(tree))}
    for function in functions:
        found = _function(function, bound)
        if found:
            return found
    return None


def _function(function: ast.FunctionDef, outer: set[str]) -> str | None:
    launcher = function.name == "run"
    if [ast.unparse(each) for each in function.decorator_list] != ([] if launcher else ["triton.jit"]):
        return f"line {function.lineno}: run stands bare, every other function under @triton.jit alone"
    local = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    local |= {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    taken = local & (MODULES.keys() | BUILTINS | outer)
    hidden = [name for name in local | {function.name} if name.startswith("_")]
    if taken or hidden or function.name in MODULES.keys() | BUILTINS:
        return f"line {function.lineno}: it binds {', '.join(sorted(taken) or hidden or [function.name])}"
    defaults = [*function.args.defaults, *(each for each in function.args.kw_defaults if each)]
    if function.args.vararg or function.args.kwarg or not all(isinstance(each, ast.Constant) for each in defaults):
        return f"line {function.lineno}: parameters are named, and their defaults constants"
    parents = {id(child): node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    for statement in function.body:
        for node in ast.walk(statement):
            found = _node(node, local | outer, parents, launcher)
            if found:
                return f"line {getattr(node, 'lineno', function.lineno)}: {found}"
    return None


def _node(node: ast.AST, bound: set[str], parents: dict[int, ast.AST], launcher: bool) -> str | None:
    match node:
        case ast.FunctionDef():
            return "functions stand side by side"
        case ast.Name(id=name) if name in MODULES:
            return None if isinstance(parents[id(node)], ast.Attribute) else f"{name} is no value"
        case ast.Name(id=name):
            return None if name in bound | BUILTINS else f"{name} is not known"
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in MODULES:
            return None if attribute in MODULES[name] else f"{name}.{attribute} is not allowed"
        case ast.Attribute(attr=attribute):
            allowed = OF_TENSORS if launcher else OF_TILES
            return None if attribute in allowed else f".{attribute} is not allowed"
        case ast.Subscript(ctx=ast.Store()):
            return "kernels store, slices do not"
        case ast.Call(args=arguments) if any(isinstance(each, ast.Starred) for each in arguments):
            return "arguments are given one by one"
        case _:
            return None if isinstance(node, NODES) else f"{type(node).__name__} is not allowed"


def _is_import(part: ast.stmt) -> bool:
    return isinstance(part, ast.Import) and all((name.name, name.asname) in IMPORTS for name in part.names)


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def _is_constant(part: ast.stmt) -> bool:
    """`BLOCK = 32` or `BLOCK = tl.constexpr(32)`, whose name hides no other."""
    if not isinstance(part, ast.Assign) or len(part.targets) != 1 or not isinstance(part.targets[0], ast.Name):
        return False
    name, value = part.targets[0].id, part.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "tl.constexpr" and len(value.args) == 1:
        value = value.args[0] if not value.keywords else value
    number = isinstance(value, ast.Constant) and isinstance(value.value, int | float)
    return number and not name.startswith("_") and name not in MODULES.keys() | BUILTINS


def _constants(tree: ast.Module) -> list[str]:
    parts = [part.targets[0] for part in tree.body if isinstance(part, ast.Assign)]
    return [target.id for target in parts if isinstance(target, ast.Name)]
