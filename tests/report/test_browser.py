"""report.html in a real browser: what the slider counts, what the filters show, keyboard, narrow screens."""

import re

import numpy as np
import pytest
from recorded_runs import add_training_photos, without_test_images, write_run

from padim_bottle.compare.comparison import Comparison
from padim_bottle.compare.seeds_page import write_sweep_report
from padim_bottle.report.reference_thresholds import reference_thresholds
from padim_bottle.report.run_report import write_report
from padim_bottle.runs.run import Run

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)>"
TYPES = {"good": 8, "broken_large": 5, "contamination": 6, HOSTILE: 2}
COUNTS = ("true_negative", "false_positive", "false_negative", "true_positive")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("results") / "an_experiment" / "seed_0", TYPES)
    write_report(folder)
    return Run.read(folder)


@pytest.fixture
def open_page(browser):
    """Open a page; nothing may be complained about, asked for or popped up while it is open."""
    contexts, trouble = [], []

    def open_(folder, width=1100, **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
        page.goto((folder / "report.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not trouble


def shown_counts(page):
    return {name: int(page.locator(f"#{name}").inner_text()) for name in COUNTS}


def threshold_of(page):
    """The threshold in use, with every digit."""
    return float(page.locator("#value").get_attribute("data-exactly"))


def cards(page):
    """Titles of the cards that can be seen, in their order."""
    return [card.locator("b").inner_text() for card in page.locator(".card").all() if card.is_visible()]


def check_all(page, run):
    """Everything that depends on the threshold, against Python."""
    threshold = threshold_of(page)
    counts = run.counts(threshold)
    assert shown_counts(page) == counts
    tn, fp, fn, tp = (counts[name] for name in COUNTS)

    rates = {
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "f1": (2 * tp, (2 * tp + fp + fn) if tp + fn else 0),
        "false_alarm_rate": (fp, fp + tn),
    }
    for name, (part, whole) in rates.items():
        text = page.locator(f"#{name}").inner_text()
        assert (text == "–") == (whole == 0), name
        assert not whole or abs(float(text) - part / whole) <= 5.001e-4, name
    called = run.predictions["score"] >= threshold
    for name in run.defects:
        of_type = run.predictions["defect_type"] == name
        cell = page.locator(f"[data-type={name!r}]")
        assert cell.inner_text() == f"{(called & of_type).sum()} of {of_type.sum()}"
    words = {(True, True): "found", (True, False): "missed", (False, True): "false alarm", (False, False): "passed"}
    expected = {
        f"{row.defect_type}/{row.image}": words[bool(row.label), bool(row.score >= threshold)]
        for row in run.predictions.itertuples()
    }
    shown = page.locator(".card").evaluate_all(
        "cards => cards.map(card => [card.querySelector('b').textContent, card.querySelector('.verdict').textContent])"
    )
    assert dict(shown) == expected


def test_the_slider_counts_as_python_does(open_page, run):
    page = open_page(run.folder)
    assert threshold_of(page) == run.threshold
    check_all(page, run)
    slider = page.locator("#slider")
    low, high = (float(slider.get_attribute(name)) for name in ("min", "max"))
    for share in (0, 0.13, 0.31, 0.5, 0.77, 1):
        slider.evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
            low + share * (high - low),
        )
        check_all(page, run)
    assert shown_counts(page)["true_positive"] == 0, "at the right end nothing is called anomalous"


def test_buttons_jump_to_the_exact_thresholds(open_page, run):
    page = open_page(run.folder)
    references = reference_thresholds(run)[0]
    buttons = page.locator("button[data-threshold]").all()
    assert len(buttons) == len(references) == 4
    for button, reference in zip(buttons, references, strict=True):
        assert reference.name in button.inner_text()
        button.click()
        assert threshold_of(page) == reference.value
        assert button.get_attribute("aria-pressed") == "true"
        check_all(page, run)
    # F1Max and anomalib's: the same number, another rule, one image between them.
    assert run.counts(references[2].value) != run.counts(references[3].value)


def test_steps_go_from_image_to_image(open_page, run):
    page = open_page(run.folder)
    scores = np.unique(run.predictions["score"])
    below, above = scores[scores < run.threshold], scores[scores >= run.threshold]
    page.locator("#more").click()
    assert threshold_of(page) == below[-1]
    check_all(page, run)
    page.locator("#fewer").click()
    page.locator("#fewer").click()
    assert threshold_of(page) == above[1]
    for _ in above:
        page.locator("#fewer").click()
    assert shown_counts(page)["true_positive"] == shown_counts(page)["false_positive"] == 0
    for _ in range(len(scores) + 1):
        page.locator("#more").click()
    assert threshold_of(page) == scores[0]


def test_filters_show_exactly_the_right_cards(open_page, run):
    page = open_page(run.folder)
    table = run.predictions[::-1]
    titles = (table["defect_type"] + "/" + table["image"]).to_numpy()
    assert cards(page) == list(titles)
    for name in ["all", *sorted(TYPES)]:
        page.locator("#filters label", has_text=re.compile(rf"^{re.escape(name)} \d+$")).click()
        chosen = table["defect_type"].to_numpy() == name if name != "all" else np.ones(len(table), dtype=bool)
        assert cards(page) == list(titles[chosen])
        assert page.locator("#shown").inner_text() == f"{chosen.sum()} of {len(table)} images"
        for verdict, wanted in {"found": (1, 1), "missed": (1, 0), "false alarm": (0, 1), "passed": (0, 0)}.items():
            page.locator("#verdict").select_option(verdict)
            called = (table["score"] >= run.threshold).to_numpy()
            both = chosen & (table["label"].to_numpy() == wanted[0]) & (called == wanted[1])
            assert cards(page) == list(titles[both])
        page.locator("#verdict").select_option("")
    page.locator("#filters label", has_text=re.compile(r"^all")).click()
    page.locator("#order").select_option("up")
    assert cards(page) == list(titles[::-1])
    # They follow the threshold.
    page.locator("#verdict").select_option("missed")
    before = len(cards(page))
    for _ in range(6):
        page.locator("#fewer").click()
    missed = run.counts(threshold_of(page))["false_negative"]
    assert len(cards(page)) == missed > before


def test_the_keyboard_is_enough(open_page, run):
    page = open_page(run.folder)
    focused = "document.activeElement.id || document.activeElement.tagName"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "slider":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert page.evaluate(focused) == "slider" and outline != "none"
    before = threshold_of(page)
    page.keyboard.press("ArrowRight")
    assert threshold_of(page) > before
    check_all(page, run)
    page.keyboard.press("Home")
    assert shown_counts(page)["false_negative"] == 0
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first known threshold
    assert threshold_of(page) == reference_thresholds(run)[0][0].value
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "type":
            break
    page.keyboard.press("ArrowRight")
    assert len(cards(page)) < len(run.predictions)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(scheme, open_page, run):
    page = open_page(run.folder, width=360, color_scheme=scheme)
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1] + 300) if scheme == "dark" else (brightness[1] > brightness[0] + 300)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("label", has_text="large pictures").click()


def test_every_picture_is_drawn_and_a_hostile_name_is_inert(open_page, run):
    page = open_page(run.folder)
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == len(run.predictions) + 8 and min(widths) > 300
    assert page.locator("b", has_text=f"{HOSTILE}/").count() == TYPES[HOSTILE]
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("arguments", [{"types": {"good": 3}, "training": 0}, {"training": 0}, {"types": {"crack": 2}}])
def test_runs_without_thresholds_defects_or_goods_have_a_slider_too(arguments, open_page, tmp_path, monkeypatch):
    monkeypatch.setattr("padim_bottle.report.gallery.FIGURES", {})  # for the sake of time
    folder = write_run(tmp_path / "seed_0", pictures=False, **arguments)
    write_report(folder)
    run = Run.read(folder)
    page = open_page(folder)
    check_all(page, run)
    page.locator("#more").click()
    check_all(page, run)


@pytest.mark.parametrize("tested", [True, False])
def test_training_photos_are_shown_on_a_phone_too(tested, open_page, tmp_path):
    folder = add_training_photos(write_run(tmp_path / "seed_0"), copies=[["a.png", "b.png", "near"]], parts=True)
    write_report(folder if tested else without_test_images(folder))
    page = open_page(folder, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    first = page.locator("main section").first.get_attribute("id")
    assert first == ("threshold" if tested else "training")
    page.locator("nav").get_by_role("link", name="Training photos").click()
    assert page.locator("#training .card img").count() == 15
    assert page.locator("#training").get_by_text("a.png and b.png (near)").is_visible()


def test_a_sweeps_report_leads_to_its_runs(open_page, run):
    experiment = run.folder.parent
    write_sweep_report(Comparison([experiment]), experiment)
    page = open_page(experiment, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("link", name="seed 0").click()
    assert page.locator("h1").inner_text().startswith("an_experiment")
