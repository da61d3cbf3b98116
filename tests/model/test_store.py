import tempfile

import pytest
import torch

from padim_bottle.model.store import PhotoStore


def stored(tensor, batch_size=3):
    store = PhotoStore()
    for batch in tensor.split(batch_size):
        store.append(batch)
    return store


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_blocks_of_positions_come_back_as_they_went_in(batch_size):
    embedding = torch.randn(10, 13, 4)
    store = stored(embedding, batch_size)
    assert len(store) == 10
    for block in (slice(0, 5), slice(5, 10), slice(10, 15), slice(None)):
        assert torch.equal(store.block(block), embedding[:, block])


def test_a_batch_that_is_no_plain_memory_is_kept_right():
    embedding = torch.randn(4, 6, 10).transpose(1, 2)
    assert torch.equal(stored(embedding).block(slice(2, 9)), embedding[:, 2:9])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_photos_come_back_with_their_type_and_in_their_memory_format(dtype, memory_format):
    maps = (torch.rand(7, 3, 4, 5) * 9).to(dtype).contiguous(memory_format=memory_format)
    store = stored(maps)
    for chosen in (torch.tensor([6, 0, 3]), slice(2, 5), slice(5, 99)):
        photos = store.photos(chosen)
        assert photos.dtype == dtype
        assert torch.equal(photos, maps[chosen])
        assert photos.is_contiguous(memory_format=memory_format)


def test_nothing_is_left_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = PhotoStore()
    store.append(torch.zeros(2, 3, 4))
    assert list(tmp_path.iterdir()) == []  # no name, so even a killed process leaves nothing
    store.clear()
    assert len(store) == 0
    store.append(torch.ones(1, 3, 4))
    assert torch.equal(store.block(slice(None)), torch.ones(1, 3, 4))
