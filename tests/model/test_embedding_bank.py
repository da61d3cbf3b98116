import tempfile

import pytest
import torch

from padim_bottle.model.embedding_bank import EmbeddingBank


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_blocks_of_positions_come_back_as_they_went_in(batch_size):
    embedding = torch.randn(10, 13, 4)
    bank = EmbeddingBank()
    for batch in embedding.split(batch_size):
        bank.append(batch)
    assert bank.count == 10
    for block in (slice(0, 5), slice(5, 10), slice(10, 15), slice(None)):
        assert torch.equal(bank.block(block), embedding[:, block])


def test_a_batch_that_is_no_plain_memory_is_kept_right():
    embedding = torch.randn(4, 6, 10).transpose(1, 2)
    bank = EmbeddingBank()
    bank.append(embedding)
    assert torch.equal(bank.block(slice(2, 9)), embedding[:, 2:9])


def test_nothing_is_left_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bank = EmbeddingBank()
    bank.append(torch.zeros(2, 3, 4))
    assert list(tmp_path.iterdir()) == []  # no name, so even a killed process leaves nothing
    bank.clear()
    assert bank.count == 0
    bank.append(torch.ones(1, 3, 4))
    assert torch.equal(bank.block(slice(None)), torch.ones(1, 3, 4))
