"""The folder as a kernel repository: what kernel-builder asks of it, and a staged build that stands alone.

kernel-builder itself (Rust, Nix) is not run: its rules are checked here, its output is laid out by `stage`.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = tomllib.loads((ROOT / "build.toml").read_text())
GENERAL = BUILD["general"]
SOURCE = ROOT / "torch-ext" / GENERAL["name"].replace("-", "_")
CARD = (ROOT / "CARD.md").read_text()
PREFIX = "_hess_attention_cpu_0123abc"


def stage(folder: Path) -> Path:
    """Lay the source out as kernel-builder does for the `cpu` backend; returns `<folder>/build/torch-cpu`."""
    target = folder / "build" / "torch-cpu"
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target / "_ops.py").write_text(
        f"import torch\n\nops = getattr(torch.ops, {PREFIX!r})\n\n\n"
        f"def add_op_namespace_prefix(op_name):\n    return f'{PREFIX}::{{op_name}}'\n"
    )
    digests = {
        path.relative_to(target).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }
    about = {name: GENERAL[name] for name in ("name", "version", "license")}
    about |= {"id": PREFIX, "python-depends": [], "backend": {"type": "cpu"}}
    about |= {"digest": {"algorithm": "sha256", "files": digests}}
    (target / "metadata.json").write_text(json.dumps(about))
    return target


def run(folder: Path, code: str) -> str:
    """Output of code in a process that cannot see this project, with the staged build as `hess_attention`."""
    start = f"""
import importlib.util, sys
sys.modules["hess_plugin"] = None  # importing it fails
path = {str(folder / "__init__.py")!r}
spec = importlib.util.spec_from_file_location("hess_attention", path)
module = sys.modules["hess_attention"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", start + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestBuildFile:
    def test_sections(self):
        assert set(BUILD) == {"general", "torch-noarch"}
        assert set(GENERAL) == {"name", "version", "edition", "license", "backends"}

    def test_general(self):
        assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", GENERAL["name"])
        assert isinstance(GENERAL["version"], int)
        assert GENERAL["version"] >= 0
        assert GENERAL["edition"] == 5
        assert set(GENERAL["backends"]) <= {"cpu", "cuda", "rocm", "xpu"}
        assert "cpu" in GENERAL["backends"]  # else a CPU build of torch finds no variant

    def test_module_is_named_after_the_kernel(self):
        assert [path.parent for path in (ROOT / "torch-ext").glob("*/__init__.py")] == [SOURCE]

    def test_every_source_file_is_shipped(self):
        suffixes = {path.suffix.lstrip(".") for path in SOURCE.rglob("*") if path.is_file()} - {"pyc"}
        assert suffixes <= set(BUILD["torch-noarch"]["pyext"])

    def test_generated_file_is_not_in_the_source(self):
        assert not (SOURCE / "_ops.py").exists()

    def test_public_names(self):
        tree = ast.parse((SOURCE / "__init__.py").read_text())
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        listed = next(node.value for node in assigned if node.targets[0].id == "__all__")
        assert "block_sparse_attention" in ast.literal_eval(listed)


class TestCard:
    def test_metadata(self):
        front = re.match(r"---\n(.*?)\n---\n", CARD, re.S)[1]
        assert "library_name: kernels" in front
        assert f"license: {GENERAL['license'].lower()}" in front
        assert f"\n# {GENERAL['name']}\n" in CARD
        assert f"Version {GENERAL['version']}:" in CARD

    def test_example_runs_on_a_staged_build(self, tmp_path):
        code = re.search(r"```python\n(.*?)```", CARD, re.S)[1]
        assert run(stage(tmp_path), code + "print(list(out.shape))") == "[1, 2, 256, 64]\n"


class TestStagedBuild:
    def test_attends_as_dense_attention_does(self, tmp_path):
        code = """
import torch
from hess_attention import block_sparse_attention
q, k, v = torch.randn(3, 1, 2, 100, 16, generator=torch.Generator().manual_seed(0))
counts = torch.full((1, 2, 4), 7)
indices = torch.arange(7).expand(1, 2, 4, 7)
out = block_sparse_attention(q, k, v, counts, indices, q_block_size=32, kv_block_size=16)
dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
print((out - dense).abs().max().item() < 1e-5, "hess_plugin" in str(sys.modules["hess_plugin"]))
"""
        assert run(stage(tmp_path), code) == "True False\n"

    def test_operators_take_the_namespace_of_the_build(self, tmp_path):
        code = """
from hess_attention._namespace import add_op_namespace_prefix
print(add_op_namespace_prefix("x"))
"""
        assert run(stage(tmp_path), code) == f"{PREFIX}::x\n"

    def test_loads_with_the_kernels_library(self, tmp_path):
        try:
            metadata.version("kernels")  # `import kernels` would find this folder
        except metadata.PackageNotFoundError:
            pytest.skip("the Hugging Face library `kernels` is not installed")
        from kernels import get_local_kernel

        stage(tmp_path)
        assert callable(get_local_kernel(tmp_path, backend="cpu").block_sparse_attention)
