"""What is listed exists and is shipped: public names, packages, assets."""

from __future__ import annotations

import ast
import configparser
import fnmatch
import tomllib
from pathlib import Path

import pytest

import hess_plugin

ROOT = Path(hess_plugin.__file__).parents[1]
PACKAGE = ROOT / "hess_plugin"


def test_public_names():
    for name in hess_plugin.__all__:
        assert getattr(hess_plugin, name) is not None
    assert set(hess_plugin.__all__) <= set(dir(hess_plugin))
    with pytest.raises(AttributeError, match="has no attribute 'apply'; public names: CalibrationConfig"):
        _ = hess_plugin.apply


def test_types_are_declared_for_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == hess_plugin._HOME


def test_version():
    assert (
        hess_plugin.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    )


def test_package_list_is_the_folder_tree():
    """A package that is not listed works in an editable install and is missing in the wheel."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().split("\n"))
    mapped = {name: ROOT / folder for name, folder in folders.items() if name != "hess_plugin"}
    own = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert listed == sorted(own | set(mapped))
    for name in listed:
        assert (mapped.get(name, ROOT / name.replace(".", "/")) / "__init__.py").is_file(), name


def test_every_asset_is_shipped():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["hess_plugin"].split()
    for path in PACKAGE.rglob("*"):
        name = path.relative_to(PACKAGE).as_posix()
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            depth = name.count("/")
            fitting = [p for p in patterns if p.count("/") == depth and fnmatch.fnmatch(name, p)]
            assert fitting, f"{name} is in no pattern of package_data"
