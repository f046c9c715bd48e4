"""The dependency rule of ARCHITECTURE.md, the size budget, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = set(sys.stdlib_module_names)

# Layer -> (deploykit packages it may import anywhere, third-party modules at module level, ... inside functions).
BASE = {"deploykit.errors", "deploykit.spec", "deploykit.spec.json_values", "deploykit"}
LAYERS = {
    "base": ({"deploykit.errors", "deploykit.spec", "deploykit.spec.json_values"}, set(), set()),
    "models": (BASE | {"deploykit.models"}, {"torch", "safetensors"}, {"timm", "numpy"}),
    "runtime": (
        BASE | {"deploykit.runtime"},
        {"numpy", "cv2"},
        {"onnxruntime", "tensorrt", "pycuda", "supervision", "matplotlib"},
    ),
    "export": (
        BASE | {"deploykit.models", "deploykit.runtime", "deploykit.export", "deploykit.facade"},
        {"torch", "onnx", "onnxscript", "onnx_ir", "numpy"},
        {"onnxsim", "tensorrt"},
    ),
    "cli": (BASE | {"deploykit.cli"}, set(), {"rich", "cv2"}),
}
MAX_FILE, MAX_FUNCTION = 400, 60


def files_of(layer: str) -> list[Path]:
    if layer == "base":
        return [ROOT / "deploykit" / name for name in ("errors.py", "spec.py", "values.py")]
    folder = ROOT / ("deploykit/cli" if layer == "cli" else layer)
    return sorted(folder.rglob("*.py"))


def imports_of(file: Path) -> list[tuple[str, bool]]:
    """(module, whether at module level); what only a type checker sees does not count."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, top))
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, top and not inside)

    visit(ast.parse(file.read_text()), True)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_only_point_down(layer: str) -> None:
    ours, top_level, inside = LAYERS[layer]
    wrong = []
    for file in files_of(layer):
        for module, top in imports_of(file):
            package = module.split(".")[0]
            if package == "deploykit":
                # The command line may import everything of ours, but only inside functions.
                allowed = any(module == o or module.startswith(o + ".") for o in ours - {"deploykit"})
                allowed = allowed or module == "deploykit" or (layer == "cli" and not top)
            else:
                allowed = package in STANDARD or package in top_level or (not top and package in inside)
            if not allowed:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}{' at module level' if top else ''}")
    assert not wrong, "\n".join(wrong)


def test_the_rule_is_not_vacuous() -> None:
    assert ("torch", True) in imports_of(ROOT / "models" / "_fuse.py")
    assert all(files_of(layer) for layer in LAYERS)


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
            "import deploykit.runtime.bench.benchmark, deploykit.runtime.results.draw, deploykit.facade",
            {"torch", "onnx", "onnxscript"},
        ),
        (
            "import deploykit.runtime.evaluate.detection, deploykit.runtime.evaluate.report",
            {"torch", "onnx", "onnxruntime", "hotcoco", "pycocotools"},
        ),
        ("import deploykit.releases.fetch", {"torch", "numpy", "cv2", "rich"}),
        ("from deploykit.cli import main; main(['models', '--json'])", {"torch", "onnx", "numpy", "cv2"}),
        ("import deploykit.models.registry, deploykit.models.families.yolov7", {"cv2", "onnx", "onnxruntime"}),
        ("from deploykit.cli import _parser; _parser([])", {"torch", "onnx", "numpy", "cv2", "rich"}),
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


def sources() -> list[Path]:
    return [f for layer in LAYERS for f in files_of(layer)] + sorted((ROOT / "deploykit").glob("*.py"))


def test_files_and_functions_stay_within_the_budget() -> None:
    long = []
    for file in sources():
        text = file.read_text()
        if len(text.splitlines()) > MAX_FILE:
            long.append(f"{file.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start = node.body[0].lineno if ast.get_docstring(node) is None else node.body[0].end_lineno or 0
                lines = (node.end_lineno or 0) - start
                if lines > MAX_FUNCTION:
                    long.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


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


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert not [f for f in sources() if f.name in names]
