import numpy as np
import pytest
import torch
from PIL import Image

from padim_bottle.model import copies
from padim_bottle.model.copies import Copy, exact_copies, near_copies
from padim_bottle.model.store import PhotoStore


def test_exact_copies_are_found_by_content(tmp_path):
    contents = [b"one", b"two", b"one", b"three", b"one"]
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.png").write_bytes(content)
    paths = [str(tmp_path / f"{index}.png") for index in range(5)]
    assert exact_copies([*paths, str(tmp_path / "gone.png")]) == [Copy(0, 2, "exact"), Copy(0, 4, "exact")]


def kept(photos):
    store = PhotoStore()
    store.append(photos)
    return store


@pytest.mark.parametrize("block", [512, 7])
def test_photos_that_share_what_no_other_has_are_similar(block, monkeypatch):
    monkeypatch.setattr(copies, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-1, 1, 30)  # a few channels vary most
    photos = torch.randn(100, 6, 30, generator=generator) * spread
    photos[7] = photos[3] + 0.3 * torch.randn(6, 30, generator=generator) * spread
    assert near_copies(kept(photos)) == [Copy(3, 7, "near")]


def test_where_every_part_has_two_photos_each_second_one_is_found():
    generator = torch.Generator().manual_seed(0)
    photos = torch.randn(40, 6, 30, generator=generator)
    both = torch.cat([photos, photos + 0.3 * torch.randn(photos.shape, generator=generator)])
    assert near_copies(kept(both)) == [Copy(i, i + 40, "near") for i in range(40)]


@pytest.mark.parametrize("channels", [20, 60])
def test_similarity_is_the_mahalanobis_inner_product(channels, monkeypatch):
    """Of 40 photos, more than channels and fewer, by plain inversion."""
    photos = np.random.default_rng(0).normal(size=(40, 3, channels)) * np.logspace(-2, 0, channels)
    products = np.zeros((40, 40))
    for position in range(3):
        delta = photos[:, position] - photos[:, position].mean(axis=0)
        covariance = delta.T @ delta / 39 + 0.01001 * np.eye(channels)
        products += delta @ np.linalg.inv(covariance) @ delta.T
    lengths = np.sqrt(np.diag(products))
    earlier = np.tril(products / lengths / lengths[:, None], -1)
    monkeypatch.setattr(copies, "SIMILAR", np.quantile(earlier.max(axis=1), 0.5))
    expected = [Copy(int(earlier[i].argmax()), i, "near") for i in range(40) if earlier[i].max() >= copies.SIMILAR]
    assert len(expected) == 20
    assert near_copies(kept(torch.from_numpy(photos).float())) == expected


@pytest.mark.parametrize("count", [1, 2, 5])
def test_photos_that_do_not_differ_at_all_give_no_nonsense(count):
    assert near_copies(kept(torch.ones(count, 4, 3))) == []


@pytest.mark.slow
@pytest.mark.real_data
def test_second_photos_of_real_bottles_are_noticed(mvtec_root, real_weights, monkeypatch):
    """Training photos, each with a second one: moved by up to 2 pixels, up to 3 % brighter or darker, noisy."""
    from padim_bottle import Padim

    monkeypatch.setenv("PADIM_WEIGHTS_DIR", str(real_weights))
    rng = np.random.default_rng(0)
    photos = [
        np.array(Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        for path in sorted((mvtec_root / "bottle" / "train" / "good").glob("*.png"))[:60]
    ]
    second = [
        np.roll(photo, rng.integers(-2, 3, 2), (0, 1)) * rng.uniform(0.97, 1.03) + rng.normal(0, 0.003, photo.shape)
        for photo in photos
    ]
    model = Padim(evaluator=False, visualizer=False)
    normalise = model.pre_processor.transform.transforms[-1]
    model.model.train()
    for batch in torch.tensor(np.array(photos + second), dtype=torch.float32).permute(0, 3, 1, 2).split(8):
        model.model(normalise(batch))
    likenesses = model.model.likenesses.photos(slice(None))
    # What is said of few parts: none of 10 is found, and less than half of 20.
    for parts, least, most in ((10, 0, 0), (20, 1, 9), (60, 40, 60)):
        of_both = torch.cat([likenesses[:parts], likenesses[60 : 60 + parts]])
        found = {(copy.first, copy.second) for copy in near_copies(kept(of_both))}
        twins = {(i, i + parts) for i in range(parts)}
        assert least <= len(found & twins) <= most
        assert len(found - twins) <= 3
