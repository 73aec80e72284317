"""A result folder that appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hess_plugin.errors import InputError
from hess_plugin.files import MANIFEST, staged_folder, written_files


def _run(out: Path, **files: str) -> None:
    """One run that writes these files and its manifest."""
    with staged_folder(out) as folder:
        (folder / "sub").mkdir()
        for name, text in files.items():
            (folder / "sub" / name).write_text(text)
        (folder / MANIFEST).write_text(json.dumps({"files": written_files(folder)}))


def test_smoke(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    _run(out, a="1")
    assert written_files(out) == [MANIFEST, "sub/a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # no temporary folder stays


def test_later_run_replaces_all_of_the_earlier(tmp_path: Path) -> None:
    _run(tmp_path / "out", a="1", b="1")
    _run(tmp_path / "out", a="2")
    assert written_files(tmp_path / "out") == [MANIFEST, "sub/a"]
    assert (tmp_path / "out" / "sub" / "a").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_run_leaves_the_earlier(tmp_path: Path, error: type[BaseException]) -> None:
    _run(tmp_path / "out", a="1")

    def fail() -> None:
        with staged_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("2")
            raise error

    with pytest.raises(error):
        fail()
    assert written_files(tmp_path / "out") == [MANIFEST, "sub/a"]
    assert len(list(tmp_path.iterdir())) == 1


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _run(tmp_path / "out", a="1")
    assert (tmp_path / "out" / "sub" / "a").exists()


@pytest.mark.parametrize("manifest", [None, "{", '["a"]', '{"files": 3}', '{"files": ["other"]}'])
def test_foreign_files_are_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    precious = tmp_path / "out" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    if manifest is not None:
        (tmp_path / "out" / MANIFEST).write_text(manifest)
    with pytest.raises(InputError, match="which no earlier run wrote; choose another --out"):
        _run(tmp_path / "out", a="1")
    assert precious.read_text() == "years of work"


def test_foreign_file_that_appears_during_the_run(tmp_path: Path) -> None:

    def race() -> None:
        with staged_folder(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "new.txt").write_text("mine")

    with pytest.raises(InputError, match="which no earlier run wrote"):
        race()
    assert (tmp_path / "out" / "new.txt").read_text() == "mine"


def test_old_results_come_back_when_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path / "out", a="1")
    rename = Path.rename

    def refuse_the_stage(self: Path, target: Path) -> Path:
        if self.name.startswith(".out-") and "old" not in self.name:
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_stage)
    with pytest.raises(InputError, match="disk on fire"):
        _run(tmp_path / "out", a="2")
    assert (tmp_path / "out" / "sub" / "a").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, results need a folder"):
        _run(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot write to .*below: "):
        _run(tmp_path / "file" / "below")
