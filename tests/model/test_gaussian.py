import logging

import numpy as np
import pytest
import torch
from anomalib.models.components import MultiVariateGaussian

from padim_bottle.errors import UserError
from padim_bottle.model import gaussian
from padim_bottle.model.gaussian import COVARIANCE_EPSILON, PatchGaussians, pack_lower, precision_cholesky, unpack_lower

EPSILON = COVARIANCE_EPSILON * torch.eye(6, dtype=torch.float64)


def embeddings(count=40, positions=9, features=6, seed=0, offset=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    return offset + spread * torch.randn(count, positions, features, generator=generator) @ mixing


def fitted(embedding, block=4, **kwargs):
    gaussians = PatchGaussians(**kwargs)
    gaussians.allocate(*embedding.shape[1:])
    for start in range(0, embedding.shape[1], block):
        gaussians.fit(embedding[:, start : start + block].clone(), start)
    return gaussians


def test_mean_and_inverse_covariance_equal_anomalibs():
    embedding = embeddings(positions=12)
    anomalib = MultiVariateGaussian()
    anomalib.fit(embedding.mT.reshape(40, 6, 3, 4))
    ours = fitted(embedding)
    torch.testing.assert_close(ours.mean.T, anomalib.mean, rtol=1e-5, atol=1e-6)
    scale = anomalib.inv_covariance.abs().max()
    torch.testing.assert_close(ours.inv_covariance / scale, anomalib.inv_covariance / scale, rtol=0, atol=1e-5)


def test_distance_is_the_textbook_mahalanobis_distance():
    embedding = embeddings(positions=4)
    gaussians = fitted(embedding)
    distance = gaussians.distance(embedding[:5])
    for position in range(4):
        x = embedding[:, position].double().numpy()
        inverse = np.linalg.inv(np.cov(x.T) + COVARIANCE_EPSILON * np.eye(6))
        delta = x[:5] - x.mean(0)
        expected = np.sqrt(np.einsum("nd,de,ne->n", delta, inverse, delta))
        np.testing.assert_allclose(distance[:, position].numpy(), expected, rtol=1e-5)


def test_statistics_survive_a_large_common_offset():
    embedding = embeddings(count=100, offset=1e4, spread=1.0)
    gaussians = fitted(embedding)
    x = embedding.double()
    expected = torch.linalg.inv(torch.einsum("npd,npe->pde", x - x.mean(0), x - x.mean(0)) / 99 + EPSILON)
    torch.testing.assert_close(gaussians.mean.double(), x.mean(0), rtol=1e-6, atol=0)
    close = {"rtol": 1e-3, "atol": 1e-3 * expected.abs().max().item()}
    torch.testing.assert_close(gaussians.inv_covariance.double(), expected, **close)


@pytest.mark.parametrize("block", [1, 2, 9])
def test_order_and_blocks_do_not_matter(block):
    embedding = embeddings()
    expected = fitted(embedding)
    shuffled = embedding[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    ours = fitted(shuffled, block)
    torch.testing.assert_close(ours.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.inv_covariance, expected.inv_covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("features", "width"), [(30, 25), (7, 25), (50, 10)])
def test_distances_without_the_zeros_are_the_same(features, width, dtype, monkeypatch):
    monkeypatch.setattr(gaussian, "WIDTH", width)
    embedding = torch.randn(24, 6, features, generator=torch.Generator().manual_seed(0))
    gaussians = fitted(embedding, storage_dtype=dtype)
    delta = (embedding[:5] - gaussians.mean).double()
    expected = torch.einsum("bpi,pij,bpj->bp", delta, gaussians.inv_covariance.double(), delta).sqrt()
    for held in (torch.float32, dtype):
        gaussians.hold_as(held)
        torch.testing.assert_close(gaussians.distance(embedding[:5]).double(), expected, rtol=1e-5, atol=1e-5)


def test_precision_cholesky_is_the_unique_lower_factor_of_the_inverse():
    x = embeddings(features=8)[:, 0].double()
    covariance = torch.cov(x.T)[None]
    factor = precision_cholesky(covariance)
    torch.testing.assert_close(factor, torch.linalg.cholesky(torch.linalg.inv(covariance)))


def test_a_covariance_that_is_not_positive_definite_gets_jitter_and_a_warning(caplog):
    covariance = torch.eye(3).repeat(4, 1, 1)
    covariance[2] = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # eigenvalue -1
    with caplog.at_level(logging.WARNING):
        factor = precision_cholesky(covariance)
    assert torch.isfinite(factor).all()
    torch.testing.assert_close(factor[0], torch.eye(3))
    assert "1 of 4 covariance matrices are not positive definite" in caplog.text


def test_jitter_grows_until_it_is_enough_and_is_named(caplog):
    covariance = torch.diag(torch.tensor([4.0, 2.0, -3e-5], dtype=torch.float64))  # mean variance 2, almost
    with caplog.at_level(logging.WARNING):
        factor = precision_cholesky(covariance[None])[0]
    scale = covariance.diagonal().mean()
    assert [record.args[2] for record in caplog.records] == pytest.approx([1e-6, 1e-5, 1e-4])
    assert caplog.records[0].args[3] == pytest.approx(scale.item())
    mended = covariance + 1e-4 * scale * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.mT, torch.linalg.inv(mended))


def test_features_that_are_not_finite_are_refused():
    embedding = embeddings()
    embedding[3, 2, 1] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        fitted(embedding)


def test_packing_keeps_the_triangle():
    matrices = torch.randn(5, 7, 7).tril()
    packed = pack_lower(matrices)
    assert packed.shape == (5, 28)
    assert torch.equal(unpack_lower(packed, 7), matrices)


def test_half_precision_checkpoint_holds_exactly_what_is_in_memory():
    embedding = embeddings()
    gaussians = fitted(embedding, storage_dtype=torch.float16)
    state = gaussians.state_dict()
    assert state["precision_cholesky"].dtype == torch.float16
    assert state["precision_cholesky"].shape == (9, 21)
    restored = PatchGaussians()
    with pytest.raises(RuntimeError, match="precision_cholesky"):
        restored.load_state_dict({"mean": state["mean"]})
    restored.load_state_dict(state)
    assert torch.equal(restored.distance(embedding), gaussians.distance(embedding))
    # and is close to full precision
    torch.testing.assert_close(gaussians.distance(embedding), fitted(embedding).distance(embedding), rtol=2e-3, atol=0)
