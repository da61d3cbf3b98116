import hashlib
import shutil
from importlib.resources import files

import pytest

from padim_bottle.data.layout import CATEGORIES, PUBLISHED_COUNTS, find_files, verify_category
from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.errors import UserError

TYPES = ["good", "good", "crack", "crack", "stain"]


def test_own_category_is_accepted_and_paired_by_name(tmp_path, write_category):
    folder = write_category(tmp_path)
    found = find_files(tmp_path, "widget")
    defective = [image for image in found.test if image.defect != "good"]
    names = [image.path.relative_to(folder).as_posix() for image in defective]
    masks = [image.mask.relative_to(folder).as_posix() for image in defective]
    assert [image.defect for image in found.test] == TYPES
    assert names == ["test/crack/000.png", "test/crack/001.png", "test/stain/000.png"]
    assert masks == [f"ground_truth/{name}_mask.png" for name in ("crack/000", "crack/001", "stain/000")]
    assert len(found.train) == 3
    assert not any(image.mask for image in [*found.train, *found.test[:2]])
    verify_category(tmp_path, "widget")


def test_masks_may_have_the_images_own_names(tmp_path, write_category):
    folder = write_category(tmp_path, defects={"crack": 1}, suffix=".jpg")
    (folder / "ground_truth/crack/000_mask.png").rename(folder / "ground_truth/crack/000.png")
    assert find_files(tmp_path, "widget").test[-1].mask == folder / "ground_truth/crack/000.png"


def test_fingerprint_is_the_sum_of_the_sums(tmp_path, write_category):
    folder = write_category(tmp_path)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in folder.rglob("*.png")
    ]
    expected = hashlib.sha256("".join(sorted(lines, key=lambda line: line[66:])).encode()).hexdigest()
    assert verify_category(tmp_path, "widget") == expected


def test_fingerprint_follows_content_and_names_only(tmp_path, write_category):
    folder = write_category(tmp_path / "a")
    original = verify_category(tmp_path / "a", "widget")

    shutil.copytree(folder, tmp_path / "b" / "renamed")
    for junk in ("license.txt", "train/good/.hidden.png", "train/good/Thumbs.db"):
        (tmp_path / "b" / "renamed" / junk).write_text("junk")
    assert verify_category(tmp_path / "b", "renamed") == original

    image = folder / "train/good/000.png"
    image.rename(folder / "train/good/003.png")
    assert verify_category(tmp_path / "a", "widget") != original
    (folder / "train/good/003.png").rename(image)
    assert verify_category(tmp_path / "a", "widget") == original
    image.write_bytes(image.read_bytes() + b"\0")
    assert verify_category(tmp_path / "a", "widget") != original


def test_links_are_followed(tmp_path, write_category):
    folder = write_category(tmp_path / "real")
    original = verify_category(tmp_path / "real", "widget")
    image = folder / "train/good/000.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "widget").symlink_to(folder)
    assert verify_category(tmp_path / "linked", "widget") == original


def test_missing_category_lists_what_there_is(tmp_path, write_category):
    write_category(tmp_path, "bootle")
    with pytest.raises(UserError) as caught:
        verify_category(tmp_path, "bottle")
    message = str(caught.value)
    assert "the folders there: bootle" in message
    assert "MVTEC_AD_ROOT" in message
    assert all(category in message for category in CATEGORIES)


@pytest.mark.parametrize(
    ("root", "category", "change", "words"),
    [
        ("nowhere", "bottle", None, "does not exist"),
        ("widget", "widget", None, "give the folder above it"),
        (".", "", None, "There is no folder ''"),
        (".", "empty", lambda root: (root / "empty").mkdir(), r"no training images.*empty"),
        (".", "widget", lambda root: shutil.rmtree(root / "widget/train/good"), r"no training images.*widget"),
        (".", "widget", lambda root: (root / "widget/train/good/009.png").symlink_to("nowhere"), r"009\.png"),
    ],
)
def test_what_is_no_category_is_refused_by_name(tmp_path, write_category, root, category, change, words):
    write_category(tmp_path)
    if change is not None:
        change(tmp_path)
    with pytest.raises(UserError, match=words):
        verify_category(tmp_path / root, category)


def test_images_without_masks_and_a_mask_without_image_are_named(tmp_path, write_category):
    folder = write_category(tmp_path, defects={"crack": 8})
    unmasked = [f"{index:03}" for index in range(7)]
    for name in unmasked:
        (folder / f"ground_truth/crack/{name}_mask.png").unlink()
    first = r"crack/000\.png has no mask .*crack/000_mask\.png.*and 2 more \(7 in all\)"
    with pytest.raises(UserError, match=first) as caught:
        verify_category(tmp_path, "widget")
    assert str(caught.value).count("has no mask") == 5
    for name in unmasked:
        (folder / f"test/crack/{name}.png").unlink()
    verify_category(tmp_path, "widget")
    (folder / "test/crack/007.png").unlink()
    with pytest.raises(UserError, match=r"crack/007_mask\.png has no image"):
        verify_category(tmp_path, "widget")


@pytest.mark.parametrize("missing", ["ground_truth", "ground_truth/crack", "test"])
def test_masks_may_be_missing_for_whole_types_and_so_may_the_test_set(tmp_path, write_category, missing):
    folder = write_category(tmp_path)
    shutil.rmtree(folder / missing)
    found = find_files(tmp_path, "widget")
    masked = {image.defect for image in found.test if image.mask}
    assert masked == {"ground_truth/crack": {"stain"}}.get(missing, set())
    assert {image.defect for image in found.test} == (set() if missing == "test" else {"good", "crack", "stain"})
    verify_category(tmp_path, "widget")


@pytest.mark.parametrize("name", ["good", "Good", "GOOD", "OK", "ok", "normal", "Pass"])
def test_good_test_folders_have_many_names(tmp_path, write_category, name):
    folder = write_category(tmp_path)
    (folder / "test/good").rename(folder / "test/other")
    (folder / "test/other").rename(folder / "test" / name)
    assert [image.defect for image in find_files(tmp_path, "widget").test] == TYPES


def test_folders_below_a_defect_type_belong_to_it_and_leftovers_are_named(tmp_path, write_category, caplog):
    folder = write_category(tmp_path)
    for kind, name in (("test", "000.png"), ("ground_truth", "000_mask.png")):
        deeper = folder / kind / "crack" / "monday" / "am"
        deeper.mkdir(parents=True)
        shutil.copy(folder / kind / "crack" / name, deeper)
    for name in ("test/000.png", "test/notes.txt", "ground_truth/classes.json", "train/good/readme.md"):
        (folder / name).touch()
    found = find_files(tmp_path, "widget")
    deepest = found.test[-2]
    assert deepest.defect == "crack"
    assert deepest.path == folder / "test/crack/monday/am/000.png"
    assert deepest.mask == folder / "ground_truth/crack/monday/am/000_mask.png"
    MVTecAD(tmp_path, "widget").prepare_data()
    (record,) = caplog.records
    assert "(4): ground_truth/classes.json; test/000.png; test/notes.txt; train/good/readme.md" in record.message


def test_published_counts_sum_to_the_papers_totals():
    counts = PUBLISHED_COUNTS.values()
    assert len(counts) == 15
    assert sum(count.train for count in counts) == 3629
    assert sum(count.test_good for count in counts) == 467
    assert sum(count.test_defective for count in counts) == 1258


def test_other_categories_are_compared_by_their_counts(tmp_path, write_category):
    write_category(tmp_path, "toothbrush", train=60, good=12, defects={"defective": 30}, size=(4, 4))
    verify_category(tmp_path, "toothbrush")
    (tmp_path / "toothbrush/ground_truth").rename(tmp_path / "masks")
    with pytest.raises(UserError, match=r"'toothbrush' as published.*000\.png has no mask"):
        verify_category(tmp_path, "toothbrush")
    (tmp_path / "masks").rename(tmp_path / "toothbrush/ground_truth")
    (tmp_path / "toothbrush/train/good/059.png").unlink()
    with pytest.raises(UserError, match=r"'toothbrush' as published.*train=59.*train=60"):
        verify_category(tmp_path, "toothbrush")


def test_manifest_lists_bottle_in_the_order_of_the_fingerprint():
    lines = (files("padim_bottle.data") / "manifests" / "bottle.sha256").read_text().splitlines()
    names = [line[66:] for line in lines]
    assert names == sorted(names)
    per_folder = {
        part: sum(name.startswith(part) for name in names) for part in ("train/good", "test/good", "test", "gr")
    }
    assert per_folder == {"train/good": 209, "test/good": 20, "test": 83, "gr": 63}


def test_a_bottle_that_is_another_is_refused(tmp_path, write_category):
    write_category(tmp_path, "bottle")
    with pytest.raises(UserError, match=r"not MVTec AD's 'bottle' as published.* more .*verify: false"):
        verify_category(tmp_path, "bottle")


@pytest.mark.real_data
def test_bottle_is_as_published(mvtec_root):
    manifest = (files("padim_bottle.data") / "manifests" / "bottle.sha256").read_bytes()
    assert verify_category(mvtec_root, "bottle") == hashlib.sha256(manifest).hexdigest()


@pytest.mark.real_data
def test_each_difference_to_the_published_bottle_is_named(mvtec_root, tmp_path):
    for path in (mvtec_root / "bottle").rglob("*.png"):
        link = tmp_path / "bottle" / path.relative_to(mvtec_root / "bottle")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    verify_category(tmp_path, "bottle")

    changed = tmp_path / "bottle/train/good/123.png"
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1
    changed.unlink()
    changed.write_bytes(content)
    (tmp_path / "bottle/test/good/007.png").unlink()
    shutil.copy(tmp_path / "bottle/train/good/000.png", tmp_path / "bottle/test/good/999.png")
    with pytest.raises(UserError) as caught:
        verify_category(tmp_path, "bottle")
    message = str(caught.value)
    assert "test/good/007.png is missing" in message
    assert "test/good/999.png is not part of it" in message
    assert "train/good/123.png has another content" in message
