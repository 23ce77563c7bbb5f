"""The page in a real browser, from file://, with real pointer and keys. Skipped where there is no Chromium (chromium.py)."""

import re

import pytest
from chromium import SLOW, browser  # noqa: F401

import minivl
from minivl.processing.messages import user
from minivl.report.html_page import page_of_run, write_page
from minivl.tiny import scene

QUESTION = "<img src=x onerror=\"document.title='broken'\"></script> Describe this image."


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "run.html"
    messages = user(QUESTION, scene(5, size=(336, 448), count=3).image)
    write_page(page_of_run(minivl.load(), messages, causes=60, max_new_tokens=8)[0], path)
    return path


@pytest.fixture
def tab(browser, file):  # noqa: F811
    """The page, light, 1280 pixels wide. Nothing may be said on the console, nothing asked of a network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    tab, said, asked = context.new_page(), [], []
    tab.set_default_timeout(SLOW)
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    yield tab
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    context.close()


def pixels(tab):
    """What the heat map shows."""
    return tab.evaluate("document.querySelector('.view canvas').toDataURL()")


def pressed(tab):
    return tab.locator("[data-word][aria-pressed=true]").get_attribute("data-word")


def test_nothing_of_the_question_runs(tab):
    assert tab.title().endswith("minivl") and tab.locator("#question").inner_text() == QUESTION
    assert tab.locator("html").get_attribute("lang") == "en"


def test_pointing_at_a_word_shows_where_it_looked(tab):
    first, heading = pixels(tab), tab.locator("#looked").inner_text()
    tab.hover("[data-word='2']")
    second = pixels(tab)
    assert second != first and tab.locator("#looked").inner_text() != heading and pressed(tab) == "2"
    tab.hover("h1")
    assert pixels(tab) == first and pressed(tab) == "0"  # only pointed at
    tab.click("[data-word='2']")
    tab.hover("h1")
    assert pixels(tab) == second and pressed(tab) == "2"  # kept


def test_keys_choose_word_layer_and_head(tab):
    tab.keyboard.press("ArrowRight")  # from anywhere
    tab.keyboard.press("ArrowRight")
    assert pressed(tab) == "2" and tab.evaluate("document.activeElement.dataset.word") == "2"
    seen = {pixels(tab)}
    for _ in range(3):
        tab.keyboard.press("]")
    assert tab.locator("#layer").input_value() == "3" and "layer 2" in tab.locator("#readout").inner_text()
    seen.add(pixels(tab))
    tab.keyboard.press("}")
    assert tab.locator("#head").input_value() == "1" and "head 0" in tab.locator("#readout").inner_text()
    seen.add(pixels(tab))
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("End")
    last = tab.locator("[data-word]").count() - 1
    assert tab.locator("#layer").input_value() == "2" and pressed(tab) == str(last) and last > 2
    assert len(seen) == 3
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is seen


def test_tab_goes_through_the_controls_in_order(tab):
    ids = []
    for _ in range(10):
        tab.keyboard.press("Tab")
        name = "(e => e.id || (e.dataset.word && 'word') || e.dataset.tab || e.tagName)(document.activeElement)"
        ids.append(tab.evaluate(name))
    assert ids == ["projector", "theme", "word", "attention", "layer", "head", "heat", "grid", "windows", "scale"]


def test_layer_and_head_by_menu_and_by_matrix(tab):
    before = pixels(tab)
    tab.select_option("#layer", "4")
    tab.select_option("#head", "3")
    chosen = pixels(tab)
    tab.select_option("#layer", "0")
    tab.click("#matrix [data-layer='4'][data-head='3']")
    assert pixels(tab) == chosen != before and tab.locator("#layer").input_value() == "4"


def test_switches_and_the_cells_of_the_picture(tab):
    assert tab.locator(".view.hot").count() == 0 and tab.locator(".strongest").count() == 0
    tab.check("#heat")
    assert tab.locator(".view.hot").count() == 1 and tab.locator(".strongest").count() == 1
    tab.uncheck("#heat")
    assert tab.locator(".view.hot").count() == 0
    tab.check("#windows")
    tab.check("#grid")
    assert tab.locator(".view svg text").count() == 12 and tab.locator(".view svg path").count() == 2
    tab.focus(".view svg")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert tab.locator(".cursor").get_attribute("data-cell") == "14"
    assert tab.locator("#readout").inner_text().startswith("token 14 (row 1, column 1, window 0)")
    box = tab.locator(".view svg").bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    assert tab.locator("#readout").inner_text().startswith("token 129 (row 9, column 12, window 11)")


def test_light_and_dark(tab):
    def ground():
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    tab.click("#theme")
    dark = ground()
    assert light != dark and tab.locator("#theme").inner_text() == "Light"
    tab.click("#theme")
    assert ground() == light
    tab.evaluate("delete document.documentElement.dataset.theme")
    tab.emulate_media(color_scheme="dark")
    assert ground() == dark and contrast(tab)[0] >= 4.5, contrast(tab)
    tab.emulate_media(color_scheme="light")
    assert contrast(tab)[0] >= 4.5, contrast(tab)


def contrast(tab):
    """(the least of all words on what lies behind them, as in WCAG 2, and where); tinted cells are read with their tint."""
    return tab.evaluate("""() => {
        const square = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
        const pen = square.getContext('2d', {willReadFrequently: true});
        const luminance = (colours) => {
            pen.clearRect(0, 0, 1, 1);
            for (const one of colours) { pen.fillStyle = one; pen.fillRect(0, 0, 1, 1); }
            const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        let least = [21, ''];
        for (const node of document.querySelectorAll('body *:not(svg *):not(script):not(style):not(noscript)')) {
            const own = [...node.childNodes].some(one => one.nodeType === 3 && one.textContent.trim());
            if (!own || !node.offsetParent) continue;
            const behind = [];
            for (let up = node; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
            const [a, b] = [luminance(behind), luminance([...behind, getComputedStyle(node).color])];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < least[0]) least = [ratio, node.outerHTML];
        }
        return least;
    }""")


def test_the_table_is_filtered_sorted_and_explained(tab):
    rows = tab.locator("#table tbody tr")
    assert not rows.first.is_visible()  # folded at first
    tab.click("#fold > summary")
    tab.fill("#filter", "blocks.1. MLP")
    names = rows.locator("td:first-child").all_inner_texts()
    assert names == [f"visual.blocks.1.mlp.{one}" for one in ("gate_proj", "up_proj", "act", "down_proj")]
    assert tab.locator("#count").inner_text().startswith("4 of ")
    tab.click("[data-column='4']")
    largest = [float(cell) for cell in rows.locator("td:nth-child(5)").all_inner_texts()]
    assert largest == sorted(largest, reverse=True) and tab.locator("th[aria-sort=descending]").inner_text().startswith(
        "max"
    )
    tab.click("#table tbody button >> nth=0")
    assert len(tab.locator(".told").inner_text()) > 60
    tab.click("#table tbody button >> nth=0")
    assert tab.locator(".told").count() == 0
    tab.fill("#filter", "")
    assert rows.count() == 100
    total = int(re.findall(r"\d+", tab.locator("#count").inner_text().replace(",", ""))[-1])
    assert total > 150
    tab.click("#more")
    assert rows.count() == min(500, total)
    tab.focus("#filter")
    tab.keyboard.press("]")
    assert tab.locator("#layer").input_value() == "0"  # typed, not a shortcut


def test_the_bar_of_parts_is_as_long_as_the_run(tab):
    widths = tab.evaluate("[...document.querySelectorAll('#parts i')].map(part => part.getBoundingClientRect().width)")
    assert len(widths) == 4 and sum(widths) > 0.98 * tab.locator("#parts").bounding_box()["width"]


def test_the_picture_keeps_its_colours(tab):
    """At first nothing is drawn on it; with attention, the middle of each token's square stays free, and 0 % has no frame."""
    free = """() => {
        const shown = document.querySelector('.view canvas'), {width, height} = shown;
        const canvas = Object.assign(document.createElement('canvas'), {width, height});
        const pen = canvas.getContext('2d', {willReadFrequently: true});
        pen.drawImage(shown, 0, 0);
        const size = canvas.width / data.pictures[0].columns, middle = Math.floor(size / 2);
        const alpha = (c, r, x, y) => pen.getImageData(c * size + x, r * size + y, 1, 1).data[3];
        let inside = 0, frames = 0;
        for (let c = 0; c < data.pictures[0].columns; c++)
            for (let r = 0; r < data.pictures[0].rows; r++) {
                inside = Math.max(inside, alpha(c, r, middle, middle));
                frames += alpha(c, r, 1, 1) > 0;
            }
        return [inside, frames];
    }"""
    opacity = "getComputedStyle(document.querySelector('.view canvas')).opacity"
    assert tab.evaluate(opacity) == "0" and tab.locator(".view svg > *").count() == 0
    tab.keyboard.press("]")
    assert (
        tab.locator("#heat").is_checked()
        and tab.evaluate("getComputedStyle(document.querySelector('.view img')).filter") == "none"
    )
    inside, frames = tab.evaluate(free)
    assert inside == 0 and frames > 0
    fixed = pixels(tab)
    tab.select_option("#scale", "own")
    assert pixels(tab) != fixed and tab.evaluate(free)[0] == 0
    tab.select_option("#scale", "fixed")
    silent = tab.evaluate("maps.shares.findIndex((share) => share < 1e-4)")
    assert silent >= 0
    layers, heads = tab.evaluate("[maps.layers.length, maps.heads.length]")
    tab.evaluate(f"pin({silent // (layers * heads)}); choose({silent // heads % layers}, {silent % heads})")
    assert tab.evaluate(free) == [0, 0] and tab.locator(".strongest").count() == 0


def test_a_projector_shows_large_letters(tab):
    tab.set_viewport_size({"width": 1920, "height": 1080})
    small = tab.locator("#best .word").first.bounding_box()["height"]
    tab.click("#projector")
    assert tab.locator("#best .word").first.bounding_box()["height"] > 1.4 * small
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1920 and not tab.locator(".hint").is_visible()
    tab.click("#projector")
    assert tab.locator("#best .word").first.bounding_box()["height"] == small


def test_two_pictures_and_none(browser, tmp_path):  # noqa: F811
    """Each run of image tokens says its own share; what is about images goes where there are none."""
    vlm, page = minivl.load(), browser.new_page()
    for pictures in ([scene(5).image, scene(7, size=(196, 308)).image], []):
        messages = user("How many circles?", pictures)
        write_page(page_of_run(vlm, messages, causes=0, max_new_tokens=1)[0], tmp_path / "a.html")
        page.goto((tmp_path / "a.html").as_uri())
        if pictures:
            page.check("#heat")
        words = page.locator("#prompt .picture").all_inner_texts()
        shares = [float(one.split(": ")[1].split()[0]) for one in words]
        text = page.locator("#readout").inner_text()
        assert len(shares) == len(pictures) and page.locator("#legend").is_visible() == bool(pictures)
        assert page.locator("#switches").is_visible() == page.locator("#matrix").is_visible() == bool(pictures)
        if pictures:
            whole = float(text.split(": ")[1].split(" %")[0])
            assert shares[0] != shares[1] and abs(sum(shares) - whole) < 1.1 and "on the images" in text
        else:
            assert "no image" in text
    page.close()


def test_a_stage_opens(tab):
    stage = tab.locator("details", has_text="visual.window_index").first
    assert not stage.locator("p").first.is_visible()
    stage.locator("summary").click()
    assert stage.locator("p").first.is_visible() and "window" in stage.locator("p").first.inner_text()


def test_the_tab_of_causes(tab):
    """Heads in the matrix and squares on the image: what is lost is that of the run, and the sentence says both numbers."""
    tab.click("[data-word='1']")
    tab.click("[data-tab=causes]")
    assert tab.locator("#layer").is_hidden() and "depends on" in tab.locator("#looked").inner_text()
    assert "runs of the decoder, each with one change" in tab.locator("#measured").inner_text()
    layers, heads, words = tab.evaluate("[causes.layers, causes.heads, data.tokens.length]")
    assert tab.locator("#matrix button").count() == layers * heads
    tab.click("#matrix [data-layer='1'][data-head='0']")
    before, after = tab.evaluate(f"[causes.before[1], causes.bytes[{heads} * {words} + 1] / 255]")
    said = tab.locator("#readout").inner_text()
    name = "head 0 of layer 1" if heads > 1 else "the attention of layer 1"
    assert said.startswith(f"Without {name}: ")
    assert all(tab.evaluate(f"percent({chance})") in said for chance in (before, after))
    tab.hover(".view svg", position={"x": 3, "y": 3})
    assert tab.locator("#readout").inner_text().startswith("Without the ") and "row 0, column 0" in said_now(tab)
    tab.keyboard.press("ArrowRight")
    tab.click("[data-tab=causes]")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("[data-tab=tower]").get_attribute("aria-selected") == "true"
    tab.keyboard.press("Home")
    assert tab.locator("[data-tab=attention]").get_attribute("aria-selected") == "true"


def said_now(tab):
    return tab.locator("#readout").inner_text()


def test_the_tab_of_the_tower(tab):
    """A square attends to its window in windowed blocks and to the whole frame in full ones; shares add up to 1."""
    tab.click("[data-tab=tower]")
    assert "receives" in said_now(tab) and tab.locator("#heads").is_hidden() and tab.locator("#scale").is_hidden()
    tab.hover(".view svg", position={"x": 3, "y": 3})
    assert "its window" in said_now(tab)
    shares = "towerValues(0, VIEWS.tower().fine, cursor)"
    for block, inside in ((0, True), (1, False)):
        tab.evaluate(f"state.block = {block}")
        total, outside = tab.evaluate(
            f"""(() => {{ const fine = VIEWS.tower().fine, window = data.pictures[0].window, values = {shares};
                const other = values.filter((_, c) => window[tokenOfCell(0, c, fine)] !== window[0]);
                return [sum(values), sum(other)]; }})()"""
        )
        assert abs(total - 1) < 0.1 and (outside == 0) == inside
    tab.click(".view svg", position={"x": 3, "y": 3})
    tab.hover("h1")
    assert "row 0, column 0" in said_now(tab) and tab.locator(".query").count() == 1
    tab.select_option("#block", "0")
    assert "visual.blocks.0" in said_now(tab)


def test_the_strip_follows_a_pixel(tab):
    box = tab.locator(".view svg").bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 0.99, box["y"] + box["height"] * 0.99)
    texts = tab.locator("#stations p").all_inner_texts()
    width, height = tab.evaluate("[data.pictures[0].width, data.pictures[0].height]")
    x, y = map(int, texts[0].split(" of ")[0].removeprefix("x ").split(", y "))
    assert abs(x - width * 0.99) < 4 and abs(y - height * 0.99) < 4
    last = tab.evaluate("data.pictures[0].prompt + data.pictures[0].slots.length - 1")
    assert texts[2].startswith("Window 11: ") and f"place {last} of the prompt" in texts[3]
    assert "hiding the token measures" in texts[4] and "with it" in tab.locator("#stations .bars").inner_text()
    tab.click("#after")
    tab.click("#after")
    assert tab.locator("#stations .on b").inner_text() == "2 patch"
    tab.click("#before")
    assert tab.locator("#stations .on b").inner_text() == "1 pixel"
    tab.click("#play")
    tab.locator("#stations .on b", has_text="3 window").wait_for()
    tab.click("#play")
    assert tab.locator("#stations .on").count() == 0 and tab.locator("#play").inner_text() == "Play"


def test_without_motion_the_strip_stands_still(tab):
    tab.emulate_media(reduced_motion="reduce")
    assert tab.locator("#play").is_hidden()
    tab.click("#after")
    assert tab.evaluate("getComputedStyle(document.getElementById('ball')).transitionProperty") == "none"
    assert tab.locator("#stations .on").count() == 1


@pytest.mark.parametrize("tab_name", ["causes", "tower"])
def test_contrast_of_the_tabs(tab, tab_name):
    tab.click(f"[data-tab={tab_name}]")
    for scheme in ("dark", "light"):
        tab.emulate_media(color_scheme=scheme)
        assert contrast(tab)[0] >= 4.5, contrast(tab)


def test_two_runs_choose_together(browser, file, tmp_path):  # noqa: F811
    """Token, tab and colours of one run are those of the other, as far as it has them; frames are as high as their pages."""
    vlm, path = minivl.load(), tmp_path / "both.html"
    messages = user("How many shapes are there?", scene(2, size=(112, 140)).image)
    write_page(page_of_run(vlm, messages, causes=0, beside=file, max_new_tokens=2)[0], path)
    page, said = browser.new_page(viewport={"width": 1600, "height": 900}, color_scheme="light"), []
    page.set_default_timeout(SLOW)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    first, second = (frame.content_frame for frame in page.locator("iframe").all())
    assert second.locator("#question").inner_text() == QUESTION
    last = second.locator("[data-word]").count() - 1  # the other run has two tokens
    assert last > 1
    second.locator(f"[data-word='{last}']").click()
    second.locator("[data-tab=tower]").click()
    first.locator("[data-tab=tower][aria-selected=true]").wait_for()
    assert first.locator("[data-word='1']").get_attribute("aria-pressed") == "true"  # the last that it has
    assert second.locator(f"[data-word='{last}']").get_attribute("aria-pressed") == "true"
    first.locator("#theme").click()
    second.locator("html[data-theme=dark]").wait_for()
    first.locator("[data-tab=attention]").click()
    second.locator("[data-tab=attention][aria-selected=true]").wait_for()
    for frame, element in zip((first, second), page.locator("iframe").all()):
        height = frame.locator("body").evaluate("body => body.offsetHeight")
        assert abs(element.bounding_box()["height"] - height) < 4 and height > 1000
    assert page.evaluate("document.documentElement.scrollWidth") <= 1600 and said == []
    page.close()


@pytest.mark.parametrize("width", [400, 768, 1280])
def test_it_fits_the_screen(tab, width):
    """Nothing makes the page scroll sideways, and the image is on it whole."""
    tab.set_viewport_size({"width": width, "height": 800})
    wide = tab.evaluate("document.documentElement.scrollWidth")
    box = tab.locator(".view").bounding_box()
    assert wide <= width and box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 250
