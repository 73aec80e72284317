"""The command line: what goes to stdout, to stderr, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from PIL import Image
from sidecars import files_of
from tiny_checkpoint import save_scores

from hess_plugin import cli, demo
from hess_plugin.calibration import command
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
        assert "o/ (open index.html in a browser)" in capsys.readouterr().out

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

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(demo, "run_demo", interrupt)
        assert cli.main(["demo"]) == 130
        assert capsys.readouterr().err == "\nhess demo: interrupted\n"
        monkeypatch.setattr(command, "run_calibration", interrupt)
        assert cli.main(["calibrate", "--model", "m", "--dataset", "synthetic", "--out", "o"]) == 130
        assert capsys.readouterr().err == "\nhess calibrate: interrupted; go on with --resume\n"


class TestInspect:
    def test_prints_a_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        folder = save_scores(tmp_path / "scores")
        assert cli.main(["inspect", str(folder)]) == 0
        printed = capsys.readouterr().out
        assert "vggt, 2 layers x 4 heads of 8" in printed
        tables = printed.split("layer  ")[1:]
        assert [table.split("\n\n")[0].count("\n") for table in tables] == [2, 2]  # a row for each layer

    def test_says_how_sure_the_scores_are(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert cli.main(["inspect", str(save_scores(tmp_path / "scores"))]) == 0
        printed = capsys.readouterr().out
        assert "95 % bootstrap intervals" in printed
        assert "Rank correlation of n scenes with n others" in printed

    def test_picture(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        folder, picture = save_scores(tmp_path / "scores"), tmp_path / "heads.png"
        assert cli.main(["inspect", str(folder), "--picture", str(picture)]) == 0
        assert f"Picture: {picture}" in capsys.readouterr().out
        with Image.open(picture) as image:
            assert image.format == "PNG"

    def test_picture_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        folder, picture = save_scores(tmp_path / "scores"), tmp_path / "nowhere" / "heads.png"
        assert cli.main(["inspect", str(folder), "--picture", str(picture)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"hess inspect: cannot draw {picture}: ")
        assert error.count("\n") == 1

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

    def test_missing_folder_is_not_taken_for_an_alias(self, capsys: pytest.CaptureFixture) -> None:
        assert cli.main(["inspect", "nowhere"]) == 2
        error = capsys.readouterr().err
        assert "no HeSS scores for hess='nowhere'" in error
        assert "the folder nowhere: no such folder" in error
        assert "index" not in error

    def test_folder_without_scores(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert cli.main(["inspect", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("hess inspect: no HeSS scores")
        assert error.count("\n") == 1


class TestPushAndPull:
    def test_there_and_back(
        self, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_scores(tmp_path / "scores")
        monkeypatch.chdir(tmp_path)
        assert cli.main(["push", "scores", "me/scores", "--private"]) == 0
        first = capsys.readouterr().out
        assert first.startswith(f"Pushed: {hub.url}/me/scores/commit/")
        assert hub.repos["model", "me/scores"].private
        assert cli.main(["push", "scores", "me/scores"]) == 0
        assert capsys.readouterr().out == first.replace("Pushed", "Nothing to push, the same is there")
        assert cli.main(["pull", "me/scores", "--out", "copy"]) == 0
        assert "hess inspect copy" in capsys.readouterr().out
        assert files_of(tmp_path / "copy") == files_of(tmp_path / "scores")

    def test_options_arrive(self, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        save_scores(tmp_path / "model" / "hess" / "synthetic")  # a model folder with one sidecar will do
        hub.put("org/model", {"README.md": b"mine"})
        push = ["push", str(tmp_path / "model"), "org/model", "--alias", "co3d"]
        assert cli.main([*push, "--revision", "next"]) == 0
        assert "hess/co3d/hess_config.json" in hub.files("org/model", revision="next")
        assert cli.main([*push, "--create-pr"]) == 0
        assert capsys.readouterr().out.endswith("/org/model/discussions/1\n")
        assert cli.main(["pull", "org/model@next:co3d", "--out", str(tmp_path / "out")]) == 0
        assert cli.main([*push, "--evaluation", str(tmp_path / "absent.json")]) == 2
        assert "absent.json" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["push", "nowhere", "me/scores"], "no such folder"),
            (["push", "scores", "scores"], "'scores' is no repository"),
            (["push", "scores", "org/model", "--alias", "a/b"], "alias must be letters"),
            (["push", "scores", "no/such", "--alias", "co3d"], "the Hub answers 404: there is no such"),
            (["pull", "no/such", "--out", "out"], "cannot pull no/such: no/such@main: no such repository"),
            (["pull", "nonsense", "--out", "out"], "scores are pulled from org/repo"),
        ],
    )
    def test_refused_in_one_line(
        self,
        hub: HubServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
        arguments: list[str],
        said: str,
    ) -> None:
        save_scores(tmp_path / "scores")
        monkeypatch.chdir(tmp_path)
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"hess {arguments[0]}: ")
        assert said in error
        assert error.count("\n") == 1

    def test_missing_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
        assert cli.main(["push", str(save_scores(tmp_path / "scores")), "me/scores"]) == 2
        assert 'pip install "hess-plugin[hub]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["demo", "--density", "much"], ["calibrate"], ["inspect"]]
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: hess" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "inspect", "push", "pull"])
def test_help_does_not_load_torch(command: str) -> None:
    code = (
        "import sys; from hess_plugin.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
