"""What a run's record says of its data, for any of anomalib's data modules."""

from urllib.error import HTTPError, URLError

import anomalib.data
import other_data
import pytest
from torch.utils.data import Dataset

from padim_bottle.data.layout import verify_category
from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.data.photos import Photos
from padim_bottle.data.samples import describe, prepare
from padim_bottle.data.synthetic import SyntheticBottles
from padim_bottle.errors import UnavailableError, UserError


def set_up(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def counted(description):
    types = list(description.defect_types.values())
    return {name: types.count(name) for name in sorted(set(types))}


@pytest.mark.parametrize(
    ("layout", "kind", "arguments", "name", "category", "types"),
    [
        ("folder", "Folder", {"name": "my_parts", "normal_dir": "good", "normal_test_dir": "good_test",
          "abnormal_dir": ["scratch", "dent"], "mask_dir": ["masks/scratch", "masks/dent"], "val_split_mode": "none"},
         "Folder", "my_parts", {"dent": 3, "good": 4, "scratch": 3}),
        ("folder", "Folder", {"name": "my_parts", "normal_dir": "good", "normal_test_dir": "good_test",
          "abnormal_dir": "scratch", "val_split_mode": "none"}, "Folder", "my_parts", {"good": 4, "scratch": 3}),
        ("visa", "Visa", {}, "VisA", "capsules", {"bad": 6, "good": 4}),
        ("mvtec_ad2", "MVTecAD2", {}, "MVTec AD 2", "sheet_metal", {"bad": 3, "good": 4}),
        ("btech", "BTech", {"category": "01"}, "BTech", "01", {"good": 4, "ko": 3}),
        ("realiad", "RealIAD", {"category": "audiojack", "test_split_mode": "from_dir"},
         "RealIAD", "audiojack", {"AK": 3, "ZW": 3, "good": 4}),
    ],
)  # fmt: skip
def test_any_data_module_says_what_its_images_are(tmp_path, bottles, layout, kind, arguments, name, category, types):
    getattr(other_data, f"lay_out_{layout}")(bottles / "bottle", tmp_path / "data")
    arguments = {"root": str(tmp_path / "data"), "num_workers": 0, **arguments}
    description = describe(set_up(getattr(anomalib.data, kind)(**arguments)))
    assert (description.name, description.category) == (name, category)
    assert description.train_images == 12
    assert counted(description) == types
    without_masks = kind == "Folder" and "mask_dir" not in arguments
    assert len(description.unmasked) == (3 if without_masks else 0)
    assert description.left_out == (
        ["There are no masks of scratch: pixel metrics leave their images out."] if without_masks else []
    )
    (tmp_path / "data").rename(tmp_path / "moved")
    arguments["root"] = str(tmp_path / "moved")
    again = describe(set_up(getattr(anomalib.data, kind)(**arguments)))
    assert again.fingerprint == description.fingerprint  # the content's, wherever it lies


def test_an_image_may_have_several_masks(tmp_path, write_category):
    """As those of MVTec LOCO AD, whose class in anomalib 2.7.0 does not run with pandas 3."""
    write_category(tmp_path, defects={"crack": 1, "stain": 2})
    datamodule = set_up(MVTecAD(tmp_path, "widget", num_workers=0))
    whole = describe(datamodule)
    samples = datamodule.test_data.samples
    masks = samples["mask_path"].dropna().tolist()
    samples["mask_path"] = [[masks[0], masks[1]], None, None, [masks[2]], None]
    description = describe(datamodule)
    assert description.fingerprint == whole.fingerprint
    assert len(description.unmasked) == 1


@pytest.mark.parametrize("tested", [True, False])
@pytest.mark.parametrize("kind", [MVTecAD, SyntheticBottles, Photos])
def test_data_have_one_fingerprint_whoever_asks(tmp_path, write_category, kind, tested):
    """A sweep asks before anything was prepared, a run afterwards."""
    folder = write_category(tmp_path, "widget", good=2 * tested, defects=None if tested else {})
    arguments = {
        MVTecAD: {"root": tmp_path, "category": "widget"},
        SyntheticBottles: {"root": tmp_path, "size": 64, "train_good": 3, "test_good": 2 * tested},
        Photos: {"folder": folder / "train" / "good", "test": folder / "test" if tested else None},
    }[kind]
    prepared = describe(set_up(kind(**arguments))).fingerprint
    only_set_up = kind(**arguments)
    only_set_up.setup()
    assert describe(only_set_up).fingerprint == prepared
    if kind is MVTecAD:
        assert prepared == verify_category(tmp_path, "widget")


def test_the_control_sees_the_same_data(bottles):
    ours = describe(set_up(MVTecAD(bottles, "bottle", num_workers=0, verify=False)))
    stock = describe(set_up(anomalib.data.MVTecAD(bottles, "bottle", num_workers=0)))
    assert ours.as_dict() == stock.as_dict()
    assert ours.name == "MVTec AD"


def test_images_without_labels_are_refused(tmp_path, bottles):
    other_data.lay_out_mvtec_ad2(bottles / "bottle", tmp_path)
    with pytest.raises(UserError, match=r"MVTecAD2 have no label.*public"):
        describe(set_up(anomalib.data.MVTecAD2(tmp_path, test_type="private", num_workers=0)))


def test_what_is_no_data_module_of_images_is_refused(bottles):
    with pytest.raises(UserError, match="need a data module"):
        describe(None)
    datamodule = set_up(MVTecAD(bottles, "bottle", num_workers=0, verify=False))
    datamodule.test_data = Dataset()
    with pytest.raises(UserError, match="no table of its samples"):
        describe(datamodule)


def test_one_sided_test_sets_say_what_they_lack(tmp_path, write_category):
    for good, defects, words in (
        (0, None, ["no good test"]),
        (2, {}, ["no defective test"]),
        (0, {}, ["no test images"]),
    ):
        category = f"widget_{good}_{defects is None}"
        write_category(tmp_path, category, good=good, defects=defects)
        left_out = describe(set_up(MVTecAD(tmp_path, category, num_workers=0))).left_out
        assert len(left_out) == len(words)
        assert all(word in sentence for word, sentence in zip(words, left_out, strict=True))


@pytest.mark.parametrize("kind", ["Visa", "MVTecAD2", "BTech"])
@pytest.mark.parametrize(
    "trouble", [URLError("no network"), HTTPError("https://host", 404, "Not Found", None, None), ConnectionResetError()]
)
def test_data_that_cannot_be_had_say_where_to_put_them(tmp_path, monkeypatch, kind, trouble):
    def refuse(*_, **__):
        raise trouble

    monkeypatch.setattr("anomalib.data.utils.download.urlretrieve", refuse)
    with pytest.raises(UnavailableError, match=rf"{kind}.*{tmp_path / 'data'}.*data\.init_args\.root"):
        prepare(getattr(anomalib.data, kind)(tmp_path / "data", num_workers=0))


def test_data_that_are_not_there_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="nowhere") as caught:
        prepare(anomalib.data.Folder("parts", "nowhere", root=tmp_path, num_workers=0))
    assert not isinstance(caught.value, UnavailableError)
