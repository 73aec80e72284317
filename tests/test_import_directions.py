"""The shape of the package: who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hess_plugin

ROOT = Path(hess_plugin.__file__).parents[1]
PACKAGE = ROOT / "hess_plugin"
KERNEL = ROOT / "kernels" / "torch-ext" / "hess_attention"

# Unit (module, or folder with all in it) -> units of the package that it may import, from the ground up.
MAY_IMPORT = {
    "errors": "",
    "config": "",
    "options": "",
    "files": "errors",
    "progress": "",
    "processes": "errors progress",
    "geometry": "",
    "kernels": "",
    "sparsity": "config kernels",
    "scores_io": "config errors files",
    "scores": "config errors scores_io",
    "gates": "errors files scores_io",
    "datasets": "config errors geometry",
    "backbones": "config geometry",
    "processor": "backbones config kernels sparsity",
    "attention": "backbones processor",
    "handle": "attention scores",
    "patch": "attention backbones config handle processor scores",
    "low_memory": "backbones",
    "plots": "errors geometry",
    "tables": "scores",
    "sidecar": "config errors files gates scores",
    "upload": "errors",
    "hub": "errors files patch sidecar upload",
    "auto": "hub",
    "models": "errors geometry hub kernels",
    "loading": "backbones datasets errors models",
    "baselines": "attention backbones config errors gates patch",
    "evaluation": "backbones baselines config datasets errors files gates geometry loading options patch "
    "processes scores scores_io sidecar tables",
    # never patch
    "calibration": "backbones config datasets errors files gates geometry kernels loading options processes "
    "scores tables",
    "sweep": "backbones baselines config datasets errors evaluation files gates kernels loading options "
    "patch processes progress scores sidecar tables",
    "viewer": "datasets errors evaluation files geometry plots scores tables",
    "report": "calibration errors evaluation files plots scores sweep tables viewer",
    "card": "calibration errors evaluation plots scores tables",
    "publish": "card errors evaluation gates scores sidecar upload",
    "demo_results": "files plots scores tables viewer",
    "benchmark": "attention backbones config errors files kernels loading models patch plots scores sparsity",
    "demo": "config datasets demo_results errors evaluation files loading models patch scores sidecar tables "
    "viewer",
    "cli": "benchmark calibration config datasets demo demo_results errors evaluation files gates hub "
    "models options patch plots publish report scores sidecar sweep tables",
    "__main__": "cli",
    "calibrate": "cli",
}
# The one import upward, inside a method: `scores.push_to_hub(...)` is where a user looks for it.
UPWARD = {"scores": {"publish", "upload"}}  # upload: for a type
# Within a unit: metrics read numbers, never a model or a scene.
METRICS = {name: {"errors", "geometry"} for name in ("evaluation.pose", "evaluation.mvs")}

OPTIONAL = ("open3d", "faiss", "matplotlib", "trimesh", "plotly", "jinja2", "kernels")
NETWORK = ("httpx", "httpx2", "huggingface_hub", "http", "requests", "socket", "urllib")
OFFLINE = ("huggingface_hub.dataclasses", "huggingface_hub.repocard_data")  # checks and YAML
MODEL_ATTRIBUTES = {"aggregator", "camera_head", "decoder", "depth_head", "frame_blocks", "global_blocks"}
MODEL_ATTRIBUTES |= {"info_sharing", "inter_frame_blocks", "self_attention_blocks"}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Syntax trees by dotted name below the package, of every module but the package's own `__init__`."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    del trees["__init__"]
    return trees


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Level (0: absolute) and dotted name of everything imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def imported_units(name: str, tree: ast.Module) -> set[str]:
    """Units of the package that a module imports, itself included."""
    folder = name if (PACKAGE / name.replace(".", "/")).is_dir() else name.rpartition(".")[0]
    units = set()
    for level, imported in imports(tree):
        if level:
            parts = folder.split(".") if folder else []
            units.add(".".join([*parts[: len(parts) - level + 1], imported]).split(".")[0])
        elif imported.split(".")[0] == "hess_plugin":
            units.add(imported.split(".")[1])
    return units


def run(code: str) -> str:
    """Output of Python code in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestDirections:
    def test_table_covers_the_package_and_has_no_circle(self):
        assert {name.split(".")[0] for name in modules()} == set(MAY_IMPORT), "place every unit in MAY_IMPORT"
        order = list(MAY_IMPORT)
        assert all(order.index(low) < order.index(unit) for unit in order for low in MAY_IMPORT[unit].split())
        graphlib.TopologicalSorter({unit: below.split() for unit, below in MAY_IMPORT.items()}).prepare()

    @pytest.mark.parametrize("name", list(modules()))
    def test_imports_go_down(self, name):
        unit = name.split(".")[0]
        allowed = METRICS.get(name, {unit, *MAY_IMPORT.get(unit, "").split()}) | UPWARD.get(name, set())
        assert imported_units(name, modules()[name]) <= allowed

    def test_the_test_sees_imports(self):
        """A rule that nothing could break would hold, too."""
        code = (
            "from ..patch import x\nfrom . import pose\nimport hess_plugin.hub\ndef f():\n  from ..a import c"
        )
        assert imported_units("evaluation.pose", ast.parse(code)) == {"patch", "evaluation", "hub", "a"}
        code = "from .pose import x\nfrom .. import cli"
        assert imported_units("evaluation", ast.parse(code)) == {"evaluation", "cli"}

    def test_upward_imports_wait_for_the_call(self):
        for name, units in UPWARD.items():
            at_import = [node for node in modules()[name].body if isinstance(node, ast.ImportFrom)]
            assert not imported_units(name, ast.Module(at_import, [])) & units

    def test_two_modules_open_the_network(self):
        found = {
            name
            for name, tree in modules().items()
            for _, imported in imports(tree)
            if imported.split(".")[0] in NETWORK and imported not in OFFLINE
        }
        assert found == {"sidecar", "upload"}

    def test_only_backbones_know_model_attributes(self):
        found = {
            (name, node.attr)
            for name, tree in modules().items()
            if name.split(".")[0] not in ("backbones", "models")
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in MODEL_ATTRIBUTES
        }
        assert found == set()

    @pytest.mark.parametrize("path", sorted(KERNEL.rglob("*.py")), ids=lambda path: path.stem)
    def test_the_kernel_package_stands_alone(self, path):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        allowed = sys.stdlib_module_names | {"torch", "triton"}
        assert {name.split(".")[0] for level, name in imports(tree) if not level} <= allowed
        depth = len(path.relative_to(KERNEL).parts)
        assert all(level <= depth for level, _ in imports(tree))

    def test_nothing_shadows_the_kernels_package(self):
        assert not list(ROOT.glob("kernels/__init__.py")) + list(ROOT.glob("kernels/tests/__init__.py"))


class TestImporting:
    def test_package_costs_nothing(self):
        code = "import hess_plugin, sys; print(hess_plugin.__version__, *sys.modules)"
        loaded = {name.split(".")[0] for name in run(code).split()}
        assert not loaded & {"torch", "numpy", "transformers", "huggingface_hub", "accelerate"}

    def test_hub_and_auto_need_no_optional_package(self):
        loaded = {
            name.split(".")[0] for name in run("import hess_plugin.auto, sys; print(*sys.modules)").split()
        }
        assert not loaded & {*OPTIONAL, "transformers"}

    def test_no_module_imports_optional_packages_or_patches_a_library(self):
        """Every module in turn, except `auto`, whose purpose it is to hook imports."""
        names = [f"hess_plugin.{name}" for name in modules() if name not in ("auto", "__main__")]
        code = f"""
import importlib, sys
import accelerate, huggingface_hub, torch, torch.nn.functional, transformers
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
watched = (
    torch.nn.Module, torch.Tensor, torch.nn.functional,
    AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel,
    huggingface_hub.ModelHubMixin, huggingface_hub.PyTorchModelHubMixin, huggingface_hub.hub_mixin,
)
before = [dict(vars(each)) for each in watched]
hooks, loaded = list(sys.meta_path), set(sys.modules)
for name in {names}:
    importlib.import_module(name)
changed = [each for each, was in zip(watched, before) if any(vars(each).get(k) is not was[k] for k in was)]
optional = [name for name in {OPTIONAL} if name in set(sys.modules) - loaded]
print(changed, optional, [hook for hook in sys.meta_path if hook not in hooks])
"""
        assert run(code).split("\n")[-2] == "[] [] []"

    def test_auto_adds_one_finder(self):
        code = """
import sys
hooks = list(sys.meta_path)
import hess_plugin.auto
added = [hook for hook in sys.meta_path if hook not in hooks]
hess_plugin.auto.disable()
print([type(hook).__module__ for hook in added], sys.meta_path == hooks)
"""
        assert run(code).split("\n")[-2] == "['hess_plugin.auto'] True"
