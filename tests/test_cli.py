"""The command line: what goes to stdout, to stderr, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import save_scores

from hess_plugin import cli, demo
from hess_plugin.errors import InputError

SUMMARY = {"groups": [], "notes": []}


def test_module_runs_as_the_command(tmp_path: Path) -> None:
    """Bad input in a real process: exactly one line on stderr, exit code 2, nothing on stdout or disk."""
    command = [
        sys.executable,
        "-m",
        "hess_plugin",
        "demo",
        "--images",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("hess demo: ")
    assert "no photos in" in result.stderr
    assert list(tmp_path.iterdir()) == []


class TestDemo:
    @pytest.fixture
    def given(self, monkeypatch: pytest.MonkeyPatch) -> list[demo.DemoSettings]:
        """Settings of the runs that the command starts."""
        runs: list[demo.DemoSettings] = []
        monkeypatch.setattr(demo, "run_demo", lambda settings: runs.append(settings) or SUMMARY)
        return runs

    def test_defaults(self, given: list[demo.DemoSettings]) -> None:
        assert cli.main(["demo"]) == 0
        assert given == [demo.DemoSettings()]

    def test_options_arrive(self, given: list[demo.DemoSettings], capsys: pytest.CaptureFixture) -> None:
        options = "--images p --out o --density 0.25 --views 8 --model org/model --hess co3d --device cpu"
        assert cli.main(["demo", *options.split()]) == 0
        expected = demo.DemoSettings(
            images=Path("p"),
            out=Path("o"),
            density=0.25,
            views=8,
            model="org/model",
            hess="co3d",
            device="cpu",
        )
        assert given == [expected]
        assert "o/ (first contact_sheet.png)" in capsys.readouterr().out

    def test_bad_value(self, given: list[demo.DemoSettings], capsys: pytest.CaptureFixture) -> None:
        assert cli.main(["demo", "--density", "2"]) == 2
        assert capsys.readouterr().err == "hess demo: density must be above 0 and at most 1, got 2.0.\n"
        assert given == []

    def test_a_bug_keeps_its_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def bug(settings: demo.DemoSettings) -> None:
            raise ValueError("a bug")

        monkeypatch.setattr(demo, "run_demo", bug)
        with pytest.raises(ValueError, match="a bug") as caught:
            cli.main(["demo"])
        assert not isinstance(caught.value, InputError)


class TestInspect:
    def test_prints_a_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        folder = save_scores(tmp_path / "scores")
        assert cli.main(["inspect", str(folder)]) == 0
        printed = capsys.readouterr().out
        assert "vggt, 2 layers x 4 heads of 8" in printed
        assert len(printed.split("layer  ")[-1].splitlines()) == 3  # the heading's rest and two layers

    def test_relative_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        save_scores(tmp_path / "scores")
        monkeypatch.chdir(tmp_path)
        assert cli.main(["inspect", "scores"]) == 0
        assert "layers" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["", "no/such:repo:form", "./nowhere"])
    def test_not_found(self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert cli.main(["inspect", name]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_folder_without_scores(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert cli.main(["inspect", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("hess inspect: no HeSS scores")
        assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--density", "much"], ["inspect"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: hess" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "inspect"])
def test_help_does_not_load_torch(command: str) -> None:
    code = (
        "import sys; from hess_plugin.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
