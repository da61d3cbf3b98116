"""Whatever data module lists the photos, they are read alike, in training, test and prediction."""

from pathlib import Path

import anomalib.data
import cv2
import numpy as np
import other_data
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.v2 import Resize
from torchvision.tv_tensors import Mask

from padim_bottle.data.images import read_image, read_mask
from padim_bottle.data.samples import describe, read_alike
from padim_bottle.errors import UserError
from padim_bottle.experiment.train import train
from padim_bottle.predict.judge import judge
from padim_bottle.predict.predictor import load_predictor

MODULES = {
    "folder": ("Folder", {"name": "parts", "normal_dir": "good", "normal_test_dir": "good_test",
                          "abnormal_dir": "scratch", "mask_dir": "masks/scratch", "val_split_mode": "none"}),
    "btech": ("BTech", {"category": "01"}),
    "visa": ("Visa", {}),
    "mvtec_ad2": ("MVTecAD2", {}),
}  # fmt: skip


def set_up(layout, bottles, root, change, **more):
    getattr(other_data, f"lay_out_{layout}")(bottles / "bottle", root)
    for path in root.rglob("*.png"):
        drawn = {"masks", "ground_truth"} & set(path.relative_to(root).parts)
        change(path, bool(drawn))
    kind, arguments = MODULES[layout]
    datamodule = getattr(anomalib.data, kind)(root=str(root), num_workers=0, **arguments, **more)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def turn(path, drawn):
    """As a phone stores it that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).resize((64, 48)).save(path, exif=exif)


def deepen(path, drawn):
    """As a camera of 10 bits stores it."""
    if not drawn:
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        assert cv2.imwrite(str(path), grey * 4)


def cut(path, drawn):
    if path.name.startswith("003"):
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("layout", MODULES)
def test_any_data_module_reads_phones_and_deep_cameras_as_prediction_does(tmp_path, bottles, layout):
    for change, bits in ((turn, 16), (deepen, 10)):
        resize = Resize((32, 32), antialias=True)
        datamodule = set_up(layout, bottles, tmp_path / change.__name__, change, augmentations=resize)
        assert read_alike(datamodule) == bits
        data = {"train": datamodule.train_data, "test": getattr(datamodule, "test_public_data", datamodule.test_data)}
        for items in data.values():
            for number, row in enumerate(items.samples.itertuples()):
                photo = torch.from_numpy(read_image(row.image_path, bits)).permute(2, 0, 1).float() / 255
                item = items[number]
                torch.testing.assert_close(item.image.as_subclass(torch.Tensor), resize(photo), rtol=0, atol=1e-6)
                if row.label_index:
                    mask = resize(Mask(torch.from_numpy(read_mask(row.mask_path))))
                    assert item.gt_mask.sum() >= mask.sum() > 0
        assert item.image.std() > 0.05  # neither white nor black
        assert describe(datamodule).train_images == 12
        # Setting it up for the test again, as Lightning does, changes nothing.
        datamodule.setup()
        assert read_alike(datamodule) == bits


@pytest.mark.parametrize("layout", ["folder", "btech"])
def test_a_truncated_photo_is_named(tmp_path, bottles, layout):
    datamodule = set_up(layout, bottles, tmp_path, cut)
    read_alike(datamodule)
    with pytest.raises(UserError, match=r"003\.png.*truncated"):
        list(datamodule.train_dataloader())


def test_augmentations_of_the_yaml_apply_and_there_may_be_no_validation(tmp_path, bottles):
    datamodule = set_up("folder", bottles, tmp_path, lambda *_: None, train_augmentations=Resize((20, 30)))
    read_alike(datamodule)
    assert datamodule.train_data[0].image.shape == (3, 20, 30)
    assert datamodule.test_data[0].image.shape == (3, 64, 64)
    assert list(datamodule.val_dataloader()) == []  # Lightning's fast_dev_run asks for it


@pytest.mark.parametrize(("mode", "aside"), [("from_test", 3), ("from_train", 6), ("same_as_test", 0), ("none", 0)])
def test_what_anomalib_sets_aside_is_said(tmp_path, bottles, mode, aside):
    other_data.lay_out_folder(bottles / "bottle", tmp_path)
    arguments = {**MODULES["folder"][1], "val_split_mode": mode, "seed": 0}
    datamodule = anomalib.data.Folder(root=str(tmp_path), num_workers=0, **arguments)
    datamodule.setup()
    read_alike(datamodule)
    said = describe(datamodule).left_out
    assert [int(sentence.split()[0]) for sentence in said] == [aside] * bool(aside)
    assert all(f"val_split_mode: {mode}" in sentence for sentence in said)


def test_test_photos_that_were_trained_on_are_named(tmp_path, bottles):
    other_data.lay_out_folder(bottles / "bottle", tmp_path)
    copied = tmp_path / "good_test" / "again.png"
    copied.write_bytes((tmp_path / "good" / "005.png").read_bytes())
    datamodule = anomalib.data.Folder(root=str(tmp_path), num_workers=0, **MODULES["folder"][1])
    datamodule.setup()
    (sentence,) = describe(datamodule).left_out
    assert sentence.startswith("1 test photos")
    assert str(copied) in sentence and "005.png" in sentence


@pytest.mark.slow
def test_scores_of_the_test_are_those_of_prediction(tmp_path, bottles, monkeypatch):
    """Photos of 10 bits through Folder; JPEGs that a phone turned, in parts transparent PNGs among them."""
    monkeypatch.chdir(tmp_path)
    other_data.lay_out_folder(bottles / "bottle", tmp_path / "data")
    for number, path in enumerate(sorted((tmp_path / "data").glob("[gs]*/*.png"))):
        (deepen, turn, lambda *_: None)[number % 3](path, False)
        if number % 3 == 2:
            image = Image.open(path).convert("RGBA")
            image.putalpha(Image.fromarray(np.tri(64, dtype=np.uint8) * 255))
            image.save(path)
    config = {
        "model": {"class_path": "padim_bottle.Padim", "init_args": {
            "pre_trained": False, "image_size": [64, 64], "n_features": 20, "alpha": 0.3}},
        "data": {"class_path": "anomalib.data.Folder", "init_args": {
            **MODULES["folder"][1], "mask_dir": None, "root": "data", "num_workers": 0}},
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "callbacks": [
            {"class_path": "padim_bottle.ResultsWriter", "init_args": {"experiment": "alike", "report": False}}]},
    }  # fmt: skip
    (tmp_path / "alike.yaml").write_text(yaml.safe_dump(config))
    built = train(tmp_path / "alike.yaml")
    table = pd.read_csv(built.results_writer.folder / "predictions.csv").set_index("image_path")
    predictor = load_predictor(built.results_writer.folder)
    assert predictor.card["input"]["photo_bits"] == 10
    for path, prediction in judge(predictor, [Path(path) for path in table.index], 4):
        assert prediction.score == pytest.approx(table.score[str(path)], rel=1e-5)
    assert table.score.nunique() == len(table)
