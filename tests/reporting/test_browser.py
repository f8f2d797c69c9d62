"""The page in a real browser: Chromium, driven by playwright.

Where either is missing these tests are skipped, with FASTMTT_REQUIRE_BROWSER=1 they fail.
"""

import os
import re
import shutil

import pytest
from run_maker import evaluation, make_run, step, write_metrics

from fastmtt.reporting.page import render
from fastmtt.reporting.reader import read_run


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    else:
        missing = "" if program else "there is no chromium (Debian, Ubuntu: apt install chromium)"
    if missing and os.environ.get("FASTMTT_REQUIRE_BROWSER") == "1":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses root; what is opened here is written here.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=program, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One run, several, one that has not begun, and one with images beyond a phone's width."""
    folder = tmp_path_factory.mktemp("pages")
    long = "a_run_with_a_name_that_does_not_end_" * 4
    one = make_run(folder / "one", published=46.2)
    averaged = make_run(folder / "averaged", ema_decay=0.99)
    other = make_run(folder / long, zca=False, ipc=12, size=32)
    begun = make_run(folder / "begun", zca=False)
    for path in begun.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    write_metrics(begun, [evaluation(0, 20.0), step(0)])
    runs = {"one": [one], "averaged": [averaged], "wide": [other], "begun": [begun]}
    runs["several"] = [one, other, begun]
    for name, chosen in runs.items():
        text = render([read_run(run) for run in chosen])
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


class Opened:
    """A page opened from disk, with what the browser said and asked for."""

    def __init__(self, browser, file, **context):
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def __enter__(self):
        return self.page

    def __exit__(self, *_):
        self.context.close()
        assert self.said == []
        outside = [url for url in self.asked[1:] if not url.startswith("data:")]
        assert outside == []


def size(width: int) -> dict:
    return {"viewport": {"width": width, "height": 800}}


@pytest.mark.parametrize("name", ["one", "averaged", "wide", "begun", "several"])
@pytest.mark.parametrize(
    ("width", "scheme"), [(375, "light"), (1280, "dark")], ids=["phone", "desktop"]
)
def test_fits_and_asks_for_nothing(browser, pages, name, width, scheme):
    """A scheme is colours alone, which `test_contrast_is_enough_to_read` looks at."""
    with Opened(browser, pages / f"{name}.html", color_scheme=scheme, **size(width)) as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # Fails where one cannot be decoded, hidden ones too.
        page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        drawn = page.evaluate(
            "[...document.querySelectorAll('.curves svg')]"
            ".map((drawing) => drawing.getBoundingClientRect().width)"
        )
        assert all(200 < wide <= width for wide in drawn)


def test_slider_by_key_by_touch_and_by_itself(browser, pages):
    with Opened(browser, pages / "one.html", has_touch=True, **size(375)) as page:
        slider, output = page.get_by_role("slider"), page.locator("output")
        frame = page.locator(".frames img:visible")
        seen = []

        def look(said: str) -> None:
            assert re.match(said, output.inner_text())
            assert slider.get_attribute("aria-valuetext") == output.inner_text()
            assert frame.count() == 1
            seen.append(frame.get_attribute("src"))

        look("After the last iteration: 41.00")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        look("Before iteration 10: 45.25")
        page.keyboard.press("Home")
        look("At the start: 20.00")
        assert len(set(seen)) == 3
        box = slider.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
        look("After the last iteration")
        assert box["height"] >= 44
        page.get_by_role("button", name="Play").tap()
        look("At the start")
        output.filter(has_text="After the last iteration").wait_for()
        assert page.get_by_role("button").inner_text() == "Play"
        assert seen[0] == seen[3] and seen[2] == seen[4]


def test_switch_of_sets_and_views(browser, pages):
    with Opened(browser, pages / "one.html", **size(1280)) as page:
        shown = page.locator(".classes img:visible")

        def sources() -> list[str]:
            assert shown.count() == 3
            return [image.get_attribute("src") for image in shown.all()]

        seen = [sources()]
        page.get_by_role("radio", name="Whitened, as trained on").click()
        seen.append(sources())
        page.get_by_role("radio", name="Last iterate").click()
        seen.append(sources())
        page.keyboard.press("ArrowLeft")  # by keys: the set before
        seen.append(sources())
        assert page.get_by_label("Best by held-out accuracy").is_checked()
        page.get_by_label("Brought back to pixels").check()
        seen.append(sources())
        assert len({source for row in seen for source in row}) == 15
        page.get_by_label("Best by test accuracy").check()
        assert sources() == seen[0]


def test_without_scripts_the_first_set_and_the_last_frame_are_there(browser, pages):
    with Opened(browser, pages / "one.html", java_script_enabled=False, **size(375)) as page:
        assert page.locator(".classes img:visible").count() == 3
        assert page.locator(".frames img:visible").count() == 1
        assert page.get_by_role("slider").count() == 0
        assert page.get_by_role("radio").count() == 0


def test_everything_has_a_name(browser, pages):
    with Opened(browser, pages / "several.html", **size(1280)) as page:
        unnamed = "[...document.images].filter((image) => !image.alt.trim()).length"
        assert page.evaluate(unnamed) == 0
        for role in ("slider", "radio", "button", "region", "link"):
            found = page.get_by_role(role)
            assert found.count() == page.get_by_role(role, name=re.compile(r"\w")).count() > 0
        assert page.get_by_role("heading", level=1).count() == 1
        levels = [
            int(tag[1])
            for tag in page.locator("h1, h2, h3, h4").evaluate_all(
                "(all) => all.map((one) => one.tagName)"
            )
        ]
        assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_to_read(browser, pages, scheme):
    """WCAG 2.2 AA: 4.5 to 1 for text; runs' letters are text on the paper and below it."""
    with Opened(browser, pages / "one.html", color_scheme=scheme) as page:
        names = [
            "paper",
            "raised",
            "warn-paper",
            "ink",
            "ink-2",
            "accent",
            *(f"run-{i}" for i in range(8)),
        ]
        values = page.evaluate(
            "(names) => names.map((name) => getComputedStyle(document.documentElement)"
            ".getPropertyValue('--' + name).trim())",
            names,
        )
    colours = dict(zip(names, map(luminance, values), strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((colours[one], colours[other]))
        return (high + 0.05) / (low + 0.05)

    for name in names[3:]:
        assert contrast(name, "paper") >= 4.5, name
    assert contrast("ink", "warn-paper") >= 4.5 and contrast("ink", "raised") >= 4.5
    assert (colours["paper"] < colours["ink"]) == (scheme == "dark")


def test_paper_shows_all_and_stays_white(browser, pages):
    with Opened(browser, pages / "several.html", color_scheme="dark", **size(700)) as page:
        assert page.pdf().startswith(b"%PDF")  # as printing, it opens what is folded
        assert page.locator("details:not([open])").count() == 0
        page.emulate_media(media="print", color_scheme="dark")
        assert page.locator(".switches:visible, .player:visible").count() == 0
        beyond = page.locator(".scroll").evaluate_all(
            "(all) => all.filter((table) => table.scrollWidth > table.clientWidth).length"
        )
        assert beyond == 0  # paper cannot be scrolled
        paper = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(paper) == "rgb(252, 252, 250)"
