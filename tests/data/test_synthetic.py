import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padim_bottle.data import synthetic
from padim_bottle.data.synthetic import DEFECTS, render_bottle, write_bottles
from padim_bottle.errors import UserError

SIZE = 64
SMALL = {"size": SIZE, "train_good": 3, "test_good": 2, "test_per_defect": 2}


def render(seed, defect=None, size=SIZE):
    return render_bottle(np.random.default_rng(seed), size, defect)


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


def test_a_good_bottle_has_no_mask_and_the_promised_shape():
    image, mask = render(0)
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert mask.shape == (SIZE, SIZE) and mask.dtype == bool
    assert not mask.any()


@pytest.mark.parametrize(("size", "pictures"), [(64, 30), (256, 5)])
@pytest.mark.parametrize("defect", DEFECTS)
def test_masks_are_exact(defect, size, pictures):
    for seed in range(pictures):
        good, _ = render(seed, size=size)
        image, mask = render(seed, defect, size)
        changed = (image != good).any(axis=-1)
        assert not changed[~mask].any(), f"seed {seed}: changed outside its mask"
        assert mask.any(), f"seed {seed}: empty mask"
        # A defect may by chance have the colour of the glass beneath it, but only here and there.
        assert changed[mask].mean() > 0.9, f"seed {seed}: the mask covers pixels that the defect left alone"


def test_defects_range_from_slight_to_obvious():
    contrasts = []
    for defect in DEFECTS:
        for seed in range(30):
            good, _ = render(seed)
            image, mask = render(seed, defect)
            contrasts.append(np.abs(image[mask].astype(float) - good[mask]).mean())
    slight, obvious = np.quantile(contrasts, [0.05, 0.95])
    assert slight < 20 < 40 < obvious


def test_large_breaks_are_larger_than_small_ones():
    small, large = (
        [render(seed, defect)[1].mean() for seed in range(30)] for defect in ("broken_small", "broken_large")
    )
    assert np.median(large) > 4 * np.median(small)


def test_bottles_are_dark_on_white_and_vary_from_picture_to_picture():
    images = np.stack([render(seed)[0] for seed in range(12)]).astype(float)
    assert images[:, :4, :4].min() > 240
    middle = slice(SIZE // 2 - 8, SIZE // 2 + 8)
    assert images[:, middle, middle].max() < 70
    on_the_bottle = images.mean(axis=(0, 3)) < 150
    assert images.std(axis=0)[on_the_bottle].mean() > 2


@pytest.mark.parametrize(("size", "defect"), [(63, None), (64, "scratch")])
def test_senseless_arguments_are_refused(size, defect):
    with pytest.raises(ValueError, match="size" if defect is None else "scratch"):
        render(0, defect, size)


def test_layout_is_that_of_mvtec_ad(tmp_path):
    folder = write_bottles(tmp_path, "flask", **SMALL)
    assert folder == tmp_path / "flask"
    found = pixels(folder)
    good = [f"train/good/{i:03d}.png" for i in range(3)] + [f"test/good/{i:03d}.png" for i in range(2)]
    defective = [f"{defect}/{i:03d}" for defect in DEFECTS for i in range(2)]
    assert set(found) == {
        *good,
        *(f"test/{name}.png" for name in defective),
        *(f"ground_truth/{name}_mask.png" for name in defective),
    }
    for name in defective:
        mask = found[f"ground_truth/{name}_mask.png"]
        assert mask.shape == (SIZE, SIZE) and set(np.unique(mask)) == {0, 255}
        assert found[f"test/{name}.png"].shape == (SIZE, SIZE, 3)
    assert "NOT MVTec AD" in (folder / "SYNTHETIC.txt").read_text()


def test_the_seed_decides_every_byte_and_no_two_pictures_are_alike(tmp_path):
    first, again = (write_bottles(tmp_path / name, **SMALL) for name in ("a", "b"))
    for path in first.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(first)).read_bytes()
    drawn, others = pixels(first), pixels(write_bottles(tmp_path / "c", **(SMALL | {"seed": 1})))
    assert all((picture != others[name]).any() for name, picture in drawn.items())
    images = {picture.tobytes() for name, picture in drawn.items() if "mask" not in name}
    assert len(images) == 3 + 2 + 2 * len(DEFECTS)


def test_a_picture_does_not_depend_on_how_many_others_there_are(tmp_path):
    few = pixels(write_bottles(tmp_path / "few", **SMALL))
    many = pixels(write_bottles(tmp_path / "many", size=SIZE, train_good=1, test_good=4, test_per_defect=3))
    shared = few.keys() & many.keys()
    assert len(shared) == 1 + 2 + 2 * 2 * len(DEFECTS)
    for name in shared:
        np.testing.assert_array_equal(few[name], many[name], err_msg=name)


def test_the_same_data_set_is_not_drawn_twice(tmp_path, monkeypatch):
    folder = write_bottles(tmp_path, **SMALL)
    monkeypatch.setattr(synthetic, "render_bottle", None)
    assert write_bottles(tmp_path, **SMALL) == folder


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 80}, {"train_good": 4}])
def test_another_data_set_in_its_place_is_refused_and_left_alone(tmp_path, change):
    before = pixels(write_bottles(tmp_path, **SMALL))
    with pytest.raises(UserError, match="other parameters"):
        write_bottles(tmp_path, **(SMALL | change))
    after = pixels(tmp_path / "bottle")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_real_pictures_are_never_overwritten(tmp_path):
    (tmp_path / "bottle/train/good").mkdir(parents=True)
    with pytest.raises(UserError, match="SYNTHETIC"):
        write_bottles(tmp_path, **SMALL)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    drawn = []

    def interrupted(rng, size, defect=None):
        drawn.append(defect)
        if defect == "broken_small":
            raise KeyboardInterrupt
        return render_bottle(rng, size, defect)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "render_bottle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_bottles(tmp_path, **SMALL)
    assert len(drawn) > 5  # it was well under way
    assert list(tmp_path.iterdir()) == []
    assert (write_bottles(tmp_path, **SMALL) / "SYNTHETIC.txt").is_file()


def test_losing_a_race_to_another_process_is_no_error(tmp_path, monkeypatch):
    def winner_comes_first(source, target):
        monkeypatch.undo()
        write_bottles(tmp_path, **SMALL)
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(target))

    monkeypatch.setattr(Path, "rename", winner_comes_first)
    folder = write_bottles(tmp_path, **SMALL)
    assert len(pixels(folder)) == 3 + 2 + 4 * len(DEFECTS)
    assert [path.name for path in tmp_path.iterdir()] == ["bottle"]
