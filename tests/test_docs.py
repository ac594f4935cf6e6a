"""The page of the papers beside the code: that it is up to date, and how it works in a browser."""

import ast
import itertools
import re
import shutil

import pytest

from tests.conftest import ROOT

pygments = pytest.importorskip("pygments")

from benchmarks import page  # noqa: E402

PAGE = ROOT / "docs" / "index.html"
SIZES = [(1280, 800), (390, 844)]


def test_page_is_what_page_py_writes():
    pinned = (ROOT / "benchmarks" / "requirements.txt").read_text()
    if f"pygments=={pygments.__version__}\n" not in pinned:
        pytest.skip("another version of Pygments may colour the code otherwise")
    assert page.html() == PAGE.read_text(), "run python benchmarks/page.py"


@pytest.mark.parametrize("script", page.SCRIPTS)
def test_every_line_of_an_algorithm_has_its_code(script):
    text = (ROOT / f"{script}.py").read_text()
    _, block, after, *_ = ast.get_docstring(ast.parse(text), clean=False).split("\n\n")
    found = page.pairs(script)
    rmsprop = [after] if after.startswith("and RMSProp") else []
    assert [line for line, _ in found] == block.splitlines() + rmsprop
    docstring, harness = text.rindex('"""', 0, text.index("\nimport ")), text.index("# The harness")
    first, last = text.count("\n", 0, docstring) + 2, text.count("\n", 0, harness) - 1
    lines = text.splitlines()
    for _, code in found:
        assert code and first < min(code) and max(code) < last
        assert [lines[number - 1].strip() for number in code] == list(code.values())


@pytest.mark.parametrize(
    "old, new",
    [
        ("a3c_cartpole,R ← r_i + γ R,returns[i] = R =\n", ""),  # a line without code
        ("returns[i] = R =", "returns[j] = R ="),  # code that is not there
        ("returns[i] = R =", "return"),  # code that begins several lines
        ("R ← r_i", "R ← r_j"),  # a line that is not there
    ],
)
def test_a_wrong_algorithm_csv_is_an_error(tmp_path, monkeypatch, old, new):
    table = (ROOT / "benchmarks" / "algorithm.csv").read_text()
    assert table.count(old) == 1
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "algorithm.csv").write_text(table.replace(old, new))
    shutil.copy(ROOT / "a3c_cartpole.py", tmp_path)
    monkeypatch.setattr(page, "ROOT", tmp_path)
    with pytest.raises((AssertionError, ValueError)):
        page.pairs("a3c_cartpole")


def test_text_has_the_contrast_of_wcag_aa():
    def luminance(colour):
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", PAGE.read_text())
    backgrounds = [colours for name, *colours in found if name in ("page", "code", "mark")]
    texts = [colours for name, *colours in found if name not in ("page", "code", "mark", "rule")]
    assert (len(backgrounds), len(texts)) == (3, 8)
    for pair in itertools.product(texts, backgrounds):
        for colours in zip(*pair):  # light, dark
            low, high = sorted(map(luminance, colours))
            assert (high + 0.05) / (low + 0.05) >= 4.5, colours


# --- In Chromium


@pytest.fixture
def browser(tmp_path):
    """A browser without a window, which does not scroll smoothly; its console must stay empty."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("there is no Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-component-update "
    flags += f"--disable-background-networking --disable-sync --user-data-dir={tmp_path / 'user'}"
    for flag in flags.split():
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    log = browser.get_log("browser")
    browser.quit()
    assert log == []


def open_page(browser, size, fragment="", scheme="light"):
    """Open the page from disk, anew, in a window of some size."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("about:blank")
    browser.get(f"{PAGE.as_uri()}{fragment}")


def marked(browser):
    """Return the texts of the marked lines: of the algorithm, and of the code, in view or not."""
    return browser.execute_script("""
        const seen = (a) => {
          const { left, top, height } = a.getBoundingClientRect();
          return a.contains(document.elementFromPoint(Math.max(left, 0) + 1, top + height / 2));
        };
        return ["li", "code"].map((side) =>
          [...document.querySelectorAll(side + " [aria-current=true]")]
            .map((a) => [a.textContent.trim(), seen(a)]));
    """)


def check(browser, script, line):
    """Check that a line of the algorithm and its code are marked, and nothing else; that it and the
    first line of its code are in view; and that the script and the address are right."""
    name, (text, code) = script.partition("_")[0], page.pairs(script)[line - 1]
    algorithm, found = marked(browser)
    assert algorithm == [[text.strip(), True]]
    assert sorted(text for text, _ in found) == sorted(code.values())
    assert [next(iter(code.values())), True] in found
    assert browser.execute_script("return location.hash") == f"#{name}-{line}"
    (tab,) = browser.find_elements("css selector", "nav [aria-current=page]")
    shown = [caption.text for caption in browser.find_elements("tag name", "figcaption")]
    assert (tab.text, "".join(shown)) == (name.upper(), f"{script}.py")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_browser_marks_the_partner_of_each_line(browser, size):
    for script in page.SCRIPTS:
        name = script.partition("_")[0]
        open_page(browser, size)
        browser.find_element("css selector", f'nav a[href="#{name}"]').click()
        for line in range(1, len(page.pairs(script)) + 1):
            browser.find_element("css selector", f'li a[href="#{name}-{line}"]').click()
            check(browser, script, line)
    wide = "return document.documentElement.scrollWidth > innerWidth"
    assert not browser.execute_script(wide)
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_browser_marks_the_line_of_the_code_chosen(browser, size):
    open_page(browser, size)
    browser.find_element("partial link text", "critic_loss = F.mse_loss(q, y)").click()
    check(browser, "ddpg_continuous", 10)
    open_page(browser, size, "#a3c")
    shared = browser.find_element("partial link text", "while not ended and len(rewards)")
    for line in (4, 8, 4):  # repeat, until
        shared.click()
        check(browser, "a3c_cartpole", line)


@pytest.mark.slow
def test_browser_takes_the_keyboard_and_links(browser):
    from selenium.webdriver.common.keys import Keys

    def press(key):
        browser.switch_to.active_element.send_keys(key)

    open_page(browser, SIZES[0])
    for _ in range(5):  # three scripts, the paper, the first line
        press(Keys.TAB)
    press(Keys.ENTER)
    check(browser, "ddpg_continuous", 1)
    for line, key in [(2, Keys.DOWN), (3, Keys.DOWN), (2, Keys.UP), (1, Keys.UP), (1, Keys.UP)]:
        press(key)
        check(browser, "ddpg_continuous", line)
    open_page(browser, SIZES[0], "#a3c-12")
    check(browser, "a3c_cartpole", 12)
    press(Keys.DOWN)
    check(browser, "a3c_cartpole", 13)
    browser.execute_script("document.querySelector('section:not([hidden]) pre').scrollTop = 0")
    press(Keys.ENTER)  # the same line once more
    check(browser, "a3c_cartpole", 13)
    open_page(browser, SIZES[0])
    press(Keys.DOWN)
    check(browser, "ddpg_continuous", 1)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_browser_takes_screenshots(browser, tmp_path, size, scheme):
    open_page(browser, size, "#ddpg-9", scheme)
    check(browser, "ddpg_continuous", 9)
    path = tmp_path / f"{size[0]}x{size[1]} {scheme}.png"
    assert browser.save_screenshot(str(path))
    width_and_height = path.read_bytes()[16:24]
    assert width_and_height == size[0].to_bytes(4) + size[1].to_bytes(4)
