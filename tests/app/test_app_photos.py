"""Photos of the app: what is refused, where good ones are found, and what is drawn."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from padim_bottle.app import uploads
from padim_bottle.app.uploads import draw_over, find_good_photos, read_upload, shrink
from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError


def photo(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def test_an_upload_is_read_as_predict_reads_it(tmp_path):
    path = save(tmp_path / "a.jpg", photo())
    assert np.array_equal(read_upload(path, "my photo.jpg"), read_image(path))


@pytest.mark.parametrize("content", [b"no picture", b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cut short"])
def test_what_is_no_image_is_refused_by_the_name_its_owner_knows(content, tmp_path):
    path = save(tmp_path / "3f2a" / "blob.png", photo())
    path.write_bytes(path.read_bytes()[:3000] if content == "cut short" else content)
    with pytest.raises(UserError, match=r"^Cannot decode the image holiday\.png: ") as refusal:
        read_upload(path, "holiday.png")
    assert "3f2a" not in str(refusal.value)


@pytest.mark.parametrize("limit_of_pillow", [None, 1000])
def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded(limit_of_pillow, tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", photo())
    path.write_bytes(path.read_bytes()[:1000])  # to decode it would be another error
    monkeypatch.setattr(uploads, "MAX_PIXELS", 60 * 80 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit_of_pillow)
    with pytest.raises(UserError, match=r"^a\.png has more than 0 million pixels, too many here: make it smaller\.$"):
        read_upload(path, "a.png")


@pytest.fixture
def run(tmp_path):
    """A run's folder, as far as photos are found by it: two good ones and a defective one."""
    folder = tmp_path / "results" / "part" / "seed_0"
    paths = [save(tmp_path / "test" / name / f"{i}.png", photo()) for i, name in enumerate(("good", "crack", "good"))]
    folder.mkdir(parents=True)
    table = pd.DataFrame({"image_path": paths, "label": [False, True, False], "score": [1.0, 9.0, 2.0]})
    table.to_csv(folder / "predictions.csv", index=False)
    return folder


@pytest.mark.parametrize("model", ["", "model.ckpt", "export/onnx", "export/onnx/model.onnx"])
def test_the_runs_good_test_photos_are_found_from_any_of_its_models(model, run, tmp_path):
    good = [tmp_path / "test" / "good" / name for name in ("0.png", "2.png")]
    assert find_good_photos([tmp_path / "elsewhere", run / model]) == good
    good[0].unlink()
    assert find_good_photos([run / model]) == good[1:]


def test_another_folder_of_photos_goes_first(run, tmp_path):
    mine = save(tmp_path / "mine" / "a.png", photo())
    assert find_good_photos([run], mine.parent) == [mine]
    with pytest.raises(UserError, match=r"There is no photo .*nowhere"):
        find_good_photos([run], tmp_path / "nowhere")


def test_it_says_why_there_is_nothing_to_pick(run, tmp_path):
    with pytest.raises(UserError, match=r"no model lies in a run's folder: name a folder of photos with --images"):
        find_good_photos([tmp_path / "elsewhere" / "model.ckpt"])
    for path in (tmp_path / "test" / "good").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="the good test photos of seed_0 are not on this machine"):
        find_good_photos([run])
    (run / "predictions.csv").write_text("damaged")
    with pytest.raises(UserError, match="not on this machine"):
        find_good_photos([run])


def test_photos_are_made_smaller_and_never_larger():
    assert shrink(photo(60, 80), 40).shape == (30, 40, 3)
    assert shrink(photo(900, 1), 9).shape == (9, 1, 3)
    small = photo(60, 80)
    assert shrink(small, 80) is small


def test_a_drawing_covers_what_it_covers_and_nothing_else():
    original = photo(60, 80)
    layer = np.zeros((60, 80, 4), dtype=np.uint8)
    assert np.array_equal(draw_over(original, []), original)
    assert np.array_equal(draw_over(original, [layer]), original)
    layer[10:20, 30:40] = (200, 10, 20, 255)
    layer[30:40, 30:40] = (200, 10, 20, 128)
    drawn = draw_over(original, [layer])
    assert (drawn[10:20, 30:40] == (200, 10, 20)).all()
    half = (original[30:40, 30:40].astype(float) + np.array([200, 10, 20])) / 2
    assert np.abs(drawn[30:40, 30:40] - half).max() < 2
    outside = layer[..., 3] == 0
    assert np.array_equal(drawn[outside], original[outside])


def test_a_drawing_on_a_smaller_copy_lies_where_it_was_drawn():
    original = photo(60, 80)
    layer = np.zeros((30, 40, 4), dtype=np.uint8)
    layer[10:20, 10:20] = (255, 255, 255, 255)
    drawn = draw_over(original, [layer])
    assert (drawn[22:38, 22:38] == 255).all()
    changed = np.argwhere((drawn != original).any(axis=2))
    assert changed.min() >= 18 and changed.max() <= 41
