import pickle
from types import SimpleNamespace

import anomalib.data
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import ColorJitter, Compose, Normalize, Resize

from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.errors import UserError

RESIZE = Resize((24, 32), antialias=True)


def with_model(datamodule, transform=RESIZE):
    """Set the data module up as a trainer whose model has this pre-processor would."""
    datamodule.trainer = SimpleNamespace(model=SimpleNamespace(pre_processor=SimpleNamespace(transform=transform)))
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def assert_same_batches(ours, stock):
    for our, their in zip(ours, stock, strict=True):
        torch.testing.assert_close(our.image, their.image, rtol=0, atol=1e-6)
        for field in ("gt_mask", "gt_label"):
            ours_field, theirs_field = getattr(our, field), getattr(their, field)
            assert ours_field.dtype == theirs_field.dtype
            assert torch.equal(ours_field, theirs_field)
        assert our.image_path == their.image_path
        assert our.mask_path == their.mask_path
        assert our.image.stride() == their.image.stride()


@pytest.mark.parametrize("transform", [RESIZE, Compose([Resize((24, 32), antialias=True), Normalize([0.5], [0.2])])])
def test_batches_equal_anomalibs(tmp_path, write_category, transform):
    write_category(tmp_path)
    ours = with_model(MVTecAD(tmp_path, "widget", num_workers=0, eval_batch_size=2), transform)
    stock = with_model(anomalib.data.MVTecAD(tmp_path, "widget", num_workers=0, eval_batch_size=2), transform)
    assert_same_batches(ours.test_dataloader(), stock.test_dataloader())
    assert_same_batches(ours.val_dataloader(), stock.val_dataloader())
    for index in range(3):  # the stock loader shuffles
        torch.testing.assert_close(ours.train_data[index].image, stock.train_data[index].image, rtol=0, atol=1e-6)
    assert next(iter(ours.test_dataloader())).image.shape == (2, 3, 24, 32)


@pytest.mark.real_data
def test_bottle_equals_anomalibs(mvtec_root):
    resize = Resize((256, 256), antialias=True)
    batches = []
    for kind in (MVTecAD, anomalib.data.MVTecAD):
        tested = with_model(kind(mvtec_root, num_workers=0), resize).test_data
        batches.append([tested.collate_fn([tested[index] for index in range(0, 83, 9)])])
    assert_same_batches(*batches)


def test_without_a_model_images_keep_their_size(tmp_path, write_category):
    write_category(tmp_path)
    datamodule = MVTecAD(tmp_path, "widget", num_workers=0)
    datamodule.setup()
    assert datamodule.train_data[0].image.shape == (3, 40, 48)


def test_augmentations_see_image_and_mask_before_the_models_resize(tmp_path, write_category):
    write_category(tmp_path)
    datamodule = with_model(
        MVTecAD(tmp_path, "widget", num_workers=0, train_augmentations=ColorJitter(brightness=(2, 2)))
    )
    plain = with_model(MVTecAD(tmp_path, "widget", num_workers=0))
    assert datamodule.train_data[0].image.shape == (3, 24, 32)
    assert datamodule.train_data[0].image.mean() > plain.train_data[0].image.mean()
    assert torch.equal(datamodule.test_data[0].image, plain.test_data[0].image)


def test_training_batches_are_the_same_for_every_run_and_worker_count(tmp_path, write_category):
    write_category(tmp_path, train=5)
    runs = []
    for seed, workers in ((0, 0), (1, 0), (2, 2)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        datamodule = with_model(MVTecAD(tmp_path, "widget", train_batch_size=2, num_workers=workers))
        runs.append(list(datamodule.train_dataloader()))
        assert torch.equal(torch.get_rng_state(), before)
    for run in runs[1:]:
        for batch, first in zip(run, runs[0], strict=True):
            assert torch.equal(batch.image, first.image)
            assert batch.image.stride() == first.image.stride()
            assert batch.image_path == first.image_path
    paths = [path for batch in runs[0] for path in batch.image_path]
    assert paths == sorted(paths)
    assert len(paths) == 5


def test_test_set_is_what_lies_in_test(tmp_path, write_category):
    write_category(tmp_path, good=0)
    write_category(tmp_path, "flawless", defects={})
    write_category(tmp_path, "untested", good=0, defects={})
    for category, labels in (("widget", [1, 1, 1]), ("flawless", [0, 0]), ("untested", [])):
        datamodule = with_model(MVTecAD(tmp_path, category, num_workers=0))
        assert len(datamodule.train_data) == 3
        for loader in (datamodule.test_dataloader(), datamodule.val_dataloader()):
            assert [int(label) for batch in loader for label in batch.gt_label] == labels


def test_every_validation_split_is_what_its_name_says(tmp_path, write_category):
    write_category(tmp_path, train=6, good=4, defects={"crack": 4})
    for mode, seen in {"none": 0, "from_train": 3, "from_test": 4, "same_as_test": 8, "synthetic": 3}.items():
        datamodule = with_model(MVTecAD(tmp_path, "widget", num_workers=0, val_split_mode=mode))
        assert sum(len(batch.image) for batch in datamodule.val_dataloader()) == seen


def test_random_splits_are_repeatable(tmp_path, write_category):
    write_category(tmp_path, good=10, defects={"crack": 10})
    chosen = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        datamodule = with_model(MVTecAD(tmp_path, "widget", num_workers=0, val_split_mode="from_test"))
        chosen.append(list(datamodule.val_data.samples.image_path))
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named_across_processes(tmp_path, write_category, workers):
    folder = write_category(tmp_path)
    image = folder / "train/good/001.png"
    image.write_bytes(image.read_bytes()[:-50])
    datamodule = with_model(MVTecAD(tmp_path, "widget", num_workers=workers))
    with pytest.raises(UserError, match=r"good/001\.png"):
        list(datamodule.train_dataloader())


def test_mask_of_another_size_is_named(tmp_path, write_category):
    folder = write_category(tmp_path)
    Image.fromarray(np.ones((9, 9), np.uint8)).save(folder / "ground_truth/crack/001_mask.png")
    datamodule = with_model(MVTecAD(tmp_path, "widget", num_workers=0))
    with pytest.raises(UserError, match=r"crack/001\.png.*crack/001_mask\.png"):
        list(datamodule.test_dataloader())


def test_missing_mask_is_named_before_anything_is_read(tmp_path, write_category):
    folder = write_category(tmp_path)
    (folder / "ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(UserError, match=r"crack/001_mask\.png"):
        MVTecAD(tmp_path, "widget").prepare_data()
    with pytest.raises(UserError, match=r"crack/001_mask\.png"):
        MVTecAD(tmp_path, "widget").setup()


def test_verify_can_be_left_out(tmp_path, write_category):
    write_category(tmp_path, "bottle")
    with pytest.raises(UserError, match="not MVTec AD's 'bottle'"):
        MVTecAD(tmp_path).prepare_data()
    MVTecAD(tmp_path, verify=False).prepare_data()


def test_missing_category_is_downloaded_only_if_it_is_one_of_mvtec_ad(tmp_path, write_category, monkeypatch):
    asked = []

    def download(category, root):
        asked.append((category, root))
        write_category(root, category)

    monkeypatch.setattr("padim_bottle.data.mvtec.download_category", download)
    MVTecAD(tmp_path, "cable", verify=False).prepare_data()
    MVTecAD(tmp_path, "cable", verify=False).prepare_data()
    assert asked == [("cable", tmp_path)]
    with pytest.raises(UserError, match=r"no folder 'cabel'.*folders there: cable"):
        MVTecAD(tmp_path, "cabel").prepare_data()
    with pytest.raises(UserError, match="no folder 'grid'"):
        MVTecAD(tmp_path, "grid", download=False).prepare_data()
    assert len(asked) == 1


def test_root_comes_from_argument_then_environment_then_default(monkeypatch, tmp_path):
    monkeypatch.delenv("MVTEC_AD_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)  # beside a checkout there may be a folder of data
    assert str(MVTecAD().root) == "datasets/MVTecAD"
    monkeypatch.setenv("MVTEC_AD_ROOT", str(tmp_path))
    assert MVTecAD().root == tmp_path
    assert MVTecAD(root="given").root.name == "given"


def test_dataset_can_be_pickled(tmp_path, write_category):
    write_category(tmp_path)
    dataset = with_model(MVTecAD(tmp_path, "widget", num_workers=0)).test_data
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert torch.equal(copy[3].image, dataset[3].image)
