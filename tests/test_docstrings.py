"""The example at the top of a file calls what is there, with arguments that it takes. Some did not, and nobody saw."""

import ast
import importlib
import inspect
import textwrap

import pytest
from test_imports import FILES, ROOT, module_of


def examples(docstring):
    """The paragraphs that are Python, or else their lines that are."""
    for paragraph in docstring.split("\n\n"):
        code = textwrap.dedent(paragraph.strip("\n"))
        for piece in (code, *map(str.strip, code.splitlines())):
            try:
                tree = ast.parse(piece)
            except SyntaxError:
                continue
            yield tree
            if piece is code:
                break


def look_up(node, names):
    """What an expression of names and dots is: (the object, whether it is an instance's method); None if unknown.
    A variable of the example is known by the class that it was made from."""
    if isinstance(node, ast.Name):
        found = names.get(node.id)
        return (found[0].__call__, True) if isinstance(found, tuple) and "__call__" in dir(found[0]) else (found, False)
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
        return None, False
    owner = names.get(node.value.id)
    instance = isinstance(owner, tuple)
    owner = owner[0] if instance else owner
    kind = inspect.getattr_static(owner, node.attr, None) if owner is not None else None
    assert owner is None or not inspect.isclass(owner) or kind is not None, f"{owner.__name__} has no {node.attr}"
    method = inspect.isclass(owner) and inspect.isfunction(kind)
    return (getattr(owner, node.attr) if kind is not None else None), method


def remember(tree, names):
    """Names that the example imports, and variables made from a class: Class(…), or Class.load(…)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("humor_env"):
            names |= {a.asname or a.name: getattr(importlib.import_module(node.module), a.name) for a in node.names}
        target, value = None, None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.withitem):
            target, value = node.optional_vars, node.context_expr
        if isinstance(target, ast.Name):
            maker = value.func if isinstance(value, ast.Call) else None
            if isinstance(maker, ast.Attribute) and maker.attr.startswith("load"):
                maker = maker.value
            made = names.get(maker.id) if isinstance(maker, ast.Name) else None
            names[target.id] = (made,) if inspect.isclass(made) else None


def mistakes(docstring, names):
    """Each call of an example that its function does not take."""
    found = []
    for tree in examples(docstring):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        remember(tree, names)
        for call in calls:
            given = [*call.args, *(k.value for k in call.keywords)]
            left_out = any(isinstance(a, ast.Starred) or getattr(a, "value", 0) is ... for a in given)
            target, method = look_up(call.func, names)
            if not callable(target) or left_out or any(k.arg is None for k in call.keywords):
                continue
            try:
                signature = inspect.signature(target)
                signature.bind(*[None] * (method + len(call.args)), **{k.arg: None for k in call.keywords})
            except ValueError:
                continue  # a built-in without a signature
            except TypeError as problem:
                found.append(f"{ast.unparse(call)}: {problem}")
    return found


DOCUMENTED = {path: text for path in FILES if "(" in (text := ast.get_docstring(ast.parse(path.read_text())) or "")}


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_example_of_a_file_can_be_called(path):
    try:
        names = dict(vars(importlib.import_module(module_of(path))))
    except ModuleNotFoundError as problem:  # an extra that is not installed, never a file of ours
        if (problem.name or "").startswith("humor_env"):
            raise
        pytest.skip(str(problem))
    # `student` is a Student, where the example does not say.
    classes = {name.lower(): (kind,) for name, kind in names.items() if inspect.isclass(kind)}
    assert mistakes(DOCUMENTED[path], classes | names) == []


class Box:
    def __init__(self, size): ...
    def put(self, thing, *, deep=False): ...
    def __call__(self, thing): ...


@pytest.mark.parametrize(
    ("example", "wrong"),
    [
        ("Box(3)", 0),
        ("Box()", 1),
        ("Box(...)", 0),
        ("prose that says Box()\n\n    box = Box(1)\n    box.put(2, deep=True)   # a comment", 0),
        ("    box = Box(1)\n    box.put(2, True)", 1),
        ("    with Box(1) as box:\n        box.put(thing=2)", 0),
        ("    box = Box(1)\n    box(1)\n    box(1, 2)", 1),
        ("    other = elsewhere()\n    other.put()", 0),
    ],
)
def test_calls_are_bound_to_their_signatures(example, wrong):
    assert len(mistakes(example, {"Box": Box})) == wrong
