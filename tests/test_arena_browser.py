"""The arena in two real Chromiums without a screen: judged by keyboard and by touch, read by machines, looked at.

Needs Debian's chromium and chromium-driver, as browser.py says. With HUMOR_ENV_SHOTS=FOLDER screenshots are
left there; with HUMOR_ENV_AXE=axe.min.js (npm pack axe-core) axe-core looks at every page too.
"""

import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from arena_sessions import code, served
from browser import CONTRAST, WIDTHS, look, start
from report_runs import HOSTILE
from test_arena import links, session
from test_arena_server import NASTY

from humor_env.experiments.arena.session import Arena

pytestmark = pytest.mark.slow
SYSTEMS = ("good", "fair", "weak", "teacher")
AXE = os.environ.get("HUMOR_ENV_AXE")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two people, each with a browser of their own."""
    drivers = []
    try:
        drivers.extend(start(tmp_path_factory.mktemp("profile"), 60) for _ in range(2))
        yield drivers
    finally:
        for driver in drivers:
            driver.quit()


def wait(driver, what):
    from selenium.common.exceptions import JavascriptException, NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    moving = (JavascriptException, NoSuchElementException, StaleElementReferenceException)
    return WebDriverWait(driver, 30, 0.02, moving).until(what)


def one(driver, selector):
    return wait(driver, lambda d: d.find_element("css selector", selector))


def title(driver, wanted):
    wait(driver, lambda d: d.title == wanted and d.execute_script("return document.readyState") == "complete")


def press(driver, key):
    """One key, as a keyboard sends it to whatever has the focus."""
    for kind in ("keyDown", "keyUp"):
        event = {"type": kind, "key": key, "text": key if kind == "keyDown" and len(key) == 1 else ""}
        driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)


def tap(driver, selector):
    """A finger on the middle of an element."""
    one(driver, selector)
    at = driver.execute_script(
        "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2, r.width, r.height]",
        selector,
    )
    assert min(at[2:]) >= 44, f"{selector} is too small for a finger"
    point = {"x": at[0], "y": at[1]}
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def agree(driver, link):
    driver.get(link)
    one(driver, 'form[action="/agree"] button').click()


def better(driver):
    """The side of the line of the better system."""
    texts = [e.text for e in driver.find_elements("css selector", ".lines .text")]
    order = {str(code(name)): k for k, name in enumerate(SYSTEMS)}
    rank = [next(k for c, k in order.items() if c in text.split()) for text in texts]
    return 0 if rank[0] < rank[1] else 1


def test_two_people_judge_sixty_pairs_by_keyboard_and_by_touch(two, tmp_path):
    store = session(tmp_path, SYSTEMS, 40, raters=2, per_rater=60)
    keyboard, phone = two
    look(keyboard, 1280, "light")
    look(phone, 390, "dark")
    phone.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    sides, problems = {1: [], 2: []}, []

    def by_keyboard():
        keyboard.get(links(arena, address)[0])
        assert "/r/" not in keyboard.current_url  # the token is gone from the address
        one(keyboard, 'form[action="/agree"] button').click()
        for number in range(1, 61):
            title(keyboard, f"Pair {number} of 60")
            look_for_names(keyboard)
            side = better(keyboard)
            sides[1].append(side)
            if number == 3:
                press(keyboard, "1")
                press(keyboard, "1")
                title(keyboard, "Pair 4 of 60")
                press(keyboard, "u")
                title(keyboard, "Pair 3 of 60")
                assert better(keyboard) == side
            press(keyboard, "12"[side])
            press(keyboard, "0" if number % 2 else "t")
            rested(keyboard, number)
        title(keyboard, "Thank you")

    def by_touch():
        agree(phone, links(arena, address)[1])
        for number in range(1, 61):
            title(phone, f"Pair {number} of 60")
            look_for_names(phone)
            side = better(phone)
            sides[2].append(side)
            for question in ("humor", "consistency"):
                tap(phone, f"[data-name={question}] [value={('first', 'second')[side]}]")
            rested(phone, number)
        title(phone, "Thank you")

    def safely(work):
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    with served(store) as (arena, address):
        threads = [threading.Thread(target=safely, args=(work,)) for work in (by_keyboard, by_touch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        for driver in two:
            assert driver.get_log("browser") == []
        answers = store.answers()
        assert [sum(x.ask.rater == n for x in answers) for n in (1, 2)] == [60, 60]
        for rater in (1, 2):
            own = [x for x in answers if x.ask.rater == rater]
            assert [x.replies["humor"] for x in own] == [("first", "second")[side] for side in sides[rater]]
            assert 18 <= sum(sides[rater]) <= 42  # three deviations of a fair coin
        assert {x.replies["consistency"] for x in answers if x.ask.rater == 1} == {"tie"}
        keyboard.get(f"{address}/results/{arena.owner()}")
        rows = [e.text for e in keyboard.find_elements("css selector", "#ratings table:first-of-type th[scope=row]")]
        assert rows[:4] == list(SYSTEMS)  # at the end they have names
        assert keyboard.get_log("browser") == []
    store.close()


def rested(driver, number):
    if number == 50:
        title(driver, "Time for a rest")
        one(driver, 'form[action="/rest"] button').click()


def look_for_names(driver):
    page = driver.page_source
    assert not any(name in page for name in SYSTEMS)


# What a machine can say of how it reads

_NAMELESS = """
const named = (e) => {
  const by = (e.getAttribute('aria-labelledby') || '').split(' ').map((i) => document.getElementById(i));
  return [e.getAttribute('aria-label'), ...by.map((b) => b && b.textContent),
    e.labels && e.labels[0] && e.labels[0].textContent,
    e.querySelector('legend') && e.querySelector('legend').textContent,
    ['BUTTON', 'SUMMARY', 'A'].includes(e.tagName) && e.textContent].some((t) => t && t.trim());
};
const every = 'input:not([type=hidden]),button,section,fieldset,nav,svg,summary,a,progress,div[role],[tabindex="0"]';
return [...document.querySelectorAll(every)]
  .filter((e) => !named(e) && !e.hasAttribute('dir')).map((e) => e.outerHTML.slice(0, 90))
"""


def check_page(driver, name):
    """Names, one main heading and no level left out, contrast, nothing wider than the window, an order of the focus
    that is the order of the page; and axe-core, where it is at hand."""
    assert driver.execute_script(_NAMELESS) == [], name
    assert driver.execute_script(CONTRAST) == [], name
    levels = [int(e.tag_name[1]) for e in driver.find_elements("css selector", "h1,h2,h3")]
    assert levels[0] == 1 and levels.count(1) == 1, name
    assert all(b - a <= 1 for a, b in pairwise(levels)), name
    width = driver.execute_script("return innerWidth")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width, name
    assert driver.execute_script("return document.documentElement.lang") == "en"
    assert driver.execute_script("return document.querySelectorAll('main').length") == 1
    assert (
        driver.execute_script("return document.querySelectorAll('[tabindex]:not([tabindex=\"0\"]):not(main)').length")
        == 0
    )
    ids = driver.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids), name
    if AXE:
        driver.execute_cdp_cmd("Runtime.evaluate", {"expression": Path(AXE).read_text()})
        found = driver.execute_async_script(
            "axe.run(document, {resultTypes: ['violations']}).then((r) => arguments[0](r.violations.map((v) =>"
            " [v.impact, v.id, v.nodes.map((n) => n.html.slice(0, 120))])))"
        )
        serious = [each for each in found if each[0] in ("serious", "critical", "moderate")]
        assert serious == [], (name, serious)


def screenshot(driver, name):
    folder = os.environ.get("HUMOR_ENV_SHOTS")
    if folder:
        import base64

        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"arena-{name}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A session with some answers, so that every part of the results is there."""
    from arena_sessions import Taste, simulate

    folder = tmp_path_factory.mktemp("session")
    store = session(folder, SYSTEMS, 40, raters=6, per_rater=60, rest=5)
    simulate(store, Taste({"good": 2, "fair": 1, "weak": -1, "teacher": 0.5}, ties=0.1), 200, raters=[2, 3, 4, 5, 6])
    arena = Arena(store)
    arena.answer(2, arena.ask_of(2).nonce, {"do": "offence"})
    with served(store) as there:
        yield there
    store.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_can_be_read_at_two_widths_in_both_themes(two, judged, width, theme):
    arena, address = judged
    driver = two[0]
    look(driver, width, theme)
    arena.store.forget(1)
    arena.changed()
    driver.get(links(arena, address)[0])
    check_page(driver, "consent")
    screenshot(driver, f"consent-{width}-{theme}")
    one(driver, 'form[action="/agree"] button').click()
    title(driver, "Pair 1 of 60")
    check_page(driver, "judge")
    if width == 1280:
        press(driver, "1")
        check_page(driver, "judge, half answered")
    screenshot(driver, f"judge-{width}-{theme}")
    for number in range(1, 6):
        title(driver, f"Pair {number} of 60")
        press(driver, "s")
    title(driver, "Time for a rest")
    check_page(driver, "rest")
    driver.get(f"{address}/r/wrong")
    check_page(driver, "message")
    driver.get(f"{address}/results/{arena.owner()}")
    check_page(driver, "results")
    screenshot(driver, f"results-{width}-{theme}")
    dark = driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(13, 15, 19)"
    assert dark == (theme == "dark")


def test_the_focus_goes_through_the_page_in_its_order(two, judged):
    from selenium.webdriver.common.keys import Keys

    arena, address = judged
    driver = two[0]
    look(driver, 1280, "light")
    arena.store.forget(1)
    arena.changed()
    agree(driver, links(arena, address)[0])
    title(driver, "Pair 1 of 60")
    seen = []
    for _ in range(10):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(driver.switch_to.active_element.text.split("\n")[0])
    sides = ["Line 1 1", "Line 2 2", "No difference 0"]
    assert seen[:1] == ["Skip to the sentence"]
    assert seen[1:] == [*sides, *sides, "Skip s", "Report as offensive o", "Keys: on"]
    # The keys can be turned off for those who speak to their computer, and stay off.
    one(driver, "#keys").click()
    press(driver, "1")
    assert driver.find_elements("css selector", "[aria-pressed=true]") == []
    driver.refresh()
    assert one(driver, "#keys").text == "Keys: off"
    one(driver, "#keys").click()
    # By the buttons themselves: after the first question the focus stands on the second.
    one(driver, "[data-name=humor] [value=tie]").send_keys(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("name") == "consistency"
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    title(driver, "Pair 2 of 60")
    assert dict(arena.store.answers()[-1].replies) == {"humor": "tie", "consistency": "first"}


def test_hostile_lines_stay_text_and_in_their_place(two, tmp_path):
    store = session(tmp_path, tuple(NASTY), 3, raters=1, text=lambda name, n: NASTY[name] or " ", repeats=0)
    driver, seen = two[1], set()
    look(driver, 390, "light")
    with served(store) as (arena, address):
        agree(driver, links(arena, address)[0])
        number = 1
        while True:
            wait(driver, lambda d: d.title in (f"Pair {number} of 100", "Thank you"))  # noqa: B023
            if driver.title == "Thank you":
                break
            assert driver.execute_script("return window.hacked") is None
            texts = driver.execute_script(
                "return [...document.querySelectorAll('.lines .text')].map((e) => e.textContent)"
            )
            seen |= set(texts)
            assert driver.find_elements("css selector", "img, main svg, main script") == []
            if number < 3 or NASTY["long"] in texts:
                check_page(driver, "hostile")
            # What stands after a line is where it was: no override reaches out of it, no length pushes it away.
            left = driver.execute_script(
                "return [...document.querySelectorAll('.choices')].map((c) =>"
                " [...c.children].map((b) => b.getBoundingClientRect().x))"
            )
            assert all(xs == sorted(xs) for xs in left)
            assert driver.execute_script("return document.documentElement.scrollHeight") < 2600
            if number == 1 or NASTY["long"] in texts:
                screenshot(driver, f"hostile-{number}")
            press(driver, "1")
            press(driver, "1")
            number += 1
            if number > 16:
                break
        assert {HOSTILE, NASTY["bidi"], NASTY["long"], NASTY["emoji"], "(nothing was written)"} <= seen
        driver.get(f"{address}/results/{arena.owner()}")
        assert driver.execute_script("return window.hacked") is None
        check_page(driver, "hostile results")
        assert driver.get_log("browser") == []
    store.close()


def test_the_results_follow_what_comes_in(two, judged):
    arena, address = judged
    driver = two[1]
    look(driver, 1280, "light")
    driver.get(f"{address}/results/{arena.owner()}")
    driver.get_log("browser")  # of pages before, whose server has gone
    before = one(driver, ".facts").text
    arena.answer(3, arena.ask_of(3).nonce, {"do": "skip"})
    wait(driver, lambda d: d.find_element("css selector", ".facts").text != before)
    assert driver.get_log("browser") == []
