"""PaDiM's network: embeddings of patches, Gaussians at their positions, anomaly maps.

PaDiM on one screen (ResNet-18, 256 x 256; B images, N training images):

    features    = backbone(images)                        layer1 (B, 64, 64, 64), layer2 (B, 128, 32, 32), ...
    embedding   = join layers, keep 100 channels          (B, 4096, 100)
    training:     mean m (4096, 100), covariance S (4096, 100, 100) over the N images, at each position
    distances   = sqrt((x - m)^T S^-1 (x - m))            (B, 64, 64)
    anomaly map = up-sample, blur                         (B, 1, 256, 256)
    score       = largest pixel                           (B, 1)

With several grids there is an embedding, and a Gaussian a position, for each of them, and their distances are fused.
"""

from collections.abc import Sequence

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.padim.torch_model import PadimModel as AnomalibPadimModel
from torch import nn

from padim_bottle.errors import UserError
from padim_bottle.model.anomaly_map import SmoothUpsample, fuse, grey_photo, guide, lift
from padim_bottle.model.calibration import Calibration, calibrate, check_parts
from padim_bottle.model.copies import similarity
from padim_bottle.model.embedding import PatchEmbedding, Reduction
from padim_bottle.model.embedding_bank import EmbeddingBank
from padim_bottle.model.gaussian import PatchGaussians, pack_lower
from padim_bottle.model.grid import PatchGrid
from padim_bottle.model.parts import Parts

# Positions at which copies are looked for; more tell no more.
LIKENESS_POSITIONS = 32


class PadimModel(AnomalibPadimModel):
    """Anomalib's PaDiM network, with the same mathematics in less time and memory, on one grid or on several.

    Args:
        backbone: timm name or ``local-dir:<folder>``.
        layers: layers to join, from shallow to deep.
        pre_trained: load weights; else the network is random, with fixed weights whatever the seed.
        n_features: features d to keep of the joined channels; of each grid, if there are several and it has more.
        seed: decides which channels are kept, or the projection.
        reduction: see ``PatchEmbedding``.
        neighborhood: see ``PatchEmbedding``.
        position_calibration: score an image by its largest standardised pixel, once calibrated.
        storage_dtype: of the precision factors in a checkpoint.
        grids: the layers of each grid, from fine to coarse; ``None`` for the paper's one grid of ``layers``.
        support: how far a fine grid is believed without the next coarser one, see ``fuse``.
        sigma: standard deviation in pixels of the Gaussian over the map.
        guided: radius in pixels of the guided filter over the map, see ``guide``; ``None`` for none.
    """

    def __init__(
        self,
        backbone: str,
        layers: list[str],
        pre_trained: bool,
        n_features: int | None,
        seed: int = 0,
        reduction: Reduction = "random",
        neighborhood: int = 1,
        position_calibration: bool = False,
        storage_dtype: torch.dtype = torch.float32,
        grids: Sequence[Sequence[str]] | None = None,
        support: float = 1.0,
        sigma: float = 4.0,
        guided: int | None = None,
    ) -> None:
        # anomalib's class would build its own Gaussians: skip its __init__, call that of its base.
        super(AnomalibPadimModel, self).__init__()
        self.tiler = None
        self.loss = None
        self.backbone = backbone
        self.layers = list(layers)
        # A network that is not loaded comes from the global generator: fixed here, and the caller's state left alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.feature_extractor = TimmFeatureExtractor(backbone=backbone, layers=layers, pre_trained=pre_trained)
        self.feature_extractor.eval().to(memory_format=torch.channels_last)
        channels = dict(zip(self.layers, self.feature_extractor.out_dims, strict=True))
        self.n_features_original = sum(channels.values())
        self.n_features = n_features
        self.position_calibration = position_calibration
        self.fused = grids is not None
        self.support = support
        self.guided = guided
        self.calibrating = False
        self.grids = nn.ModuleList()
        for chosen in grids or [self.layers]:
            width = sum(channels[layer] for layer in chosen)
            embedding = PatchEmbedding(
                chosen,
                [channels[layer] for layer in chosen],
                width if n_features is None else min(n_features, width),
                seed,
                reduction,
                neighborhood,
                pooled=self.fused,
            )
            self.grids.append(PatchGrid(embedding, storage_dtype))
        # By which copies among the training images are told: all channels, pooled.
        self.likeness = PatchEmbedding(self.layers, list(channels.values()), self.n_features_original, pooled=True)
        self.likenesses = EmbeddingBank()
        self.guidance = EmbeddingBank()
        self.anomaly_map_generator = SmoothUpsample(sigma)
        self.register_buffer("map_mean", torch.empty(0))
        self.register_buffer("map_std", torch.empty(0))
        self.map_mean: torch.Tensor
        self.map_std: torch.Tensor
        self.image_size: tuple[int, int] = (0, 0)
        self._left_out: list[torch.Tensor] = []

    @property
    def gaussian(self) -> PatchGaussians:
        """The Gaussians of the first grid; of PaDiM's only one."""
        return self.grids[0].gaussian

    @property
    def idx(self) -> torch.Tensor:
        """The channels that the first grid keeps, sorted; empty where they are projected."""
        return self.grids[0].embedding.idx

    @property
    def projection(self) -> torch.Tensor:
        """The projection (C, d) of the first grid; empty where channels are kept."""
        return self.grids[0].embedding.projection

    @property
    def is_random(self) -> bool:
        """Whether a seed decides anything."""
        return any(grid.embedding.is_random for grid in self.grids)

    def forward(self, input_tensor: torch.Tensor) -> torch.Tensor | InferenceBatch:
        """Collect the embeddings of a batch (training) or score it.

        Args:
            input_tensor: (B, 3, H, W), normalised images.

        Returns:
            While training the embeddings (B, P, d) of the first grid, else an ``InferenceBatch`` with raw
            ``pred_score`` (B, 1) and ``anomaly_map`` (B, 1, H, W).
        """
        if self.tiler:
            raise UserError("Tiling is not supported by this Padim: anomalib.models.Padim has it.")
        with torch.no_grad():
            features = self.feature_extractor(input_tensor.contiguous(memory_format=torch.channels_last))
        if self.training:
            self.image_size = (input_tensor.shape[-2], input_tensor.shape[-1])
            if self.calibrating:
                embedding = self.likeness(features)
                self.likenesses.append(embedding[:, :: max(1, embedding.shape[1] // LIKENESS_POSITIONS)])
            if self.calibrating and self.guided is not None:
                self.guidance.append(grey_photo(input_tensor).flatten(2).mT)
            embeddings = [grid.collect(features, keep=self.calibrating) for grid in self.grids]
            return embeddings[0]
        distances = [grid.distance(features) for grid in self.grids]
        photo = None if self.guided is None else grey_photo(input_tensor)
        anomaly_map = self.to_map(distances, (input_tensor.shape[-2], input_tensor.shape[-1]), photo)
        return InferenceBatch(pred_score=self.image_score(anomaly_map), anomaly_map=anomaly_map)

    def generate_embedding(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the embeddings (B, P, d) of the first grid."""
        return self.grids[0].embedding(features)

    def to_map(
        self, distances: Sequence[torch.Tensor], image_size: tuple[int, int], photo: torch.Tensor | None
    ) -> torch.Tensor:
        """Return anomaly maps (B, 1, H, W) of the Mahalanobis distances (B, h, w) at each grid.

        Args:
            distances: of each grid.
            image_size: H and W.
            photo: (B, 1, H, W) grey images in [0, 1], for the guided filter.
        """
        if self.fused:
            evidence = fuse(distances, [grid.typical for grid in self.grids], self.support)
        else:
            (evidence,) = distances
        anomaly_map = self.anomaly_map_generator(evidence.unflatten(0, (-1, 1)), image_size)
        return anomaly_map if photo is None or self.guided is None else guide(anomaly_map, photo, self.guided)

    def image_score(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, 1) of anomaly maps (B, 1, H, W): the largest pixel, standardised once calibrated."""
        if self.position_calibration and self.map_std.numel():
            anomaly_map = (anomaly_map - self.map_mean) / self.map_std
        return torch.amax(anomaly_map, dim=(-2, -1))

    def reset(self) -> None:
        """Forget what was collected and fitted: training starts afresh."""
        for grid in self.grids:
            grid.reset()
        self.likenesses.clear()
        self.guidance.clear()
        self.map_mean, self.map_std = self.map_mean.new_empty(0), self.map_std.new_empty(0)
        self._left_out = []

    def forget_embeddings(self) -> None:
        """Free what only the fit needed; the leave-one-out maps stay."""
        for grid in self.grids:
            grid.bank.clear()
        self.likenesses.clear()

    def fit(self) -> None:
        """Fit the Gaussians to the embeddings seen in training; see ``fit_and_calibrate``."""
        for grid in self.grids:
            grid.fit(None)

    def fit_and_calibrate(self, pixel_quantile: float, parts: Parts | None = None) -> Calibration:
        """Fit the Gaussians and take leave-one-out statistics of the training images.

        A training image costs 4 P d bytes for its embedding (1.6 MB at P = 4096, d = 100; on disk when training on the
        CPU, see ``EmbeddingBank``) and 4 P bytes of memory for its leave-one-out distances (16 KB). Positions are
        processed block by block.

        Args:
            pixel_quantile: the pixel threshold is this quantile of the leave-one-out pixels.
            parts: the parts that the N training images show, in the order in which they were seen; ``None`` for one
                image a part.

        Raises:
            UserError: fewer than three parts.
        """
        parts = parts or Parts.of_photos([""] * self.gaussian.count, None)
        check_parts(parts)
        self._left_out = [grid.fit(parts) for grid in self.grids]
        if self.fused:
            fine = self._left_out[0].shape[-2:]
            for grid, distances in zip(self.grids, self._left_out, strict=True):
                batches = distances.split(8)
                total = sum(lift(batch.square(), fine).sum(dtype=torch.float64) for batch in batches)
                grid.typical.copy_((total / (len(distances) * fine.numel())).clamp_min(1e-12))
        calibration = calibrate(
            self.leave_one_out_maps,
            parts,
            pixel_quantile=pixel_quantile,
            position_calibration=self.position_calibration,
        )
        self.map_mean, self.map_std = calibration.map_mean, calibration.map_std
        return calibration

    def image_similarities(self) -> torch.Tensor:
        """Return how similar the N training images are (N, N), before or after the fit; see ``similarity``."""
        return similarity(self.likenesses.block(slice(None)))

    def leave_one_out_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the anomaly maps (n, H, W) of training images, each by the Gaussians fitted without its part.

        Args:
            images: (n,) indices, in the order of training; available from the fit to the next training.
        """
        photo = None
        if self.guided is not None:
            photo = self.guidance.images(images).mT.unflatten(2, self.image_size)
        distances = [left_out[images] for left_out in self._left_out]
        return self.to_map(distances, self.image_size, photo)[:, 0]

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        if prefix + "gaussian.inv_covariance" in state_dict:
            _from_anomalib(state_dict, prefix)
        # The layout of version 0.1, which had one grid.
        for name in [key for key in state_dict if key.startswith(prefix)]:
            key = name.removeprefix(prefix)
            room = "grids.0." if key.startswith("gaussian.") else "grids.0.embedding."
            if key in ("idx", "projection") or key.startswith("gaussian."):
                state_dict[prefix + room + key] = state_dict.pop(name)
        for index in range(len(self.grids)):
            state_dict.setdefault(f"{prefix}grids.{index}.typical", torch.tensor(torch.nan))
        for name in ("map_mean", "map_std"):
            value = state_dict.setdefault(prefix + name, torch.empty(0))
            setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def anomalib_state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state dict of anomalib's ``PadimModel`` with the same channels, means and covariances.

        Raises:
            UserError: the embedding is not the paper's, so anomalib's class cannot hold it.
        """
        embedding = self.grids[0].embedding
        if self.fused or embedding.reduction != "random" or embedding.neighborhood != 1:
            raise UserError(
                "Only an embedding with grids: null, reduction: random and neighborhood: 1 can be written in "
                f"anomalib's layout; this model has {len(self.grids)} grids, reduction: {embedding.reduction} and "
                f"neighborhood: {embedding.neighborhood}."
            )
        state = {f"feature_extractor.{k}": v for k, v in self.feature_extractor.state_dict().items()}
        state["idx"] = self.idx
        state["gaussian.mean"] = self.gaussian.mean.T.contiguous()
        state["gaussian.inv_covariance"] = self.gaussian.inv_covariance
        return state


def _from_anomalib(state_dict: dict[str, torch.Tensor], prefix: str) -> None:
    """Turn the entries of anomalib's layout into ours, in place: channels sorted, positions first, factors."""
    order = state_dict[prefix + "idx"].argsort()
    state_dict[prefix + "idx"] = state_dict[prefix + "idx"][order]
    state_dict[prefix + "gaussian.mean"] = state_dict[prefix + "gaussian.mean"][order].T.contiguous()
    precision = state_dict.pop(prefix + "gaussian.inv_covariance")[:, order][:, :, order]
    state_dict[prefix + "gaussian.precision_cholesky"] = pack_lower(torch.linalg.cholesky(precision))
    state_dict.pop(prefix + "anomaly_map_generator.blur.kernel", None)
