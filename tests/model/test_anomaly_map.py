import pytest
import torch
from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator
from small_padim import small_padim

from padim_bottle.model.anomaly_map import SmoothUpsample


def smoothed(distances, size, sigma):
    anomalib = AnomalyMapGenerator(sigma=sigma)
    return anomalib.smooth_anomaly_map(anomalib.up_sample(distances, size))


@pytest.mark.parametrize("sigma", [2, 4, 8])
@pytest.mark.parametrize(("grid", "image"), [((64, 64), (256, 256)), ((16, 24), (64, 96)), ((20, 20), (77, 81))])
def test_two_matrix_products_equal_anomalibs_upsampling_and_blur(grid, image, sigma):
    distances = torch.rand(3, 1, *grid, generator=torch.Generator().manual_seed(0)) * 30
    actual = SmoothUpsample(sigma=sigma)(distances, image)
    torch.testing.assert_close(actual, smoothed(distances, image, sigma), rtol=2e-5, atol=1e-4)


def test_the_models_sigma_is_that_of_its_maps():
    distances = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    actual = small_padim(sigma=6.0).model.to_map([distances], (64, 64), None)
    torch.testing.assert_close(actual, smoothed(distances[:, None], (64, 64), 6), rtol=0, atol=1e-5)
