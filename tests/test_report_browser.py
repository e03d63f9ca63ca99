"""The report in a real Chromium without a screen: it renders, sorts, filters, opens fast, runs nothing a model wrote.

Needs Debian's chromium and chromium-driver (or any pair of the two on the path). Without them the tests skip, except
where CI is set: there they fail. With HUMOR_ENV_SHOTS=FOLDER screenshots are left there to be looked at.
"""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CONTRAST, WIDTHS, look, start
from report_runs import HOSTILE, make_run, score_of, text_of

from humor_env.experiments.reports.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start(tmp_path_factory.mktemp("profile"), 120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "some", prompts=100)
    return write_report([folder], folder / "report.html")


@pytest.fixture
def opened(browser, page):
    look(browser, 1280, "light")
    browser.get_log("browser")  # emptied
    browser.get(page.as_uri())
    return browser


def one(browser, selector):
    """The first one; what the page only makes after an event, such as an opened line, may take a moment."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10).until(lambda b: b.find_elements("css selector", selector))[0]


def shown(browser, selector="#rows summary > :last-child"):
    return [e.text for e in browser.find_elements("css selector", selector)]


def scores(browser):
    return [float(text) for text in shown(browser, "#rows .score")]


def choose(browser, **values):
    """Set controls as a user's input does: the value, then the event."""
    browser.execute_script(
        "for (const [id, value] of Object.entries(arguments[0])) document.getElementById(id).value = value;"
        "document.getElementById('controls').dispatchEvent(new Event('input', {bubbles: true}))",
        values,
    )


def count(browser):
    return int(one(browser, "#count").text.split()[0])


def test_it_renders_without_a_complaint_and_runs_nothing_a_model_wrote(opened):
    assert opened.title == "some – humor-env report"
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.hacked") is None
    assert len(opened.find_elements("css selector", "svg[role=img]")) >= 8
    assert len(opened.find_elements("css selector", "img")) == 0
    assert one(opened, "#first").text.count(HOSTILE) >= 1  # shown as it was written
    choose(opened, find="hacked")
    assert count(opened) == 2  # once for each seed
    assert shown(opened)[0].endswith(HOSTILE)
    one(opened, "#rows summary").click()
    inside = one(opened, "#rows .inside").text
    assert HOSTILE in inside and "reason of ppo 3 <img src=x>" in inside
    assert len(opened.find_elements("css selector", "img")) == 0
    assert opened.execute_script("return window.hacked") is None
    assert opened.get_log("browser") == []


def test_its_policy_stops_scripts_and_requests_that_are_not_its_own(opened):
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 4'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)"
    )
    refused = opened.execute_async_script(
        "fetch('http://127.0.0.1:9/').then(() => arguments[0]('sent'), (e) => arguments[0](String(e)))"
    )
    assert refused != "sent"
    assert opened.execute_script("return window.hacked") is None
    said = [entry["message"] for entry in opened.get_log("browser")]
    assert all("Content Security Policy" in text for text in said if "ERR_" not in text)
    for what in ("inline script", "127.0.0.1:9/x.png", "connect"):
        assert any(what in text and "Content Security Policy" in text for text in said), what


def test_sorting(opened):
    everything = sorted((score_of("ppo", seed, n), seed, n) for seed in (0, 1) for n in range(100))
    choose(opened, sort="score-up")
    assert scores(opened) == [round(s, 2) for s, *_ in everything[:50]]
    choose(opened, sort="score-down")
    assert scores(opened) == [round(s, 2) for s, *_ in everything[::-1][:50]]
    best = min(everything, key=lambda found: (-found[0], found[1:]))  # of equals the first as written
    assert shown(opened)[0] == text_of("ppo", best[2])
    choose(opened, sort="long")
    lengths = list(map(len, shown(opened)))
    assert lengths[0] > len(HOSTILE)
    assert shown(opened)[2] == max((text_of("ppo", n) for n in range(100) if n not in (3, 5)), key=len)
    choose(opened, sort="change-up")
    changes = [float(t.replace("−", "-")) for t in shown(opened, "#rows .change")]
    assert changes == sorted(changes) and len(changes) == 50
    choose(opened, sort="order")
    assert shown(opened)[0] == text_of("ppo", 0)


def test_filtering(opened):
    assert count(opened) == 200  # the held-out lines; those of training are one choice away
    choose(opened, kind="training")
    assert count(opened) == 80
    choose(opened, kind="")
    assert count(opened) == 280
    choose(opened, kind="held-out", seed="seed-1")
    assert count(opened) == 100
    choose(opened, seed="", flag="emoji")
    assert count(opened) == 2 and all("butterflies" in text for text in shown(opened))
    choose(opened, flag="*")
    assert count(opened) == 4
    choose(opened, flag="", find="NUMBER 42 was")
    assert count(opened) == 2
    choose(opened, find="", **{"from": "0.75"})
    assert count(opened) == sum(score_of("ppo", s, n) >= 0.75 for s in (0, 1) for n in range(100))
    choose(opened, **{"from": "", "to": "0.62"})
    assert count(opened) == sum(score_of("ppo", s, n) <= 0.62 for s in (0, 1) for n in range(100))
    choose(opened, to="", find="no line says this")
    assert one(opened, "#count").text == "No line matches."


def test_the_keyboard_is_enough(opened):
    from selenium.webdriver.common.keys import Keys

    def focused():
        return opened.switch_to.active_element

    one(opened, "body").send_keys(Keys.TAB)
    assert focused().text == "Skip to the results"
    one(opened, "#find").send_keys("number 7 was")
    assert count(opened) == 2
    for _ in range(40):
        focused().send_keys(Keys.TAB)
        if focused().tag_name == "summary":
            break
    assert text_of("ppo", 7) in focused().text
    focused().send_keys(Keys.ENTER)
    inside = one(opened, "#rows details[open] .inside").text
    for stage in ("base", "imitation", "ppo", "teacher"):
        assert text_of(stage, 7) in inside and f"reason of {stage} 7" in inside
    choose(opened, find="")
    one(opened, "#more").send_keys(Keys.ENTER)
    assert len(shown(opened)) == 100
    assert focused().text.endswith(text_of("ppo", 50))  # the first of the new ones, to read on from


def test_every_control_and_region_has_a_name(opened):
    nameless = opened.execute_script(
        "return [...document.querySelectorAll('input,select,button,section,form,nav,svg,summary,a')].filter((e) => {"
        " const by = (e.getAttribute('aria-labelledby') || '').split(' ').map((i) => document.getElementById(i));"
        " const text = [e.getAttribute('aria-label'), ...by.map((b) => b && b.textContent),"
        "   e.labels && e.labels[0] && e.labels[0].textContent,"
        "   ['BUTTON', 'SUMMARY', 'A'].includes(e.tagName) && e.textContent];"
        " return !text.some((t) => t && t.trim()) }).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert one(opened, "html").get_attribute("lang") == "en"
    levels = [int(e.tag_name[1]) for e in opened.find_elements("css selector", "h1,h2,h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_two_widths_in_both_themes_and_can_be_read(opened, width, theme):
    look(opened, width, theme)
    one(opened, "#rows summary").click()
    assert opened.execute_script("return innerWidth") == width
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    assert opened.execute_script(CONTRAST) == []
    dark = opened.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(13, 15, 19)"
    assert dark == (theme == "dark")
    smallest = opened.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg text')].map((e) => e.getBoundingClientRect().height))"
    )
    assert smallest >= 11  # the letters of the charts, in pixels of line height
    screenshot(opened, f"{width}-{theme}")


def test_the_theme_can_be_chosen(opened):
    def surface():
        return opened.execute_script("return getComputedStyle(document.querySelector('svg .surface')).fill")

    assert surface() == "rgb(255, 255, 255)"
    one(opened, "#theme").click()
    assert (one(opened, "#theme").text, surface()) == ("Theme: light", "rgb(255, 255, 255)")
    one(opened, "#theme").click()
    assert (one(opened, "#theme").text, surface()) == ("Theme: dark", "rgb(22, 25, 31)")
    one(opened, "#theme").click()
    assert (one(opened, "#theme").text, surface()) == ("Theme: auto", "rgb(255, 255, 255)")


def test_five_thousand_jokes_open_in_under_two_seconds(browser, tmp_path):
    """The best of three, because other tests may run beside this one: processor time, and what the reader waits."""
    folder = make_run(tmp_path / "large", seeds=1, prompts=5000, training=0)
    page = write_report([folder], folder / "report.html")
    look(browser, 1280, "light")
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    took, waited = [], []
    for _ in range(3):
        browser.get("about:blank")
        before = _task_seconds(browser)
        browser.get(page.as_uri())
        assert count(browser) == 5000
        took.append(_task_seconds(browser) - before)
        waited.append(browser.execute_script("return performance.getEntriesByType('navigation')[0].duration / 1000"))
    assert min(took) < 2
    assert 0 < min(waited) < 2
    before = _task_seconds(browser)
    choose(browser, sort="score-down", find="number 4")
    assert count(browser) == 1111
    assert _task_seconds(browser) - before < 0.5
    browser.execute_cdp_cmd("Performance.disable", {})


def _task_seconds(browser):
    found = {m["name"]: m["value"] for m in browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
    return found["TaskDuration"]


def test_several_runs_can_be_told_apart(browser, tmp_path):
    folders = [make_run(tmp_path / name, seeds=1, prompts=10) for name in ("first", "second")]
    browser.get(write_report(folders, tmp_path / "both.html").as_uri())
    choose(browser, run="1")
    assert count(browser) == 10
    assert "first" in one(browser, "#result").text and "second" in one(browser, "#result").text
    for width in WIDTHS:
        look(browser, width, "light")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def screenshot(browser, name):
    folder = os.environ.get("HUMOR_ENV_SHOTS")
    if folder:
        import base64

        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"report-{name}.png").write_bytes(base64.b64decode(shot["data"]))
