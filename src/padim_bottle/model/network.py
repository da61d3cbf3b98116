"""PaDiM's network: embeddings of patches, Gaussians at their positions, anomaly maps.

PaDiM on one screen (ResNet-18, 256 x 256; B images, N training images):

    features    = backbone(images)                        layer1 (B, 64, 64, 64), layer2 (B, 128, 32, 32), ...
    embedding   = join layers, keep 100 channels          (B, 4096, 100)
    training:     mean m (4096, 100), covariance S (4096, 100, 100) over the N images, at each position
    distances   = sqrt((x - m)^T S^-1 (x - m))            (B, 64, 64)
    anomaly map = up-sample, blur                         (B, 1, 256, 256)
    score       = largest pixel                           (B, 1)

With several grids there is an embedding, and a Gaussian a position, for each of them, and their distances are fused.
The score may also be the largest distance at the coarsest grid, without a map, and it may damp the map in turn.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from anomalib.data import InferenceBatch
from anomalib.models.image.padim.torch_model import PadimModel as AnomalibPadimModel
from numpy.typing import NDArray
from torch import nn

from padim_bottle.errors import UserError
from padim_bottle.model.anomaly_map import SmoothUpsample, damp, fuse, grey_photo, guide, lift
from padim_bottle.model.calibration import Calibration, calibrate, check_parts, kept_maps
from padim_bottle.model.embedding import PatchEmbedding
from padim_bottle.model.extractor import FrozenBackbone
from padim_bottle.model.gaussian import PatchGaussians, pack_lower
from padim_bottle.model.grid import PatchGrid
from padim_bottle.model.parts import Parts
from padim_bottle.model.rule import Rule
from padim_bottle.model.store import PhotoStore
from padim_bottle.stages import stage

# The backbone's maps (B, C, h, w) of a batch, by layer.
Features = dict[str, torch.Tensor]

# Positions at which copies are looked for; more tell no more.
LIKENESS_POSITIONS = 32

# A map is damped by half where its photo's score is the threshold for this false-alarm rate.
DAMPING_ALPHA = 0.05


def single_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context of all that follows the backbone: with mixed precision only that runs in bfloat16."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


class PadimModel(AnomalibPadimModel):
    """Anomalib's PaDiM network, with the same mathematics in less time and memory, on one grid or on several.

    Args:
        backbone: timm name or ``local-dir:<folder>``.
        layers: layers to join, from shallow to deep.
        pre_trained: load weights; else the network is random, see ``FrozenBackbone``.
        n_features: features d to keep of the joined channels; of each grid, if there are several and it has more.
        seed: decides which channels are kept.
        position_calibration: score an image by its largest standardised value, once calibrated.
        storage_dtype: of the precision factors in a checkpoint.
        grids: the layers of each grid, from fine to coarse; ``None`` for the paper's one grid of ``layers``.
        support: how far a fine grid is believed without the next coarser one, see ``fuse``.
        sigma: standard deviation in pixels of the Gaussian over the map.
        guided: radius in pixels of the guided filter over the map, see ``guide``; ``None`` for none.
        prior_freedom: of the position calibration, see ``PositionStatistics``.
        share: positions a side that share a covariance, of each grid; ``None`` for none.
        coarsest_side: largest number of positions a side of the last of several grids.
        tolerance: of the last grid, see ``PatchGrid``.
        image_score: what a score is the largest value of: the ``map``, or the ``distances`` at the coarsest grid.
        damped: damp the map of a photo that looks good as a whole, see ``anomaly_map.damp``.
        image_size: height and width of the images, see ``FrozenBackbone``.
    """

    def __init__(
        self,
        backbone: str,
        layers: list[str],
        pre_trained: bool,
        n_features: int | None,
        seed: int = 0,
        position_calibration: bool = False,
        storage_dtype: torch.dtype = torch.float32,
        grids: Sequence[Sequence[str]] | None = None,
        support: float = 1.0,
        sigma: float = 4.0,
        guided: int | None = None,
        prior_freedom: float = 0.0,
        share: Sequence[int] | None = None,
        coarsest_side: int | None = None,
        tolerance: int = 0,
        image_score: Literal["map", "distances"] = "map",
        damped: bool = False,
        image_size: Sequence[int] | None = None,
    ) -> None:
        # anomalib's class would build its own Gaussians: skip its __init__, call that of its base.
        super(AnomalibPadimModel, self).__init__()
        self.tiler = None
        self.loss = None
        self.backbone = backbone
        self.layers = list(layers)
        self.feature_extractor = FrozenBackbone(backbone, layers, pre_trained, image_size)
        channels = dict(zip(self.layers, self.feature_extractor.out_dims, strict=True))
        self.n_features_original = sum(channels.values())
        self.n_features = n_features
        self.position_calibration = position_calibration
        self.fused = grids is not None
        self.support = support
        self.guided = guided
        self.prior_freedom = prior_freedom
        self.scores_map = image_score == "map"
        self.damped = damped
        self.calibrating = False
        self.grids = nn.ModuleList()
        chosen = grids or [self.layers]
        for number, (names, shared) in enumerate(zip(chosen, share or [1] * len(chosen), strict=True), start=1):
            own = {layer: channels[layer] for layer in names}
            width = sum(own.values())
            kept = width if n_features is None else min(n_features, width)
            last = number == len(chosen)
            embedding = PatchEmbedding(own, kept, seed, self.fused, coarsest_side if self.fused and last else None)
            self.grids.append(PatchGrid(embedding, storage_dtype, shared, tolerance if last else 0))
        # By which copies among the training images are told: all channels, pooled.
        self.likeness = PatchEmbedding(channels, self.n_features_original, pooled=True)
        self.likenesses = PhotoStore()
        self.guidance = PhotoStore()
        self.anomaly_map_generator = SmoothUpsample(sigma)
        # Of good images, at each position of what is scored.
        self.register_buffer("scored_mean", torch.empty(0))
        self.register_buffer("scored_std", torch.empty(0))
        # The score at which a map is damped by half, the scores' spread, and the map's level from which it is damped.
        self.register_buffer("damping", torch.full((3,), torch.nan))
        # (H, W), the pixels that count; empty where all do.
        self.register_buffer("area", torch.empty(0, dtype=torch.bool))
        self.area: torch.Tensor
        self.scored_mean: torch.Tensor
        self.scored_std: torch.Tensor
        self.damping: torch.Tensor
        self.image_size: tuple[int, int] = (0, 0)
        self._source: Callable[[torch.Tensor], Features] | None = None
        self._left_out: list[torch.Tensor] = []

    def look_at(self, area: NDArray[np.bool_] | None) -> None:
        """Let only an area (H, W) of the images count: elsewhere maps are 0 and there are no Gaussians."""
        self.area = torch.empty(0, dtype=torch.bool) if area is None else torch.from_numpy(area)
        self.area = self.area.to(self.damping.device)
        for grid in self.grids:
            grid.look_at(area)

    @property
    def gaussian(self) -> PatchGaussians:
        """The Gaussians of the first grid; of PaDiM's only one."""
        return self.grids[0].gaussian

    @property
    def count(self) -> int:
        """The training images that were collected; 0 once ``forget_embeddings`` was called."""
        return len(self.grids[0].embeddings)

    @property
    def idx(self) -> torch.Tensor:
        """The channels that the first grid keeps, sorted."""
        return self.grids[0].embedding.idx

    @property
    def is_random(self) -> bool:
        """Whether a seed decides anything."""
        return any(grid.embedding.is_random for grid in self.grids)

    def forward(self, input_tensor: torch.Tensor) -> torch.Tensor | InferenceBatch:
        """Collect the embeddings of a batch (training) or score it.

        Args:
            input_tensor: (B, 3, H, W), normalised images.

        Returns:
            While training what ``collect`` returns, else what ``score`` returns.
        """
        features = self.features(input_tensor)
        with single_precision(input_tensor.device):
            return self.collect(features, input_tensor) if self.training else self.score(features, input_tensor)

    def features(self, images: torch.Tensor) -> Features:
        """Return what the backbone makes of normalised images (B, 3, H, W), or what ``features_from`` has instead."""
        if self.tiler:
            raise UserError("Tiling is not supported by this Padim: anomalib.models.Padim has it.")
        with stage("backbone"):
            return (self._source or self.feature_extractor)(images)

    @contextlib.contextmanager
    def features_from(self, source: Callable[[torch.Tensor], Features]) -> Iterator[None]:
        """Take features from a function of the images while the context lasts: from a record, or to record them."""
        self._source, before = source, self._source
        try:
            yield
        finally:
            self._source = before

    def collect(self, features: Features, images: torch.Tensor) -> torch.Tensor:
        """Add a batch to what the fit and the calibration need.

        Args:
            features: of the images.
            images: (B, 3, H, W); without the guided filter only their size matters.

        Returns:
            Embeddings (B, P, d) of the first grid.
        """
        self.image_size = (images.shape[-2], images.shape[-1])
        if self.calibrating:
            embedding = self.likeness(features)
            self.likenesses.append(embedding[:, :: max(1, embedding.shape[1] // LIKENESS_POSITIONS)])
        if self.calibrating and self.guided is not None:
            self.guidance.append(grey_photo(images))
        embeddings = [grid.collect(features) for grid in self.grids]
        return embeddings[0]

    def score(self, features: Features, images: torch.Tensor) -> InferenceBatch:
        """Score a batch.

        Args:
            features: of the images.
            images: (B, 3, H, W); without the guided filter only their size matters.

        Returns:
            Raw ``pred_score`` (B, 1) and ``anomaly_map`` (B, 1, H, W).
        """
        distances = [grid.distance(features) for grid in self.grids]
        photo = None if self.guided is None else grey_photo(images)
        anomaly_map = self.to_map(distances, (images.shape[-2], images.shape[-1]), photo)
        score = self.image_score(anomaly_map if self.scores_map else distances[-1][:, None])
        if self.damped and self.calibrating:
            anomaly_map = self.damp(anomaly_map, score)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

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
        if photo is not None and self.guided is not None:
            anomaly_map = guide(anomaly_map, photo, self.guided)
        return anomaly_map * self.area.to(anomaly_map.dtype) if self.area.numel() else anomaly_map

    def image_score(self, scored: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, 1): the largest value of (B, 1, h, w), standardised by position once calibrated."""
        if self.position_calibration and self.scored_std.numel():
            scored = (scored - self.scored_mean) / self.scored_std
        if self.area.numel() and self.scores_map:
            scored = scored + (self.area.to(scored.dtype) - 1.0) * 1e6  # no pixel outside is the largest
        return torch.amax(scored, dim=(-2, -1))

    def damp(self, anomaly_map: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """Damp maps (B, 1, H, W) by their images' scores (B, 1), see ``anomaly_map.damp``."""
        half, spread, level = self.damping
        return damp(anomaly_map, torch.sigmoid((score - half) / spread), level)

    def reset(self) -> None:
        """Drop what was collected and fitted."""
        for grid in self.grids:
            grid.reset()
        self.likenesses.clear()
        self.guidance.clear()
        self.scored_mean, self.scored_std = self.scored_mean.new_empty(0), self.scored_std.new_empty(0)
        self.damping.fill_(torch.nan)
        self._left_out = []

    def forget_embeddings(self) -> None:
        """Free what only the fit needed; the leave-one-out maps stay."""
        for grid in self.grids:
            grid.embeddings.clear()
        self.likenesses.clear()

    def fit(self) -> None:
        """Fit the Gaussians to the embeddings seen in training; see ``fit_and_calibrate``."""
        for grid in self.grids:
            grid.fit(None)

    def fit_and_calibrate(self, pixel_quantile: float, parts: Parts | None = None) -> Calibration:
        """Fit the Gaussians and take leave-one-out statistics of the training images.

        A training image costs 4 P d bytes of disk for its embedding (1.6 MB at P = 4096, d = 100, see ``PhotoStore``)
        and 4 P bytes of memory for its leave-one-out distances (16 KB). Positions are processed block by block.

        Args:
            pixel_quantile: the pixel threshold is this quantile of the leave-one-out pixels.
            parts: the parts that the N training images show, in the order in which they were seen; ``None`` for one
                image a part.

        Raises:
            UserError: fewer than three parts.
        """
        parts = parts or Parts.of_photos([""] * self.count, None)
        check_parts(parts)
        self._left_out = [grid.fit(parts) for grid in self.grids]
        if self.fused:
            fine = self._left_out[0].shape[-2:]
            present = torch.from_numpy(self.grids[0].layout(tuple(fine)).present).to(self.damping.device)
            for grid, distances in zip(self.grids, self._left_out, strict=True):
                batches = distances.split(8)
                total = sum(lift(batch.square(), fine)[:, present].sum(dtype=torch.float64) for batch in batches)
                grid.typical.copy_((total / (len(distances) * present.sum())).clamp_min(1e-12))
        return self.calibrate(pixel_quantile, parts)

    @stage("calibration")
    def calibrate(self, pixel_quantile: float, parts: Parts) -> Calibration:
        """Take the leave-one-out statistics of the training images, once more with other settings if need be.

        Args:
            pixel_quantile: as of ``fit_and_calibrate``.
            parts: that the Gaussians were fitted with.
        """
        to_maps: Callable[[torch.Tensor], torch.Tensor] = self.leave_one_out_maps
        if self.scores_map or self.damped:  # they are needed more than once
            to_maps = kept_maps(to_maps, len(parts.names))
        calibration = calibrate(
            (lambda images: to_maps(images)[:, None, self.area]) if self.area.numel() else to_maps,
            parts,
            pixel_quantile=pixel_quantile,
            position_calibration=self.position_calibration,
            prior_freedom=self.prior_freedom,
            scored=None if self.scores_map else self._left_out[-1],
        )
        if self.area.numel():
            calibration = self._in_area(calibration)
        self.scored_mean, self.scored_std = calibration.scored_mean, calibration.scored_std
        if not self.damped:
            return calibration
        scores = calibration.image_scores
        half = Rule.calibrated(calibration.scores.cpu(), DAMPING_ALPHA).threshold
        self.damping.copy_(
            torch.stack([torch.tensor(half), scores.cpu().std().clamp_min(1e-6), calibration.pixel_level.cpu()])
        )
        # New photos' maps are damped, and their means are compared with these.
        means = [
            self.damp(to_maps(images)[:, None], scores[images, None]).mean(dim=(1, 2, 3))
            for images in torch.arange(len(scores)).split(8)
        ]
        return replace(calibration, map_means=torch.cat(means))

    def _in_area(self, calibration: Calibration) -> Calibration:
        """Return what was calibrated on the pixels that count, by the maps (H, W) of which they are a part."""
        means = calibration.map_means * self.area.float().mean()
        if not self.scores_map:
            return replace(calibration, map_means=means)
        scored = calibration.scored_mean, calibration.scored_std
        mean, std = (torch.full(self.area.shape, of.min(), device=of.device) for of in scored)
        mean[self.area], std[self.area] = scored[0][0], scored[1][0]
        return replace(calibration, map_means=means, scored_mean=mean, scored_std=std)

    def leave_one_out_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the anomaly maps (n, H, W) of training images, each by the Gaussians fitted without its part.

        They are not damped: that would lower the pixel threshold.

        Args:
            images: (n,) indices, in the order of training; available from the fit to the next training.
        """
        photo = None
        if self.guided is not None:
            photo = self.guidance.photos(images).to(self.damping.device)
        distances = [left_out[images] for left_out in self._left_out]
        return self.to_map(distances, self.image_size, photo)[:, 0]

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        if prefix + "gaussian.inv_covariance" in state_dict:
            self._from_anomalib(state_dict, prefix)
        state_dict.setdefault(prefix + "area", torch.empty(0, dtype=torch.bool))
        area = state_dict[prefix + "area"]
        self.look_at(area.cpu().numpy() if area.numel() else None)
        for name in {"scored_mean", "scored_std"} & {key.removeprefix(prefix) for key in state_dict}:
            setattr(self, name, torch.empty_like(state_dict[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _from_anomalib(self, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
        """Turn the entries of anomalib's layout into ours, in place: channels sorted, positions first, factors."""
        idx, mean, precision = (
            state_dict.pop(prefix + name) for name in ("idx", "gaussian.mean", "gaussian.inv_covariance")
        )
        state_dict.pop(prefix + "anomaly_map_generator.blur.kernel", None)
        order = idx.argsort()
        grid = f"{prefix}grids.0."
        state_dict[grid + "embedding.idx"] = idx[order]
        state_dict[grid + "gaussian.mean"] = mean[order].T.contiguous()
        state_dict[grid + "gaussian.precision_cholesky"] = pack_lower(
            torch.linalg.cholesky(precision[:, order][:, :, order])
        )
        state_dict[grid + "typical"] = torch.tensor(torch.nan)
        state_dict[prefix + "likeness.idx"] = self.likeness.idx
        state_dict[prefix + "scored_mean"] = state_dict[prefix + "scored_std"] = torch.empty(0)
        state_dict[prefix + "damping"] = self.damping
