"""The floors of ARCHITECTURE.md, the size budget, and what must stay light."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = set(sys.stdlib_module_names)
TOPS = ("deploykit", "models", "export", "runtime")
"""The top-level folders. A room is a folder within them, or a file directly in one of them."""

FLOORS = (
    ("errors", "version", "connection", "partials", "progress", "strict_json", "coco_classes", "numerals", "runtime",
     "models", "export", "runtime.arrays", "runtime.cores", "models.imagenet_classes", "models.load_options",
     "models.signatures", "models.timm_options", "export.junit"),
    ("atomic", "error_texts", "spec", "runtime.files", "runtime.machine", "runtime.compute", "runtime.cuda",
     "models.checkpoint", "models.class_names", "models.fuse", "export.step_timer", "runtime.images.headers",
     "runtime.images.gpu", "runtime.options", "runtime.scoring"),
    ("describe", "releases", "runtime.session", "runtime.spec_file", "runtime.engine_record", "runtime.npz_file",
     "runtime.images", "runtime.pipeline", "models.layers", "models.loading", "export.output"),
    ("runtime.native", "runtime.sources", "runtime.datasets", "runtime.raw", "runtime.parity", "runtime.foreign",
     "runtime.verified", "models.registry", "models.classifier_head", "models.families.ultralytics.blocks",
     "models.families.ultralytics.heads", "runtime.drawing"),
    ("runtime.backends", "runtime.postprocess", "runtime.model_spec", "models.yolo_graph", "models.timm_models",
     "models.family", "export.options", "export.inspection", "export.matching"),
    ("runtime.results", "models.families", "models.families.cmt", "models.families.crossformer",
     "models.families.dynopool", "models.families.fcn", "models.families.ultralytics", "models.families.unet",
     "models.families.yolov6", "models.families.yolox", "export.sessions", "export.plugins_check"),
    ("runtime.outputs", "models.families.vitdet", "models.create"),
    ("runtime.kinds", "runtime.predict", "runtime.backends.trt", "export.outputs",
     "export.precision.half_rules"),
    ("runtime.evaluate", "runtime.bench", "runtime.triton", "runtime.serve.core", "export.nms",
     "export.package_layout", "export.precision.search", "export.precision.qdq"),
    ("runtime.serve.oip", "runtime.package", "export.graph", "export.parity", "export.precision.folds"),
    ("facade", "runtime.serve", "export.kinds", "export.precision", "export.accuracy_gate"),
    ("runtime.cluster", "export.engine", "export.report", "export.verify", "doctor"),
    ("export.to_onnx", "export.foreign", "export.preflight", "runtime.integrity"),
    ("export.formats",),
    ("cli",),
    ("deploykit", "__main__"),
)  # fmt: skip
"""Rooms from the ground up: a room imports from lower floors and from itself. ``models``, ``export``, ``runtime`` and
``deploykit`` stand for the ``__init__.py`` of these folders."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Part:
    """What the rooms of a part may import besides themselves and the standard library: parts (or single rooms) of
    ours, and third-party modules at module level and inside functions. ``light``: at module level only that of ours.
    """

    ours: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    light: frozenset[str] | None = None


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PARTS = {
    "errors": Part(),
    "version": Part(),
    "connection": Part(),
    "progress": Part(),
    "strict_json": Part(),
    "coco_classes": Part(),
    "numerals": Part(),
    "partials": Part(),
    "atomic": Part(words("errors partials")),
    "error_texts": Part(words("errors version")),
    "spec": Part(words("errors strict_json")),
    "describe": Part(words("spec")),
    "models": Part(
        words("atomic errors progress strict_json coco_classes numerals spec"), words("torch"), words("timm numpy")
    ),
    "runtime": Part(
        words("atomic connection errors partials version progress strict_json coco_classes numerals spec describe"),
        words("numpy cv2"),
        words("onnxruntime tensorrt pycuda supervision matplotlib yaml triton_python_backend_utils"),
    ),
    "releases": Part(words("atomic connection errors version strict_json")),
    "doctor": Part(
        words("errors version strict_json runtime facade"),
        inside=words("numpy onnxruntime"),
        light=words("errors version strict_json runtime"),
    ),
    "export": Part(
        words("atomic errors partials version progress strict_json spec describe models runtime"),
        words("torch onnx onnxscript onnx_ir numpy"),
        words("onnxsim tensorrt"),
    ),
    "facade": Part(words("errors progress spec runtime export"), light=words("errors progress spec")),
    "cli": Part(
        words(
            "atomic errors error_texts version progress strict_json numerals spec describe releases doctor models "
            "runtime export facade"
        ),
        inside=words("rich cv2"),
        light=words("errors error_texts version progress numerals"),
    ),
    "deploykit": Part(words("errors version")),
    "__main__": Part(words("cli")),
}
ROOMS = {
    "runtime.serve": words("grpc python_multipart starlette uvicorn"),
    "runtime.serve.core": words("prometheus_client starlette"),
    "runtime.serve.oip": words("google grpc starlette"),
}
"""Room -> modules that it may import besides those of its part: a server is not loaded unless it is asked for."""

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_FOLDER = 400, 60, 10, 14
LARGE_FOLDERS = {"deploykit/cli", "models/families"}  # a file a command, a file or a folder a family


def files() -> dict[str, Path]:
    """Every module of ours by its name; not through the links."""
    found = {}
    for top in TOPS:
        for folder, _, names in os.walk(ROOT / top):
            for file in (Path(folder, name) for name in names if name.endswith(".py")):
                parts = file.relative_to(ROOT).with_suffix("").parts
                parts = parts if top == "deploykit" else ("deploykit", *parts)
                found[".".join(parts).removesuffix(".__init__")] = file
    return dict(sorted(found.items()))


def sources() -> list[Path]:
    return list(files().values())


@dataclass(frozen=True)
class Import:
    """``names``: what may be modules of ``module``. ``types``: only a type checker sees it."""

    module: str
    names: tuple[str, ...]
    where: Literal["module", "function", "types"]


@cache
def imports_of(source: str) -> list[Import]:
    """Everything that a module imports, wherever it does."""
    found: list[Import] = []

    def visit(node: ast.AST, where: Literal["module", "function", "types"]) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            where = "types"
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, (), where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(Import(node.module, tuple(alias.name for alias in node.names), where))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            where = "function"
        for child in ast.iter_child_nodes(node):
            visit(child, where)

    visit(ast.parse(source), "module")
    return found


def ours_of(found: Import, modules: Mapping[str, str]) -> set[str]:
    """The modules of ours that an import is of: ``from PACKAGE import MODULE`` is of the module."""
    if found.module.split(".")[0] != "deploykit":
        return set()
    inner = {f"{found.module}.{name}" for name in found.names}
    rest = {found.module} if not inner or inner - set(modules) else set()
    return (inner & set(modules)) | rest


def room_of(module: str) -> str | None:
    """The room of a module; None: it is in none."""
    name = module.removeprefix("deploykit.")
    folder = name.rpartition(".")[0]
    return name if name in FLOOR else folder if folder in FLOOR and folder not in TOPS else None


def part_of(room: str) -> str:
    return room.split(".", maxsplit=1)[0]


def problems(modules: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with modules, given as name -> source: modules without a room, arrows upward, cycles."""
    files_graph: dict[str, set[str]] = {}
    rooms_graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        room = room_of(module)
        if room is None:
            yield f"{module} is in no room: name it in FLOORS"
            continue
        for target in {t for found in imports_of(source) for t in ours_of(found, modules)} - {module}:
            files_graph.setdefault(module, set()).add(target)
            to = room_of(target)
            if to is None:
                yield f"{module} imports {target}, which is in no room"
            elif to != room:
                rooms_graph.setdefault(room, set()).add(to)
                if FLOOR[to] >= FLOOR[room]:
                    yield f"{module} imports {target}: from floor {FLOOR[room]} ({room}) to {FLOOR[to]} ({to})"
    for graph, what in ((files_graph, "modules"), (rooms_graph, "rooms")):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as e:
            yield f"a cycle of {what}: {' <- '.join(e.args[1])}"


def strangers(modules: Mapping[str, str]) -> Iterator[str]:
    """Imports that the part of a module does not allow."""
    for module, source in modules.items():
        part = part_of(own := room_of(module) or "")
        rule = PARTS[part]
        for found in imports_of(source):
            package, top = found.module.split(".")[0], found.where == "module"
            if package == "deploykit":
                allowed = rule.ours if rule.light is None or not top else rule.light
                for target in ours_of(found, modules):
                    room = room_of(target) or ""
                    if part_of(room) not in {part, *allowed} and room not in allowed and found.where != "types":
                        yield f"{module} imports {target}{' at module level' if top else ''}"
            elif package not in STANDARD | rule.modules | ROOMS.get(own, frozenset()) and (
                top or package not in rule.inside
            ):
                yield f"{module} imports {package}{' at module level' if top else ''}"


def test_a_module_of_one_room_is_for_no_other() -> None:
    assert not list(strangers({"deploykit.runtime.serve.app": "import starlette"}))
    assert list(strangers({"deploykit.runtime.evaluate.report": "import starlette"}))
    assert set(ROOMS) <= set(FLOOR)


def texts() -> dict[str, str]:
    return {module: file.read_text() for module, file in files().items()}


def test_every_module_has_a_room_and_arrows_only_point_down() -> None:
    assert not list(problems(texts()))


def test_every_part_imports_only_what_it_may() -> None:
    assert not list(strangers(texts()))


def test_every_room_and_part_of_the_tables_exists() -> None:
    rooms = {room_of(module) for module in files()}
    assert rooms == set(FLOOR)
    assert {part_of(room) for room in FLOOR} == set(PARTS)


UPWARD = "from floor 0 (errors) to 1 (spec)"


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"deploykit.spec.input": "import deploykit.spec.output",
          "deploykit.spec.output": "from deploykit.spec import input"}, "a cycle of modules"),
        ({"deploykit.runtime.raw.mosaic": "from deploykit.runtime.native.build import x",
          "deploykit.runtime.native.build": "def f():\n    import deploykit.runtime.raw.mosaic"}, "a cycle of rooms"),
        ({"deploykit.errors": "def f():\n    import deploykit.spec", "deploykit.spec": ""}, UPWARD),
        ({"deploykit.errors": "if TYPE_CHECKING:\n    from deploykit.spec import Fit"}, UPWARD),
        ({"deploykit.runtime.session": "from deploykit import load"}, "(runtime.session) to 15 (deploykit)"),
        ({"deploykit.runtime.drawer": ""}, "deploykit.runtime.drawer is in no room"),
        ({"deploykit.runtime.drawer.odds": ""}, "deploykit.runtime.drawer.odds is in no room"),
        ({"deploykit.models.families.new.model": ""}, "deploykit.models.families.new.model is in no room"),
    ],
)  # fmt: skip
def test_the_floors_are_not_vacuous(modules: dict[str, str], said: str) -> None:
    assert any(said in problem for problem in problems(modules)), list(problems(modules))


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("deploykit.runtime.session", "import torch", "deploykit.runtime.session imports torch at module level"),
        ("deploykit.runtime.session", "import onnxruntime", "imports onnxruntime at module level"),
        ("deploykit.runtime.session", "def f():\n    import onnx", "deploykit.runtime.session imports onnx"),
        (
            "deploykit.models.create.random_weights",
            "import deploykit.runtime.arrays",
            "imports deploykit.runtime.arrays",
        ),
        ("deploykit.releases.fetch", "import deploykit.runtime.session", "imports deploykit.runtime.session"),
        ("deploykit.cli.export", "import deploykit.facade", "imports deploykit.facade at module level"),
    ],
)
def test_what_a_part_may_import_is_not_vacuous(module: str, source: str, said: str) -> None:
    assert any(said in problem for problem in strangers({module: source})), list(strangers({module: source}))


def test_imports_inside_functions_are_allowed_where_the_table_says_so() -> None:
    assert not list(strangers({"deploykit.runtime.session": "def f():\n    import onnxruntime"}))
    assert Import("torch", (), "module") in imports_of((ROOT / "models" / "fuse.py").read_text())


def test_no_folder_holds_more_files_than_a_glance_takes_in() -> None:
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in sources() if file.name != "__init__.py")
    assert not {folder: n for folder, n in counts.items() if n > MAX_FOLDER and folder not in LARGE_FOLDERS}
    assert set(counts) >= LARGE_FOLDERS


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "never"),
    [
        (
            "import deploykit, deploykit.spec, deploykit.errors",
            {"torch", "onnx", "numpy", "cv2", "rich", "onnxruntime"},
        ),
        (
            "import deploykit.runtime.bench.benchmark, deploykit.runtime.drawing.objects, deploykit.facade",
            {"torch", "onnx", "onnxscript"},
        ),
        (
            "import deploykit.runtime.evaluate.evaluate, deploykit.runtime.evaluate.detection",
            {"torch", "onnx", "onnxruntime", "hotcoco", "pycocotools"},
        ),
        ("import deploykit.export.parity.compare", {"torch", "onnx", "onnxruntime"}),
        ("import deploykit.export.options", {"torch", "onnx", "numpy", "cv2"}),
        (
            "from deploykit.cli import command_parser; command_parser(['export'])",
            {"torch", "onnx", "numpy", "cv2", "rich"},
        ),
        ("import deploykit.releases.fetch", {"torch", "numpy", "cv2", "rich"}),
        ("from deploykit.cli import main; main(['models', '--json'])", {"torch", "onnx", "numpy", "cv2"}),
        (
            "import torch\nfrom deploykit.models.registry import create_model\n"
            "with torch.device('meta'): create_model('yolov7_tiny')",
            {"cv2", "onnx", "onnxruntime", "sympy"},
        ),
        ("from deploykit.cli import command_parser; command_parser([])", {"torch", "onnx", "numpy", "cv2", "rich"}),
    ],
)
def test_a_fresh_interpreter_loads_nothing_heavy(code: str, never: set[str]) -> None:
    assert not loaded_by(code) & never


@pytest.mark.parametrize("folder", ["models", "export", "runtime"])
def test_a_source_folder_is_not_importable_as_a_package(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"import deploykit.{folder}, not {folder}" in done.stderr


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function has; without ``self`` and ``cls``."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function: its signature and its body, without its docstring."""
    first = function.body[0]
    docstring = 0 if ast.get_docstring(function) is None else (first.end_lineno or 0) - first.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_files_and_functions_stay_within_the_budget() -> None:
    over = []
    for module, file in files().items():
        text = file.read_text()
        if len(text.splitlines()) > MAX_FILE:
            over.append(f"{module}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines, parameters = lines_of(node), parameters_of(node)
                name = f"{module.removeprefix('deploykit.')}.{node.name}"
                if lines > MAX_FUNCTION or parameters > MAX_PARAMETERS:
                    over.append(f"{name} has {lines} lines and {parameters} parameters")
    assert not over, "\n".join(over)


def test_public_functions_and_classes_have_docstrings() -> None:
    bare = []
    for file in sources():
        tree = ast.parse(file.read_text())
        if ast.get_docstring(tree) is None:
            bare.append(str(file.relative_to(ROOT)))
        for node in tree.body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
                and not any(ast.unparse(d) == "overload" for d in node.decorator_list)
            ):
                bare.append(f"{file.relative_to(ROOT)}: {node.name}")
    assert not bare, "\n".join(bare)


def test_json_from_outside_has_one_reader() -> None:
    """TensorRT's own text is not from outside, and may repeat a name."""
    calls = {name for name, file in files().items() if re.search(r"\bjson\.loads?\(", file.read_text())}
    assert calls == {"deploykit.strict_json", "deploykit.export.engine.layers"}


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert not [f for f in sources() if f.name in names]


def test_the_diagram_of_the_page_has_every_floor_once_and_names_its_rooms() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    floors: dict[int, str] = {}
    for line in page[page.index("\n15 ") : page.index("The columns are the parts")].splitlines():
        number = re.match(r" ?(\d+) ", line)
        if number:
            assert int(number[1]) not in floors
            floors[int(number[1])] = ""
        if floors:
            floors[min(floors)] += f"{line}\n"
    assert list(floors) == list(reversed(range(len(FLOORS))))
    for number, rooms in enumerate(FLOORS):
        short = {room.rpartition(".")[2] for room in rooms if room not in TOPS and ".families." not in room}
        assert not {name for name in short if name not in floors[number]}, number
