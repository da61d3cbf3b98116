import pytest
import torch
from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator

from padim_bottle.model.anomaly_map import SmoothUpsample


@pytest.mark.parametrize(("grid", "image"), [((64, 64), (256, 256)), ((16, 24), (64, 96)), ((20, 20), (77, 81))])
def test_two_matrix_products_equal_anomalibs_upsampling_and_blur(grid, image):
    distances = torch.rand(3, 1, *grid, generator=torch.Generator().manual_seed(0)) * 30
    anomalib = AnomalyMapGenerator(sigma=4)
    expected = anomalib.smooth_anomaly_map(anomalib.up_sample(distances, image))
    torch.testing.assert_close(SmoothUpsample(sigma=4)(distances, image), expected, rtol=0, atol=1e-4)
