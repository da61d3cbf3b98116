"""A plain folder of photos, and all that people put there by mistake."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from padim_bottle import Photos
from padim_bottle.data.samples import describe, read_alike
from padim_bottle.errors import UserError


def picture(path, size=(40, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four photos of good parts; beside them a test folder with one scratch, its mask, and one good part."""
    for index in range(4):
        picture(tmp_path / "parts" / f"{index}.png", seed=index)
    picture(tmp_path / "test" / "scratch" / "a.png", seed=10)
    picture(tmp_path / "test" / "good" / "b.jpg", seed=11)
    (tmp_path / "ground_truth" / "scratch").mkdir(parents=True)
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(tmp_path / "ground_truth" / "scratch" / "a_mask.png")
    return tmp_path / "parts"


def set_up(*arguments, **named):
    datamodule = Photos(*arguments, num_workers=0, **named)
    datamodule.prepare_data()
    datamodule.setup()
    read_alike(datamodule)
    return datamodule


def refusal(*arguments, **named):
    with pytest.raises(UserError) as caught:
        set_up(*arguments, **named)
    return str(caught.value)


def test_photos_are_read_in_order_and_without_a_test(folder):
    datamodule = set_up(folder)
    (batch,) = datamodule.train_dataloader()
    assert [Path(path).name for path in batch.image_path] == [f"{index}.png" for index in range(4)]
    assert datamodule.test_dataloader() == datamodule.val_dataloader() == []
    assert (datamodule.name, datamodule.category) == ("Photos", "parts")


def test_several_folders_are_one_set_of_photos(folder):
    accepted = folder.parent / "accepted"
    picture(accepted / "0.png", seed=20)  # another photo of a name that is there already
    (accepted / "again.png").symlink_to(folder / "1.png")
    datamodule = set_up([folder, accepted])
    paths = {Path(path) for path in datamodule.train_data.samples["image_path"]}
    assert paths == {*folder.iterdir(), accepted / "0.png"}
    assert datamodule.category == "parts"
    assert describe(datamodule).train_images == 5
    assert "given twice" in refusal([folder, folder.parent / "accepted" / ".." / "parts"])
    assert "nowhere" in refusal([folder, folder.parent / "nowhere"])
    assert "name at least one" in refusal([])


def test_test_photos_have_their_folders_as_types_and_masks_beside_them(folder):
    datamodule = set_up(folder, folder.parent / "test")
    batch = next(iter(datamodule.test_dataloader()))
    samples = datamodule.test_data.samples.set_index("label")
    assert samples.loc["scratch", "mask_path"].endswith("ground_truth/scratch/a_mask.png")
    assert samples.loc["good", "mask_path"] is None
    assert [int(mask.sum()) for mask in batch.gt_mask] == [0, 1200]


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path):
    def fingerprint(*arguments):
        return describe(set_up(*arguments)).fingerprint

    first = fingerprint(folder, folder.parent / "test")
    shutil.copytree(folder.parent, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("elsewhere"))
    assert fingerprint(tmp_path / "elsewhere" / "parts", tmp_path / "elsewhere" / "test") == first
    assert fingerprint(folder) != first
    picture(folder / "3.png", seed=99)
    assert fingerprint(folder, folder.parent / "test") != first


def test_folders_within_are_read_only_when_asked_for(folder, caplog):
    for index in range(4):
        (folder / f"part_{index}").mkdir()
        (folder / f"{index}.png").rename(folder / f"part_{index}" / "front.png")
    message = refusal(folder)
    assert "no photos in" in message
    assert "It holds folders (part_0, part_1, part_2, part_3)" in message
    assert "subfolders" in message
    assert len(set_up(folder, subfolders=True).train_data) == 4
    assert not caplog.records


def test_what_is_no_photo_is_passed_over_and_named(folder, caplog):
    (folder / "notes.txt").write_text("shot on Monday")
    (folder / "rejected").mkdir()
    assert len(set_up(folder).train_data) == 4
    (record,) = caplog.records
    assert "(2): notes.txt; rejected/" in record.message


def test_photos_of_different_sizes_are_used_with_a_word_of_warning(folder, caplog):
    picture(folder / "4.png", (80, 20))
    set_up(folder)
    (record,) = caplog.records
    assert "2 different sizes (40 x 30, 80 x 20)" in record.message


def test_too_few_photos(folder):
    for path in folder.iterdir():
        if path.name > "1.png":
            path.unlink()
    assert "only 2 photos" in refusal(folder)
    (folder / "1.png").unlink()
    assert "is only 1 photo in" in refusal(folder)
    (folder / "0.png").unlink()
    assert f"no photos in {folder}" in refusal(folder)


def test_a_file_that_only_looks_like_a_photo_is_named(folder):
    (folder / "2.png").write_text("no photo")
    assert "2.png: it is in none of the formats" in refusal(folder)


def test_photos_that_cannot_be_read_are_named(folder, monkeypatch):
    original = Path.read_bytes

    def read_bytes(path):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    message = refusal(folder)
    assert "1.png (Permission denied)" in message
    assert "permissions" in message

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"Cannot list {folder}: Permission denied" in refusal(folder)


def test_nothing_is_trained_and_tested_on(folder):
    assert "for training and for the test" in refusal(folder, folder)
    assert "for training and for the test" in refusal(folder, folder / ".." / "parts")
    good = folder.parent / "test" / "good"
    for index in range(3):
        picture(good / f"{index}.png", seed=20 + index)
    assert "trained and tested on" in refusal(good, folder.parent / "test")


def test_test_folders_as_people_get_them_wrong(folder):
    assert "no folder" in refusal(folder, folder.parent / "nowhere")
    assert "no folder" in refusal(folder.parent / "nowhere")
    assert "a folder a defect type" in refusal(folder, folder.parent / "test" / "scratch")
    picture(folder.parent / "test" / "scratch" / "c.png")
    assert "scratch/c.png has no mask" in refusal(folder, folder.parent / "test")
