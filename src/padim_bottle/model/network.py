"""PaDiM's network: embeddings of patches, Gaussians at their positions, anomaly maps."""

from typing import Literal

import torch
from anomalib.data import InferenceBatch
from anomalib.models.image.padim.torch_model import PadimModel as AnomalibPadimModel
from torch.nn import functional as F  # noqa: N812

from padim_bottle.errors import UserError
from padim_bottle.model.anomaly_map import SmoothUpsample
from padim_bottle.model.calibration import Calibration, calibrate, check_image_count, leave_one_out_distances
from padim_bottle.model.embedding_bank import EmbeddingBank
from padim_bottle.model.gaussian import PatchGaussians, pack_lower

Reduction = Literal["random", "orthogonal"]

# Positions per block while fitting: bounds the working memory to about 64 (N + 6 d) d numbers.
BLOCK = 64


class PadimModel(AnomalibPadimModel):
    """Anomalib's PaDiM network, with the same mathematics in less time and memory.

    Args:
        backbone: timm name or ``local-dir:<folder>``.
        layers: layers to join, from shallow to deep.
        pre_trained: load weights; else the network is random, with fixed weights whatever the seed.
        n_features: features d to keep of the joined channels.
        seed: decides which channels are kept, or the projection.
        reduction: ``random`` keeps d channels (Defard et al. 2021); ``orthogonal`` projects all channels by a
            random semi-orthogonal matrix (Kim et al. 2021, arXiv 2105.14737).
        neighborhood: side of the square of positions that each layer's features are averaged over before the layers
            are joined; 1 is PaDiM's, 3 PatchCore's (Roth et al. 2022, section 3.1).
        position_calibration: score an image by its largest standardised pixel, once calibrated.
        storage_dtype: of the precision factors in a checkpoint.
    """

    def __init__(
        self,
        backbone: str,
        layers: list[str],
        pre_trained: bool,
        n_features: int,
        seed: int = 0,
        reduction: Reduction = "random",
        neighborhood: int = 1,
        position_calibration: bool = False,
        storage_dtype: torch.dtype = torch.float32,
    ) -> None:
        # A network that is not loaded, and the channels that anomalib draws, come from the global generator:
        # fixed here, and the caller's state left alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(backbone, layers, pre_trained, n_features)
        self.feature_extractor.to(memory_format=torch.channels_last)
        self.layer_channels = list(self.feature_extractor.out_dims)
        self.reduction = reduction
        self.neighborhood = neighborhood
        self.position_calibration = position_calibration
        self.calibrating = False

        generator = torch.Generator().manual_seed(seed)
        channels = sum(self.layer_channels)
        if reduction == "random":
            # Sorted: the order changes no distance, and each layer's channels then stand together.
            self.idx = torch.randperm(channels, generator=generator)[:n_features].sort().values
        else:
            self.idx = torch.empty(0, dtype=torch.long)
            gaussian = torch.randn(channels, n_features, generator=generator, dtype=torch.float64)
            q, r = torch.linalg.qr(gaussian)
            # Signs that make the decomposition unique make q uniform over such matrices (Mezzadri 2007).
            self.register_buffer("projection", (q * r.diagonal().sign()).float())

        # How many channels of each layer are kept: counted when first needed, as numbers that tracing can rely on.
        self._kept: list[int] | None = None

        self.gaussian = PatchGaussians(storage_dtype)
        self.memory_bank = EmbeddingBank()
        self.anomaly_map_generator = SmoothUpsample()
        self.register_buffer("map_mean", torch.empty(0))
        self.register_buffer("map_std", torch.empty(0))
        self.map_mean: torch.Tensor
        self.map_std: torch.Tensor
        self.grid: tuple[int, int] | None = None
        self.image_size: tuple[int, int] | None = None

    def forward(self, input_tensor: torch.Tensor) -> torch.Tensor | InferenceBatch:
        """Collect the embeddings of a batch (training) or score it.

        Args:
            input_tensor: (B, 3, H, W), normalised images.

        Returns:
            While training the embeddings (B, P, d), else an ``InferenceBatch`` with raw ``pred_score`` (B, 1) and
            ``anomaly_map`` (B, 1, H, W).
        """
        if self.tiler:
            raise UserError("Tiling is not supported by this Padim: anomalib.models.Padim has it.")
        image_size = tuple(input_tensor.shape[-2:])
        with torch.no_grad():
            features = self.feature_extractor(input_tensor.contiguous(memory_format=torch.channels_last))
            embedding = self.generate_embedding(features)
        if self.training:
            self.grid, self.image_size = tuple(features[self.layers[0]].shape[-2:]), image_size
            self.gaussian.update(embedding)
            if self.calibrating:
                self.memory_bank.append(embedding)
            return embedding

        distances = self.gaussian.distance(embedding).unflatten(1, tuple(features[self.layers[0]].shape[-2:]))
        anomaly_map = self.anomaly_map_generator(distances[:, None], image_size)
        return InferenceBatch(pred_score=self.image_score(anomaly_map), anomaly_map=anomaly_map)

    def image_score(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, 1) of anomaly maps (B, 1, H, W): the largest pixel, standardised once calibrated."""
        if self.position_calibration and self.map_std.numel():
            anomaly_map = (anomaly_map - self.map_mean) / self.map_std
        return torch.amax(anomaly_map, dim=(-2, -1))

    def generate_embedding(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Join the layers' features at the first layer's resolution, reduced to d features.

        Reduction comes before up-sampling: nearest-neighbour up-sampling, pooling and a projection act on channels
        and positions separately, so only d channels are ever carried at full resolution.

        Args:
            features: a map (B, C, h, w) for each layer.

        Returns:
            (B, P, d), float32.
        """
        grid = features[self.layers[0]].shape[-2:]
        parts = []
        start = first = 0
        if self._kept is None:
            self._kept = self._count_kept()
        for layer, channels, kept in zip(self.layers, self.layer_channels, self._kept, strict=True):
            # Channels last: (B, h, w, C) is how the features lie in memory.
            feature = features[layer].float().permute(0, 2, 3, 1)
            if self.reduction == "random":
                # Sorted, so a layer's channels stand together.
                feature = feature[..., self.idx[first : first + kept] - start]
            else:
                feature = feature @ self.projection[start : start + channels]
            start, first = start + channels, first + kept
            feature = feature.permute(0, 3, 1, 2)
            if self.neighborhood > 1 and feature.shape[1]:
                feature = F.avg_pool2d(
                    feature,
                    self.neighborhood,
                    stride=1,
                    padding=self.neighborhood // 2,
                    count_include_pad=False,
                )
            if feature.shape[-2:] != grid and feature.shape[1]:
                feature = F.interpolate(feature, size=grid, mode="nearest")
            parts.append(feature.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.cat(parts, dim=-1) if self.reduction == "random" else torch.stack(parts).sum(dim=0)

    def _count_kept(self) -> list[int]:
        ends = torch.tensor([0, *self.layer_channels], device=self.idx.device).cumsum(0)
        return torch.searchsorted(self.idx, ends).diff().tolist()

    def fit(self) -> None:
        """Fit the Gaussians to the embeddings seen in training; see ``fit_and_calibrate``."""
        self._fit(None)

    def fit_and_calibrate(self, pixel_quantile: float) -> Calibration:
        """Fit the Gaussians and take leave-one-out statistics of the training images.

        A training image costs 4 P d bytes for its embedding (1.6 MB at P = 4096, d = 100; on disk when training on the
        CPU, see ``EmbeddingBank``) and 4 P bytes of memory for its leave-one-out distances (16 KB). Positions are
        processed in blocks of ``BLOCK``.

        Raises:
            UserError: fewer than three training images.
        """
        check_image_count(self.gaussian.count)
        distances = torch.empty(self.gaussian.count, self.gaussian.mean.shape[0], device=self.gaussian.mean.device)
        self._fit(distances)
        self.memory_bank.clear()
        calibration = calibrate(
            distances.unflatten(1, self.grid),
            lambda batch: self.anomaly_map_generator(batch[:, None], self.image_size)[:, 0],
            pixel_quantile=pixel_quantile,
            position_calibration=self.position_calibration,
        )
        self.map_mean, self.map_std = calibration.map_mean, calibration.map_std
        return calibration

    def _fit(self, distances: torch.Tensor | None) -> None:
        count = self.gaussian.count
        if count < 2:
            raise UserError(f"PaDiM needs at least 2 training images to estimate a covariance, found {count}.")
        for start in range(0, self.gaussian.mean.shape[0], BLOCK):
            block = slice(start, start + BLOCK)
            if distances is not None:
                deltas = self.memory_bank.block(block).sub_(self.gaussian.mean[block])
                distances[:, block] = leave_one_out_distances(deltas, self.gaussian.covariance(block, count - 2))
            self.gaussian.factorize(block)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        if prefix + "gaussian.inv_covariance" in state_dict:
            _from_anomalib(state_dict, prefix)
        for name in ("idx", "map_mean", "map_std"):
            value = state_dict.setdefault(prefix + name, torch.empty(0))
            setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        self._kept = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def anomalib_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state dict of anomalib's ``PadimModel`` with the same channels, means and covariances.

        Raises:
            UserError: the embedding is not the paper's, so anomalib's class cannot hold it.
        """
        if self.reduction != "random" or self.neighborhood != 1:
            raise UserError(
                "Only an embedding with reduction: random and neighborhood: 1 can be written in anomalib's layout; "
                f"this model has reduction: {self.reduction} and neighborhood: {self.neighborhood}."
            )
        state = {f"feature_extractor.{k}": v for k, v in self.feature_extractor.state_dict().items()}
        state["idx"] = self.idx
        state["gaussian.mean"] = self.gaussian.mean.T.contiguous()
        state["gaussian.inv_covariance"] = self.gaussian.inv_covariance
        return state


def _from_anomalib(state_dict: dict, prefix: str) -> None:
    """Turn the entries of anomalib's layout into ours, in place: channels sorted, positions first, factors."""
    order = state_dict[prefix + "idx"].argsort()
    state_dict[prefix + "idx"] = state_dict[prefix + "idx"][order]
    state_dict[prefix + "gaussian.mean"] = state_dict[prefix + "gaussian.mean"][order].T.contiguous()
    precision = state_dict.pop(prefix + "gaussian.inv_covariance")[:, order][:, :, order]
    state_dict[prefix + "gaussian.precision_cholesky"] = pack_lower(torch.linalg.cholesky(precision))
    state_dict.pop(prefix + "anomaly_map_generator.blur.kernel", None)
