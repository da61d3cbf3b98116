"""One listing of photos, whatever lies in a folder."""

import os
from pathlib import Path

import pytest
from PIL import Image

from padim_bottle.data.listing import find_photos, is_photo, left_out, list_photos
from padim_bottle.errors import UserError
from padim_bottle.files import printable


@pytest.fixture
def folder(tmp_path):
    """Photos by suffix and by content, in folders within, and what is none."""
    for name in ("b/2.png", "b/1.JPG", "b/deep/3.tif", "b/.hidden.png", "b/.git/4.png", "b/notes.txt", "a.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Image.new("L", (4, 4)).save(tmp_path / "b" / "IMG_0001", format="JPEG")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    return tmp_path


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_photos_are_known_by_suffix_or_content_and_the_rest_is_named(folder):
    listing = list_photos(folder)
    assert names(listing.photos, folder) == ["a.webp", "b/1.JPG", "b/2.png", "b/IMG_0001", "b/deep/3.tif"]
    assert names(listing.others, folder) == ["b/notes.txt", "b/pipe.png"]
    assert names(listing.folders, folder) == ["b", "b/deep"]
    assert left_out(listing.others, folder) == f"Left out of {folder} (2): b/notes.txt; b/pipe.png."
    assert left_out([]) is None
    alone = list_photos(folder / "b", subfolders=False)
    assert names(alone.photos, folder) == ["b/1.JPG", "b/2.png", "b/IMG_0001"]
    assert names(alone.folders, folder) == ["b/deep"]
    assert list_photos(folder / "nowhere").photos == list_photos(folder / "a.webp").photos == []


def test_one_file_is_judged_by_the_same_rule(folder):
    found = [path for path in folder.rglob("*") if path.is_file() and is_photo(path)]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    assert sorted(found) == list_photos(folder).photos
    assert not is_photo(folder / "b")
    assert not is_photo(folder / "gone.png")


def test_a_folder_reached_twice_counts_once_and_under_its_own_name(folder):
    photos = list_photos(folder).photos
    (folder / "a_link_to_b").symlink_to(folder / "b")
    (folder / "b" / "deep" / "up").symlink_to(folder)
    (folder / "b" / "deep" / "loop").symlink_to("loop")
    assert list_photos(folder).photos == photos
    elsewhere = folder.parent / f"{folder.name}_elsewhere"
    (elsewhere / "within").mkdir(parents=True)
    (elsewhere / "within" / "5.png").touch()
    (folder / "c").symlink_to(elsewhere)
    (folder / "d").symlink_to(elsewhere)
    assert names(list_photos(folder).photos, folder)[-1] == "c/within/5.png"
    assert len(list_photos(folder).photos) == len(photos) + 1


def test_a_dangling_link_is_listed_so_that_somebody_says_so(folder):
    (folder / "b" / "9.png").symlink_to(folder / "nowhere.png")
    assert folder / "b" / "9.png" in list_photos(folder).photos


def test_a_name_that_is_no_utf_8_is_listed_and_can_be_printed(folder):
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    path.touch()
    assert path in list_photos(folder).photos
    assert printable(path) == f"{folder}/caf\\xe9.png"
    assert printable(folder / "Gehäuse.png") == str(folder / "Gehäuse.png")


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_found(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = list_photos(folder)
    assert names(listing.photos, folder) == ["a.webp", "b/1.JPG", "b/2.png", "b/IMG_0001"]
    assert len(listing.problems) == 1
    assert str(folder / "b" / "deep") in listing.problems[0]
    with pytest.raises(UserError, match="Permission denied"):
        listing.checked()


def test_what_vanishes_while_one_looks_is_not_there(folder, monkeypatch):
    scandir = os.scandir

    def look_and_remove(path):
        entries = list(scandir(path))
        if Path(path).name == "b":
            (folder / "b" / "notes.txt").unlink()
            (folder / "b" / "deep" / "3.tif").unlink()
            (folder / "b" / "deep").rmdir()
        return entries

    monkeypatch.setattr(os, "scandir", look_and_remove)
    listing = list_photos(folder)
    assert names(listing.photos, folder) == ["a.webp", "b/1.JPG", "b/2.png", "b/IMG_0001"]
    assert names(listing.others, folder) == ["b/pipe.png"]
    assert listing.problems == []


def test_photos_of_a_command_line_are_found_once_in_order(folder):
    (folder / "a.webp").rename(folder / "a.png")
    everything = list_photos(folder).photos
    found = find_photos([str(folder / "a.png"), str(folder / "b"), str(folder / "b" / "2.png")])
    assert found.photos == everything
    assert names(found.others, folder) == ["b/notes.txt", "b/pipe.png"]
    assert find_photos([str(folder / "b" / "*")]).photos == everything[1:]
    assert find_photos([str(folder / "**" / "*.png")]).photos == [folder / "a.png", folder / "b" / "2.png"]
    (folder / "empty").mkdir()
    found = find_photos([str(folder / "empty"), str(folder / "*.gif")])
    assert found.photos == []
    assert len(found.problems) == 2
    assert "empty" in found.problems[0]
    assert "*.gif" in found.problems[1]
    # A file that is named is tried, whatever its name.
    found = find_photos([str(folder / "b"), str(folder / "b" / "notes.txt")])
    assert found.photos == [*everything[1:], folder / "b" / "notes.txt"]
    assert names(found.others, folder) == ["b/pipe.png"]
