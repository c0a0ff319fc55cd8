"""Reports in a real browser: no error, no network, pictures that load; in light, dark, narrow and on paper."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup
from report.fake_runs import write_config, write_records, write_run

from sdfast.report.page import Page, render, save
from sdfast.report.panel import Panel, figure
from sdfast.report.records import Live, read_run
from sdfast.report.run import page_of

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    asked = os.environ.get("SDFAST_BROWSER")
    found = asked or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs chromium: none on PATH, and SDFAST_BROWSER names none")
    with driver.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a whole run, with a picture."""
    from PIL import Image

    out = write_run(tmp_path_factory.mktemp("browser"))
    write_records(out / "pretrain", 300)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    run = read_run(out)
    assert run is not None
    page = page_of(run)
    more = Panel("picture", "Picture", figure(file.getvalue(), "red", "a red square"))
    path = out / "report.html"
    path.write_text(render(Page(page.title, page.verdict, [*page.panels, more], about=page.about, tiles=page.tiles)))
    return path


@pytest.fixture(scope="module")
def of_a_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study with all methods, over five seeds."""
    from studies.study_samples import made_up

    from sdfast.studies import report as studies
    from sdfast.studies.declared import STUDIES
    from sdfast.studies.tables import record

    found = [made_up(STUDIES["compare"], range(5))]
    about = {"protocol": "paper", "jobs": 1, "seeds": [0], "command": "sdfast study compare", "versions": {}}
    values = record(found[0].study, found, device="cpu", config=[], **about)
    path = tmp_path_factory.mktemp("study") / "report.html"
    path.write_text(render(studies.page_of(path.parent, json.loads(json.dumps(values)))))
    return path


class Watched:
    """A page in which everything that goes wrong is noted."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(**options)
        self.page.route("**/*", self._route)
        self.page.on("pageerror", lambda error: self.faults.append(f"{error}"))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type != "log" else None)
        self.page.goto(path.as_uri())

    def _route(self, route: Any) -> None:
        address = route.request.url
        if address.startswith(("file:", "data:")):
            route.continue_()
        else:
            self.asked.append(address)
            route.abort()

    def check(self) -> None:
        assert self.faults == [] and self.asked == []
        assert self.page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_report_of_a_study_is_shown_without_a_fault(
    browser: Any, of_a_study: Path, scheme: str, width: int
) -> None:
    watched = Watched(browser, of_a_study, viewport={"width": width, "height": 900}, color_scheme=scheme)
    watched.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert watched.page.locator("#d0-differences").is_visible() and watched.page.locator("#d0-runs").is_visible()
    watched.check()


def luminance(page: Any) -> float:
    found = page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
    return sum(map(float, found[:3])) / 3


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_a_report_is_shown_without_a_fault(browser: Any, report: Path, scheme: str, width: int, tmp_path: Path) -> None:
    from PIL import Image

    watched = Watched(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme)
    watched.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    watched.check()
    assert (luminance(watched.page) > 128) == (scheme == "light")
    assert watched.page.evaluate("window.hurt === undefined && document.images.length === 1")
    shot = tmp_path / "shot.png"
    watched.page.screenshot(path=shot, full_page=True)
    with Image.open(shot) as image:
        assert image.width == width and len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_the_button_changes_the_theme_and_headings_sort(browser: Any, report: Path) -> None:
    watched = Watched(browser, report, color_scheme="light")
    page = watched.page
    page.click("#theme")
    assert luminance(page) < 128
    heading = page.locator("#classes th button").nth(4)
    heading.click()
    values = page.evaluate("[...document.querySelectorAll('#classes tbody tr')].map(e => +e.cells[4].dataset.sort)")
    assert values == sorted(values, reverse=True)
    heading.click()
    assert page.locator("#classes th[aria-sort=ascending]").count() == 1
    watched.check()


def test_the_value_below_the_pointer_is_in_the_legend(browser: Any, report: Path) -> None:
    watched = Watched(browser, report, viewport={"width": 1280, "height": 900})
    chart = watched.page.locator("figure.chart[data-frame]").first
    before = chart.locator(".legend b").first.inner_text()
    chart.locator("svg").scroll_into_view_if_needed()
    box = chart.locator("svg").bounding_box()
    watched.page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    assert chart.locator(".legend b").first.inner_text() != before
    assert chart.locator(".at").inner_text().startswith("step ")
    watched.page.mouse.move(0, 0)
    assert chart.locator(".legend b").first.inner_text() == before
    watched.check()


def test_on_paper_it_is_light_and_whole(browser: Any, report: Path) -> None:
    watched = Watched(browser, report, color_scheme="dark")
    watched.page.emulate_media(media="print", color_scheme="dark")
    ink = watched.page.evaluate("getComputedStyle(document.body).color").strip("rgb()").split(",")
    assert sum(map(float, ink[:3])) / 3 < 128
    assert not watched.page.locator("nav").is_visible() and not watched.page.locator("#theme").is_visible()
    assert watched.page.pdf(format="A4")[:5] == b"%PDF-"
    watched.check()


def test_a_page_of_a_run_that_goes_reloads_itself_and_keeps_its_place(browser: Any, tmp_path: Path) -> None:
    write_config(tmp_path)
    write_records(tmp_path / "pretrain", 5)
    path = tmp_path / "report.html"

    def write(step: int, every: float) -> None:
        run = read_run(tmp_path, Live("pretrain", "pretrain", step, 20))
        assert run is not None
        save(replace(page_of(run), every=every), path)

    write(5, 4.0)
    watched = Watched(browser, path, viewport={"width": 700, "height": 500})
    watched.page.evaluate("scrollTo({top: 300, behavior: 'instant'})")
    watched.page.wait_for_timeout(200)
    write(6, 3600.0)  # and so it stays
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect(watched.page.locator(".verdict")).to_contain_text("step 6 of 20", timeout=20_000)
    watched.page.wait_for_timeout(100)
    assert watched.page.evaluate("scrollY") == 300
    watched.check()


def test_a_page_of_a_run_that_was_killed_says_that_there_is_no_news(browser: Any, tmp_path: Path) -> None:
    old = Page("t", "Stage pretrain is at step 5 of 20.", [Panel("a", "A", Markup("<p>a</p>"))], running=True)
    old = Page(old.title, old.verdict, old.panels, running=True, state="pretrain 5 of 20", at=time.time() - 3600)
    path = tmp_path / "report.html"
    path.write_text(render(old))
    watched = Watched(browser, path)
    assert "No news since" in watched.page.locator("#news").inner_text()
    assert "no news" in watched.page.locator(".state").inner_text()
    watched.check()
    done = Page("t", "Done.", [], at=time.time() - 3600)
    path.write_text(render(done))
    assert not Watched(browser, path).page.locator("#news").is_visible()
