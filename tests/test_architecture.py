"""Rules that the import linter cannot see: what a fresh interpreter really loads, and the house's budgets."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("device_profiles", "edge_runtime", "split", "export", "orchestrator")
HEAVY = ("torch", "onnx", "onnxscript", "rich", "cyclopts", "matplotlib", "PIL", "onnxruntime", "ai_edge_litert")
# Modules above 400 lines; this list may only shrink.
LONG_MODULES: set[str] = set()


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import headtail", "import device_profiles", "import edge_runtime", "import edge_runtime.agent, edge_runtime.cli"],
)
def test_a_device_loads_nothing_heavy(statement):
    assert not loaded_by(statement).intersection(HEAVY)


def test_help_of_the_host_command_imports_no_engine_and_no_torch():
    loaded = loaded_by("import orchestrator.cli; orchestrator.cli.run(['--help'])")
    assert not loaded.intersection({"torch", "onnx", "onnxruntime", "matplotlib", "paho", "numpy"})


def test_every_command_names_a_function_that_exists():
    from orchestrator.cli import COMMANDS, GROUPS

    targets = [target for target, _ in COMMANDS.values()]
    targets += [target for _, commands in GROUPS.values() for target, _ in commands.values()]
    for target in targets:
        module, function = target.split(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert function in names, target


def _sources():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@functools.cache
def _nodes():
    """Every node of every source with its file; parsed once."""
    return [(path, node) for path in _sources() for node in ast.walk(ast.parse(path.read_text()))]


def test_functions_fit_on_a_screen():
    too_long = []
    for path, node in _nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            if lines > 50:
                too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {lines}")
    assert not too_long


def test_modules_stay_below_400_lines():
    long = {str(path.relative_to(ROOT)) for path in _sources() if len(path.read_text().splitlines()) > 400}
    assert long <= LONG_MODULES


def test_no_module_is_named_after_a_library_it_wraps():
    taken = {"onnx", "torch", "paho", "onnxruntime", "tensorrt", "profile", "queue", "select", "types", "numpy"}
    assert not {path.stem for path in _sources()}.intersection(taken)


def test_no_pickle_and_no_eval_anywhere():
    for path, node in _nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), path
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert getattr(node.value, "value", None) is False, path


def test_the_api_is_pinned():
    import headtail

    for name in headtail.__all__:
        assert getattr(headtail, name) is not None
    assert set(dir(headtail)) == set(headtail.__all__)


WITHOUT = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from orchestrator.cli import COMMANDS, GROUPS, run
"""
# What `pip install '.[export,orchestrator]'` does not bring.
OPTIONAL = {"ai_edge_litert", "tflite_micro", "litert_torch", "ai_edge_quantizer", "matplotlib", "starlette", "uvicorn",
            "prometheus_client", "zmq", "gguf", "safetensors", "tokenizers", "psycopg", "opentelemetry", "skimage",
            "sklearn"}  # fmt: skip
CHARTS = {"export.commands.eval", "orchestrator.commands.demo"}  # need the extra `report`


def without(missing, statements):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing) + statements],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_commands_start_with_the_extras_of_the_readme():
    from orchestrator.cli import COMMANDS, GROUPS

    targets = [target for target, _ in COMMANDS.values()]
    targets += [target for _, commands in GROUPS.values() for target, _ in commands.values()]
    modules = sorted({target.split(":")[0] for target in targets} - CHARTS)
    done = without(OPTIONAL, f"for name in {modules!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_a_command_without_its_library_names_the_extra():
    done = without({"paho"}, "sys.exit(run(['broker', '--port', '0']))")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "MissingDependencyError: Wanted the library paho for this command, found no such module. "
        "Install it: pip install 'headtail[orchestrator]'.\n"
    )
