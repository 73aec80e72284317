"""The page in a real browser: it draws, reacts, and asks for nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, chromium
from PIL import Image, ImageChops
from toy_scores import make_scores
from viewing import BENDS, bent, small_scene

from hess_plugin.errors import InputError
from hess_plugin.evaluation.compare import Reference
from hess_plugin.viewer import page as page_module
from hess_plugin.viewer.page import Page, pack_scenes, write_page
from hess_plugin.viewer.results import SceneResult

HOSTILE = "</script><b>&amp;"
GREEN = (0, 200, 83)
NAMESPACES = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two scenes, the second one without ground truth."""
    results = []
    for seed, name in ((3, "table"), (4, HOSTILE)):
        scene = small_scene(seed, name)
        predictions = {method: bent(scene, method) for method in BENDS}
        dense = Reference.from_prediction(predictions["dense"])
        truth = Reference.from_scene(scene)
        truth.mask[0] = False  # nothing is known of the first view, so not all points are judged
        reference = truth if name == "table" else dense
        results.append(SceneResult.of(scene, reference, predictions))
    path = tmp_path_factory.mktemp("page") / "index.html"
    shares = make_scores().shares()
    page = Page("Side & by <side>", "toy", ["a note"], shares, {"Run": {"name": HOSTILE}}, "<h2>Sweep</h2>")
    write_page(path, page, list(pack_scenes(results, num_clouds=8)))
    return path


@pytest.fixture(scope="module")
def browser(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(path)
        yield browser
        assert browser.errors == []
        addresses = [url for url in browser.requests if not url.startswith("data:")]
        assert addresses == [path.as_uri()], "the page must hold all that it shows"


@pytest.fixture(autouse=True)
def first_view(request: pytest.FixtureRequest) -> None:
    """Each test starts at the first scene, side by side."""
    if "browser" in request.fixturenames:
        page = request.getfixturevalue("browser")
        page.evaluate("location.hash = 'scene=table&method=all'; viewer.orbit.reset()")
        page.settle()


def canvas(browser: Browser) -> Image.Image:
    return browser.picture("#canvas")


def differing(first: Image.Image, second: Image.Image) -> float:
    """Share of pixels that differ visibly."""
    assert first.size == second.size
    return float((np.asarray(ImageChops.difference(first, second)).max(axis=-1) > 24).mean())


def green(image: Image.Image) -> float:
    return float((np.abs(np.asarray(image).astype(int) - GREEN).max(axis=-1) < 12).mean())


class TestBrowser:
    def test_every_panel_draws(self, browser: Browser) -> None:
        image = np.asarray(canvas(browser))
        panels = np.array_split(image, 4, axis=1)
        for panel in panels:
            below = panel[len(panel) // 4 :].reshape(-1, 3)
            assert (below < 200).any(axis=-1).mean() > 0.02, "no points"
            assert len(np.unique(below, axis=0)) > 100
            red = (np.abs(below.astype(int) - (214, 39, 40)).max(axis=-1) < 30).sum()
            assert red > 20, "no cameras"

    def test_a_method_alone_and_another(self, browser: Browser) -> None:
        pictures = []
        for method in ("ground_truth", "dense", "uniform", "hess"):
            browser.click(f"[data-method={method}]")
            assert browser.evaluate("document.querySelectorAll('.panel').length") == 1
            assert f"method={method}" in browser.evaluate("location.hash")
            pictures.append(canvas(browser))
        for index, first in enumerate(pictures):
            for second in pictures[index + 1 :]:
                assert differing(first, second) > 0.01
        browser.click("[data-method=ground_truth]")
        assert differing(canvas(browser), pictures[0]) == 0

    def test_points_beyond_the_threshold_are_green(self, browser: Browser) -> None:
        browser.click("[data-method=uniform]")
        shown = green(canvas(browser))
        assert shown > 0.02
        browser.evaluate("find('threshold').value = 1; find('threshold').dispatchEvent(new Event('input'))")
        browser.settle()
        assert green(canvas(browser)) < shown / 2
        browser.click("#errors")
        assert green(canvas(browser)) < 0.001
        browser.click("#errors")
        browser.click("[data-method=ground_truth]")
        assert green(canvas(browser)) < 0.001

    def test_the_share_of_green_points_is_told(self, browser: Browser) -> None:
        """At the first threshold 2 % of the points of the first method lie beyond."""
        texts = browser.evaluate("[...document.querySelectorAll('[data-beyond]')].map(e => e.textContent)")
        shares = [float(text.split(" %")[0]) if text else None for text in texts]
        assert shares[0] is None
        assert shares[1] == pytest.approx(2.0, abs=0.2)
        assert shares[1] < shares[3] < shares[2]

    def test_dragging_moves_all_panels(self, browser: Browser) -> None:
        before, box = canvas(browser), browser.box("#canvas")
        x, y = box["x"] + 100, box["y"] + box["height"] / 2
        browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        browser.mouse("mouseMoved", x + 60, y + 20, button="left", buttons=1)
        browser.mouse("mouseReleased", x + 60, y + 20, button="left")
        browser.settle()
        after = canvas(browser)
        for panel in range(4):
            area = (panel * after.width // 4, 0, (panel + 1) * after.width // 4, after.height)
            assert differing(before.crop(area), after.crop(area)) > 0.01
        browser.click("#reset")
        assert differing(canvas(browser), before) == 0
        browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-200)
        browser.settle()
        assert differing(canvas(browser), before) > 0.01

    def test_standing_at_a_photo(self, browser: Browser) -> None:
        before = canvas(browser)
        browser.click("#views button")
        assert differing(canvas(browser), before) > 0.05

    def test_another_scene(self, browser: Browser) -> None:
        browser.evaluate("find('scene').value = 1; find('scene').dispatchEvent(new Event('change'))")
        browser.settle()
        assert browser.evaluate("document.querySelectorAll('.panel').length") == 3, "it has no ground truth"
        assert "against dense" in browser.evaluate("find('about').textContent")
        assert browser.evaluate("find('scene').selectedOptions[0].text") == HOSTILE
        assert len(np.unique(np.asarray(canvas(browser)).reshape(-1, 3), axis=0)) > 100

    def test_pictures_and_numbers(self, browser: Browser) -> None:
        loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        browser.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        browser.wait(loaded)
        assert browser.evaluate("document.querySelectorAll('#views img').length") == 5 * 5
        rows = browser.evaluate("[...document.querySelectorAll('#table tr')].map(row => row.innerText)")
        assert len(rows) == 1 + 2 * 3
        assert rows[1].split()[:2] == ["table", "Dense"]
        notes = browser.evaluate("find('notes').innerText")
        assert "a note" in notes
        assert HOSTILE in browser.evaluate("document.querySelector('#configuration pre').textContent")

    def test_hover_tells_the_scores(self, browser: Browser) -> None:
        shares = make_scores().shares()
        browser.evaluate('document.querySelector(\'[data-layer="1"][data-head="2"]\').scrollIntoView()')
        at = browser.evaluate(
            "(r => [r.x + r.width / 2, r.y + r.height / 2])"
            '(document.querySelector(\'[data-layer="1"][data-head="2"]\').getBoundingClientRect())'
        )
        browser.mouse("mouseMoved", *at)
        browser.wait("!find('tip').hidden")
        told = browser.evaluate("find('tip').textContent").split("\n")
        values = [f"{name} {share[1, 2]:.4f}" for name, share in shares.items()]
        assert told == ["layer 2, head 3", *values]
        browser.evaluate("scrollTo(0, 0)")


def test_a_link_names_the_method(path: Path, tmp_path: Path) -> None:
    with chromium(tmp_path) as browser:
        browser.open(path, "#scene=table&method=hess", width=600, height=800)
        assert browser.evaluate("document.querySelector('.panel b').textContent") == "HeSS"
        wide = browser.evaluate("document.documentElement.scrollWidth")
        assert wide <= 600, "a narrow window needs no scrolling to the side"


def test_no_address_but_names(path: Path) -> None:
    found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w./]*", path.read_text()))
    assert {address for address in found if address.startswith("http")} == set(NAMESPACES)


def test_a_page_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 10_000)
    with pytest.raises(InputError, match="more than 0; show fewer scenes or methods"):
        write_page(tmp_path / "index.html", Page("title", ""), [])
    assert not list(tmp_path.iterdir())
