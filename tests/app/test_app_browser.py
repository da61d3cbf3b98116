"""The app in a real browser: photos in, drawings, verdicts out; phones, the dark, and no network."""

import re
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from padim_bottle.app.judging import load_models
from padim_bottle.app.uploads import find_good_photos
from padim_bottle.data.images import read_image

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[app]"')
expect = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install -e ".[dev]"').expect
# Machines that test are busy.
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def models(run_folder, tmp_path_factory):
    """The small run's model, twice."""
    copy = tmp_path_factory.mktemp("copy") / "copy.ckpt"
    shutil.copy(run_folder / "model.ckpt", copy)
    return load_models([run_folder, copy])


@pytest.fixture(scope="module")
def good(run_folder):
    return find_good_photos([run_folder])


@pytest.fixture(scope="module")
def address(browser, models, good, tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        environment.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("cache")))
        from padim_bottle.app.browser import build_page, serve

        with serve(build_page(models, good)) as address:
            yield address


@pytest.fixture
def open_page(browser, address):
    """Open the app; nothing may be asked of anybody else, and nothing complained about, while it is open."""
    contexts, trouble = [], []

    def complain(message):
        # An upload that is over before its progress is asked after.
        harmless = "upload_progress" in message.location["url"] or message.text == "Response"
        if message.type == "error" and not harmless:
            trouble.append(message.text)

    def open_(width=1100, **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda request: (
                trouble.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else None
            ),
        )
        page.goto(address)
        page.locator("#board canvas").first.wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not trouble


def send(page, path):
    page.locator("#upload input[type=file]").set_input_files(path)


def expect_verdicts(page, models, pixels, alpha):
    """Wait for each model's verdict on a photo."""
    verdicts = page.locator(".verdict")
    expect(verdicts).to_have_count(len(models))
    for shown, model in zip(verdicts.all(), models, strict=True):
        answer = model.judge(pixels)
        verdict = answer.at(alpha)
        threshold = f"threshold {verdict.threshold:.4g} at alpha = {alpha:g}"
        expect(shown).to_contain_text(f"score {answer.prediction.score:.4g}, {threshold}")
        expect(shown).to_contain_text("✗ anomalous" if verdict.anomalous else "✓ good")
        expect(shown).to_contain_text(f"p-value {answer.p_value()}")
        expect(shown).to_contain_text(model.name)


def stroke(page, arrived):
    """Draw a line across the board; again, while the editor is not ready for it, until it has arrived."""
    box = page.locator("#board canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for _ in range(10):
        page.mouse.move(x - 30, y)
        page.mouse.down()
        page.mouse.move(x + 30, y + 10)
        page.mouse.up()
        for _ in range(20):
            if arrived():
                return
            page.wait_for_timeout(100)
    pytest.fail("no drawing has arrived")


def score(page):
    return float(re.search(r"score ([\d.]+)", page.locator(".verdict").first.inner_text())[1])


def test_a_photo_is_judged_by_each_model_at_any_rate(open_page, models, run_folder):
    page = open_page()
    photo = pd.read_csv(run_folder / "predictions.csv").query("label")["image_path"].iloc[0]
    send(page, photo)
    expect_verdicts(page, models, read_image(photo), models[0].alpha)
    expect(page.locator("#upload").get_by_text("Drop Image Here")).to_be_visible()  # ready for the next one

    slider = page.locator("#alpha input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    expect_verdicts(page, models, read_image(photo), round(models[0].alpha + 0.001, 3))
    page.locator("#alpha input[type=number]").fill("0.002")
    for verdict in page.locator(".verdict").all():
        expect(verdict).to_contain_text("? no verdict")
        expect(verdict).to_contain_text("alpha = 0.002 is less than 1 / (N + 1)")
    page.locator("#alpha input[type=number]").fill("0.4")
    expect_verdicts(page, models, read_image(photo), 0.4)


def test_alpha_may_be_moved_while_a_model_is_asked(open_page, models, good, monkeypatch):
    page, asked, answered = open_page(), threading.Event(), threading.Event()
    send(page, good[0])
    expect_verdicts(page, models, read_image(good[0]), models[0].alpha)
    clean, predict = read_image(good[0]), models[0].predictor.predict

    def wait(photos):
        # The photo as laid on the board is judged once more, sooner or later.
        if not np.array_equal(photos[0], clean):
            asked.set()
            assert answered.wait(60)
        return predict(photos)

    monkeypatch.setattr(models[0].predictor, "predict", wait)
    stroke(page, asked.is_set)
    page.locator("#alpha input[type=number]").fill("0.4")
    verdict = page.locator(".verdict").first
    expect(verdict).to_contain_text("at alpha = 0.4")
    page.evaluate("""() => {
        window.shown = [];
        const look = () => shown.push(document.querySelector(".verdict").innerText.match(/alpha = (\\S+)/)[1]);
        new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
    }""")
    old = score(page)
    answered.set()
    expect(verdict).not_to_contain_text(f"score {old:.4g},")
    assert set(page.evaluate("shown")) == {"0.4"}


def test_a_drawing_on_a_good_photo_changes_the_answer(open_page, models, good):
    page = open_page()
    expect(page.locator("#gallery img")).to_have_count(len(good))
    page.locator("#gallery button").nth(1).click()
    expect_verdicts(page, models, read_image(good[1]), models[0].alpha)
    expect(page.get_by_label("Brush Size")).to_be_visible()
    clean = score(page)
    stroke(page, lambda: score(page) != clean)
    expect(page.locator(".verdict").first).to_contain_text("✗ anomalous")
    assert score(page) > clean
    page.get_by_label("Clear canvas").click()
    expect_verdicts(page, models, read_image(good[1]), models[0].alpha)


def test_what_cannot_be_judged_is_answered_by_a_sentence(open_page, models, good, tmp_path):
    page = open_page()
    (tmp_path / "cut.png").write_bytes(good[0].read_bytes()[:2000])
    (tmp_path / "notes.png").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "giant.png")
    (tmp_path / "heavy.png").write_bytes(bytes(31 * 1024**2))
    for name, sentence in {
        "cut.png": "Cannot decode the image cut.png: image file is truncated",
        "notes.png": "Cannot decode the image notes.png: it is in none of the formats",
        "giant.png": "giant.png has more than 50 million pixels, too many here: make it smaller.",
        "heavy.png": "exceed the maximum allowed size of 30.0 Mb",
    }.items():
        send(page, tmp_path / name)
        expect(page.get_by_text(sentence)).to_be_visible()
        expect(page.locator("#upload").get_by_text("Drop Image Here")).to_be_visible()
    expect(page.locator(".verdict")).to_have_count(0)
    send(page, good[0])
    expect_verdicts(page, models, read_image(good[0]), models[0].alpha)


def test_a_phone_is_wide_enough_in_the_light_and_in_the_dark(open_page, models, good):
    for scheme in ("light", "dark"):
        page = open_page(width=390, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1] + 300) if scheme == "dark" else (brightness[1] > brightness[0] + 300)
    page.locator("#gallery button").first.click()
    expect_verdicts(page, models, read_image(good[0]), models[0].alpha)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
