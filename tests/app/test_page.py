"""What the page answers, without a browser: sentences for people, and nothing for strangers."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from padim_bottle.app.judging import Answer
from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError
from padim_bottle.model.rule import Rule
from padim_bottle.predict.predictor import ImagePrediction

gr = pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[app]"')

from padim_bottle.app import browser as page_module  # noqa: E402
from padim_bottle.app.browser import Desk, build_page, serve  # noqa: E402

HOSTILE = "<img src=x onerror=alert(1)>"


class Stub:
    """A model whose score is the photo's brightest value."""

    name, alpha = HOSTILE, 0.1

    def __init__(self):
        self.asked = 0

    def read(self, path):
        return read_image(path)

    def judge(self, photo):
        self.asked += 1
        rule = Rule(90.0, None, np.arange(1.0, 100.0))
        score, blank = float(photo.max()), np.zeros((4, 4), dtype=np.float32)
        blank[1, 2] = 0.7
        prediction = ImagePrediction(score, score, rule.p_value(score), rule.anomalous(score), blank)
        return Answer(self.name, rule, prediction, photo)


@pytest.fixture
def dark(tmp_path):
    path = tmp_path / "dark.png"
    Image.new("RGB", (80, 60), (20, 20, 20)).save(path)
    return path


def upload(path, name="mine.png"):
    return {"path": str(path), "orig_name": name}


def test_a_drawing_is_judged_on_the_photo_and_a_new_rate_asks_no_model(dark):
    stub = Stub()
    desk = Desk([stub], [dark], dark.parent)
    board, photo, answers = desk.take(upload(dark))
    verdict, heatmap = desk.decide(answers, 0.1)
    assert board.shape == photo.shape == heatmap.shape == (60, 80, 3)
    assert (
        "✓ good" in verdict
        and "region" not in verdict
        and "score <b>20</b>, threshold <b>90</b> at alpha = 0.1" in verdict
    )
    layer = np.zeros((60, 80, 4), dtype=np.uint8)
    layer[:5] = 95, 0, 0, 255
    Image.fromarray(layer).save(dark.parent / "layer.png")
    answers = desk.draw({"background": None, "layers": [upload(dark.parent / "layer.png")], "composite": None}, photo)
    assert "score <b>95</b>" in desk.decide(answers, 0.1)[0]
    for alpha, word in ((0.02, "✓ good"), (0.1, "✗ anomalous"), (0.3, "✗ anomalous"), (0.001, "? no verdict")):
        assert word in desk.decide(answers, alpha)[0]
    # An alarm says where, whatever the rate that made it one.
    (passed, plain), (alarm, outlined) = (desk.decide(answers, alpha) for alpha in (0.02, 0.1))
    assert "region" not in passed and "1 region, the first at" in alarm and (plain != outlined).any()
    assert stub.asked == 2
    assert "✓ good" in desk.decide(desk.draw(None, photo), 0.1)[0]
    assert desk.pick(SimpleNamespace(index=0))[2][0].prediction.score == 20


def test_a_strangers_layers_are_not_decoded_before_they_are_counted_and_measured(dark, monkeypatch):
    desk = Desk([Stub()], [], dark.parent)
    photo = desk.take(upload(dark))[1]
    # Small to send, 150 MB in memory.
    Image.new("1", (7000, 5400)).save(dark.parent / "giant.png")
    Image.new("RGBA", (8, 6)).save(dark.parent / "small.png")
    (dark.parent / "notes.png").write_text("no picture")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for names, words in ((["giant"], "too large"), (["small"] * 5, "5 layers"), (["notes"], "cannot be read")):
        layers = [upload(dark.parent / f"{name}.png") for name in names]
        with pytest.raises(UserError, match=words):
            desk.draw({"background": None, "layers": layers, "composite": None}, photo)
    monkeypatch.undo()
    # Another file of the machine is refused, and what the page does not use is not opened.
    with pytest.raises(UserError, match="no uploaded photo"):
        desk.draw({"layers": [upload("/etc/passwd")]}, photo)
    other = upload(dark.parent / "giant.png")
    answers = desk.draw({"background": other, "layers": [], "composite": other}, photo)
    assert answers[0].prediction.score == 20


def test_what_is_not_there_yet_is_no_error(dark):
    desk = Desk([Stub()], [], dark.parent)
    assert desk.take(None) == desk.wipe(None) == desk.decide([], 0.1) == gr.skip()
    with pytest.raises(UserError, match="There is no photo here"):
        desk.draw({"layers": []}, None)
    for alpha in (None, 0, 7):
        verdict, _ = desk.decide(desk.take(upload(dark))[2], alpha)
        assert "? no verdict" in verdict and "alpha, the false-alarm rate, is a number between 0 and 1." in verdict


def test_names_are_inert(dark):
    desk = Desk([Stub()], [], dark.parent)
    assert "<img" not in desk.decide(desk.take(upload(dark))[2], 0.1)[0]
    dark.write_bytes(b"no picture")
    with pytest.raises(gr.Error) as error:
        page_module._in_words(desk.take)(upload(dark, HOSTILE))
    assert "in none of the formats" in error.value.message and "<img" not in error.value.message
    assert not error.value.print_exception


def test_no_other_file_of_the_machine_can_be_asked_for(dark, tmp_path):
    desk = Desk([Stub()], [], tmp_path / "uploads")
    for path in (dark, tmp_path / "uploads" / ".." / dark.name):
        with pytest.raises(UserError, match="no uploaded photo"):
            desk.take(upload(path))


def test_a_fault_is_told_in_the_terminal_and_not_to_strangers():
    def handler():
        raise ZeroDivisionError("secret")

    with pytest.raises(gr.Error) as error:
        page_module._in_words(handler)()
    assert error.value.message.startswith("This is a fault of the program") and error.value.print_exception


def test_the_page_is_for_this_machine_alone_and_limited(dark, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page = build_page([Stub()], [broken, dark])
    with serve(page) as address:
        assert address.startswith("http://127.0.0.1:") and page.server_name == "127.0.0.1"
        assert page.max_file_size == 30 * 1024**2 and not page.analytics_enabled and not page.share
        assert page._queue.max_size == page_module.MAX_WAITING and not page.show_error
        networks = {fn.concurrency_limit for fn in page.fns.values() if fn.concurrency_id == "network"}
        assert networks == {1}
        with pytest.raises(UserError, match=f"Port {page.server_port} is not to be had"), serve(
            build_page([Stub()], []), page.server_port
        ):  # fmt: skip
            pass
    with pytest.raises(UserError, match="Port 99999 is not to be had"), serve(build_page([Stub()], []), 99999):
        pass


def test_a_tunnel_that_cannot_be_opened_is_said(monkeypatch, tmp_path, capsys):
    def no_network(**_):
        raise RuntimeError

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("gradio.networking.setup_tunnel", no_network)
    with pytest.raises(UserError, match="tunnel cannot be opened"), serve(build_page([Stub()], []), share=True):
        pass
