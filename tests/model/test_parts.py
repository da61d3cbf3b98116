import pytest
import torch

from padim_bottle.errors import UserError
from padim_bottle.model.parts import Parts, check_group

PHOTOS = ["a/007_left.png", "a/007_right.png", "b/008_left.png", "b/007_top.png"]


@pytest.mark.parametrize(
    ("group", "members"),
    [
        (None, [[0], [1], [2], [3]]),
        (r"^(\d+)_", [[2], [0, 1, 3]]),
        ("parent-folder", [[0, 1], [2, 3]]),
    ],
)
def test_parts_are_told_from_names_and_folders(group, members):
    parts = Parts.of_photos(PHOTOS, group)
    assert [part for size in parts.by_size() for part in size.tolist()] == members
    assert len(parts) == len(members)


def test_a_part_has_the_largest_score_of_its_photos():
    parts = Parts.of_photos(PHOTOS, r"^(\d+)_")
    assert parts.largest(torch.tensor([1.0, 5.0, 2.0, 3.0])).tolist() == [5.0, 2.0]


def test_copies_join_parts_whatever_their_order():
    parts = Parts.of_photos([""] * 6, None).joined([(0, 3), (2, 5), (3, 5)])
    assert sorted(map(tuple, (part for size in parts.by_size() for part in size.tolist()))) == [
        (0, 2, 3, 5),
        (1,),
        (4,),
    ]


@pytest.mark.parametrize(
    ("group", "words"), [("(", "no regular expression"), (r"\d+", "has 0 groups"), (r"(\d)_(\w)", "has 2 groups")]
)
def test_a_group_that_names_no_part_is_refused(group, words):
    with pytest.raises(UserError, match=words):
        check_group(group)


def test_a_photo_that_the_group_does_not_match_is_named():
    with pytest.raises(UserError, match=r"matches nothing in the names of 1 of 5 photos, for example a/other.png"):
        Parts.of_photos([*PHOTOS, "a/other.png"], r"^(\d+)_")
