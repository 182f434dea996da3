"""The flow goes one way: no module imports from a room to its right."""

import ast
from pathlib import Path

import openfino

ROOT = Path(openfino.__file__).parent
# From left to right; a module may import from its own room and from those before it.
ROOMS = [
    {
        "errors",
        "keyed",
        "locks",
        "pages",
        "settings_layers",
        "settings_problems",
        "recipe",
        "presets",
        "tiny",
        "distributed",
        "__init__",
    },
    {"procedural"},
    {"tables", "manifest"},
    {"factors"},
    {"audit"},
    {"images"},
    {"models"},
    {"objectives"},
    {"training"},
    {"evaluation"},
    {"gram_source", "preflight", "runfolder", "prober", "check"},
    {"diagnostics"},
    {"adapt"},
    {"baselines"},
    {"export"},
    {"sampledata", "report"},
    {"jobs"},
    {"compass"},
    {"compare"},
    {"demo"},
    {"cli", "cli_options"},
]
PLACE = {name: number for number, names in enumerate(ROOMS) for name in names}
MAX_LINES = 500
MAX_FUNCTION = 60


def modules():
    return sorted(ROOT.rglob("*.py"))


def room_of(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openfino."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "openfino":
            yield from (alias.name for alias in node.names if alias.name in PLACE)


def lines_of_code(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    documentation = first.end_lineno - first.lineno + 1 if text else 0
    return function.end_lineno - function.lineno + 1 - documentation


def test_nothing_imports_to_its_right():
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in modules()
        for other in imported_rooms(ast.parse(path.read_text()))
        if PLACE[other] > PLACE[room_of(path)]
    ]
    assert not wrong


def test_files_and_functions_stay_short():
    # Two functions are read top to bottom as a story; cutting them would hide it.
    told = {("training/loop.py", "train"), ("adapt.py", "adapt")}
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in modules()}
    assert not [name for name, text in texts.items() if text.count("\n") > MAX_LINES]
    functions = [
        (name, node.name, lines_of_code(node))
        for name, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    assert not [found for found in functions if found[2] > MAX_FUNCTION and found[:2] not in told]
