"""The Padim that the configs name: anomalib's, calibrated without defects."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.metrics import Evaluator
from anomalib.models import Padim as AnomalibPadim
from anomalib.post_processing import PostProcessor
from anomalib.visualization import Visualizer
from torch import nn

from padim_bottle.errors import UserError
from padim_bottle.model import backbone as backbones
from padim_bottle.model.area import read_area, resize_area
from padim_bottle.model.copies import exact_copies, near_copies
from padim_bottle.model.network import Features, PadimModel, single_precision
from padim_bottle.model.parts import Parts, check_group
from padim_bottle.model.post_processor import CalibratedPostProcessor
from padim_bottle.stages import stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingScores:
    """What the calibration says of each of the N training photos, in the order in which they were seen.

    Attributes:
        image_paths: N paths.
        parts: N names of the parts that they show.
        scores: (N,) leave-one-out scores.
        p_values: (N,) how many of the M parts score at least as high, the photo's own counted once, over M.
        copies: pairs of photos that show one part without saying so, and how that shows: ``exact`` or ``near``.
    """

    image_paths: list[str]
    parts: list[str]
    scores: torch.Tensor
    p_values: torch.Tensor
    copies: list[tuple[str, str, str]]


class Padim(AnomalibPadim):
    """PaDiM with a seed that applies, a leave-one-out calibrated threshold, and a faster fit.

    Works on CPU and CUDA in float32; with Lightning's ``bf16-mixed`` precision the backbone runs in bfloat16 and the
    statistics stay float32.

    Args:
        backbone: timm name with its tag, for example ``resnet18.tv_in1k``.
        layers: layers to join, from shallow to deep.
        pre_trained: use ImageNet weights; else fixed random ones (the demo).
        grids: the layers of each grid, from fine to coarse: each is pooled to its deepest layer's positions and has
            Gaussians of its own, and their distances are fused (``layers`` is then not used). ``None`` for the
            paper's one grid. Needs ``calibration``.
        share: positions a side that share a covariance, each with a mean of its own; one number, or one a grid. 1 for
            none (the paper's).
        coarsest_side: largest number of positions a side of the last of the ``grids``, whatever the image's size.
        tolerance: at the coarsest grid, an image is as far as from the nearest Gaussian so many positions around: for
            parts that are placed by hand. 0 for its own (the paper's). Needs a ``share`` of 1 there.
        support: a fine grid counts up to this times what the next coarser one says: 0 is the coarsest grid alone,
            infinity all in full.
        sigma: standard deviation in pixels of the Gaussian that smooths the map; 4 in the paper, at 224 pixels.
        guided: radius in pixels of a guided filter over the map, which lets its edges follow the photo's; ``None``
            for none.
        n_features: features to keep of the joined channels; ``None`` for the paper's number, with ``grids`` for all.
        region: a picture, white where photos count and black elsewhere, of any size with the photos' aspect: what lies
            outside has no Gaussians, no score and no metric. ``None``: all counts.
        seed: decides everything random: the channels that are kept.
        image_size: height and width to which images are resized; the datamodule takes it from here.
        calibration: thresholds from leave-one-out scores of the training images; ``false`` for anomalib's, which
            are tuned on the test set.
        alpha: false-alarm rate that the calibrated image threshold is to have.
        confidence: with which the rate is to be below alpha; ``None`` for a rate of about alpha.
        pixel_quantile: the pixel threshold is this quantile of the leave-one-out pixels.
        image_score: an image's score is the largest value of its ``map`` (the paper's), or of its ``distances`` at the
            coarsest grid.
        position_calibration: standardise what is scored, at each position, by how good images vary there; ``false``
            for the plain largest value. Needs ``calibration``.
        prior_freedom: of the position calibration: degrees of freedom with which the map's typical variance counts in
            that of each position, as with few images single ones are rough; 0 for none.
        damped: damp the map of an image that looks good as a whole. Needs ``calibration``.
        group: which photos show the same part and are left out together: ``None`` (each its own), ``parent-folder``,
            or a regular expression with one group, which is searched for in the file name and names the part.
        copies: what to do with exact and near copies among the training photos that ``group`` does not join:
            ``warn``, ``group`` (leave them out together), ``error``, or ``ignore``: they are not looked for.
        checkpoint_precision: ``float16`` (a quarter of anomalib's size) or ``float32``.
        pre_processor, post_processor: as in anomalib.
        evaluator, visualizer: as in anomalib, but off, as ``ResultsWriter`` does what they do.
    """

    def __init__(
        self,
        backbone: str = "resnet18.tv_in1k",
        layers: list[str] = ["layer1", "layer2", "layer3"],  # noqa: B006
        pre_trained: bool = True,
        grids: list[list[str]] | None = None,
        share: int | list[int] = 1,
        coarsest_side: int | None = 16,
        tolerance: int = 0,
        support: float = 1.0,
        sigma: float = 4.0,
        guided: int | None = None,
        n_features: int | None = None,
        region: str | None = None,
        seed: int = 42,
        image_size: tuple[int, int] = (256, 256),
        calibration: bool = True,
        alpha: float = 0.05,
        confidence: float | None = None,
        pixel_quantile: float = 0.9995,
        image_score: Literal["map", "distances"] = "map",
        position_calibration: bool = True,
        prior_freedom: float = 10.0,
        damped: bool = False,
        group: str | None = None,
        copies: Literal["warn", "group", "error", "ignore"] = "warn",
        checkpoint_precision: Literal["float16", "float32"] = "float16",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = False,
        visualizer: Visualizer | bool = False,
    ) -> None:
        for name, value in (("alpha", alpha), ("confidence", confidence), ("pixel_quantile", pixel_quantile)):
            if value is not None and not 0 < value < 1:
                raise UserError(f"{name}: {value} is not between 0 and 1.")
        if not 0 <= prior_freedom < math.inf:
            raise UserError(f"prior_freedom: {prior_freedom} is not 0 or more.")
        if seed < 0:
            raise UserError(f"seed: {seed} is negative, choose 0 or more.")
        if min(image_size) < 1:
            raise UserError(f"image_size: {list(image_size)} is not a height and a width of 1 or more.")
        if grids is not None and not calibration:
            raise UserError("grids: they need calibration: true, which tells how far each is to be believed.")
        shares = [share] * len(grids or [layers]) if isinstance(share, int) else list(share)
        if len(shares) != len(grids or [layers]) or min(shares) < 1:
            raise UserError(f"share: {share} is not a number of 1 or more, or one for each of the grids.")
        if coarsest_side is not None and coarsest_side < 1:
            raise UserError(f"coarsest_side: {coarsest_side} is not 1 or more, nor null.")
        if tolerance < 0 or (tolerance and shares[-1] > 1):
            raise UserError(f"tolerance: {tolerance} is not 0 or more, or the last grid's share is not 1.")
        if region is not None and (tolerance or not calibration):
            raise UserError("region: it needs calibration: true and tolerance: 0.")
        if damped and not calibration:
            raise UserError("damped: it needs calibration: true, which tells what good photos look like.")
        if math.isnan(support) or support < 0:
            raise UserError(f"support: {support} is not 0 or more.")
        if not (sigma > 0 and 4 * sigma + 0.5 < min(image_size)):
            raise UserError(f"sigma: {sigma} is not more than 0 and less than a quarter of the image's smaller side.")
        if guided is not None and not 1 <= guided <= (min(image_size) - 1) // 2:
            raise UserError(f"guided: {guided} is no radius of 1 to {(min(image_size) - 1) // 2} pixels, nor null.")
        check_group(group)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(tuple(image_size))
        if post_processor is True and calibration:
            post_processor = CalibratedPostProcessor(alpha, pixel_quantile, confidence)
        # anomalib's Padim would build its own network: skip its __init__, call that of its bases.
        super(AnomalibPadim, self).__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.seed = seed
        if not backbone.startswith(backbones.LOCAL_PREFIX):
            backbone = backbones.full_name(backbone)
        if grids is None:
            n_features = backbones.check_embedding(backbone, layers, n_features)
        else:
            layers = backbones.check_grids(backbone, grids, n_features)
        if pre_trained:
            timm_name, self.weights = backbones.locate_weights(backbone)
        else:
            timm_name, self.weights = backbone, backbones.Weights(backbone, "random", None)
        self.model = PadimModel(
            backbone=timm_name,
            layers=list(layers),
            pre_trained=pre_trained,
            n_features=n_features,
            seed=seed,
            position_calibration=calibration and position_calibration,
            storage_dtype=getattr(torch, checkpoint_precision),
            grids=grids,
            support=support,
            sigma=sigma,
            guided=guided,
            prior_freedom=prior_freedom,
            share=shares,
            coarsest_side=coarsest_side,
            tolerance=tolerance,
            image_score=image_score,
            damped=damped,
            image_size=image_size,
        )
        self.model.calibrating = calibration
        self.region = None if region is None else Path(region).expanduser()
        self.group = group
        self.copies = copies
        self.training_scores: TrainingScores | None = None
        self._training_paths: list[str] = []
        # Of 16-bit photos, as they are read; the data module says so.
        self.photo_bits = 16

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Anomalib's arguments; a calibrated model needs no validation, so the test images are inferred once."""
        arguments = dict(super().trainer_arguments)
        if self.model.calibrating:
            arguments["limit_val_batches"] = 0
        return arguments

    def on_train_start(self) -> None:
        """Drop what an earlier fit or a loaded checkpoint left.

        Raises:
            UserError: a device or a precision on which the statistics cannot be computed.
        """
        if self.device.type == "mps":
            raise UserError("trainer.accelerator: MPS has no double precision, choose cpu.")
        if (dtype := next(self.model.feature_extractor.parameters()).dtype) != torch.float32:
            raise UserError(f"trainer.precision: {dtype} throughout does not work, choose 32-true or bf16-mixed.")
        if self.region is not None and not self.model.area.numel():
            self.model.look_at(resize_area(read_area(self.region), tuple(self.hparams["image_size"]), self.region))
        self._is_fitted = torch.tensor([False], device=self.device)
        self.model.reset()
        self.training_scores = None
        self._training_paths = []

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Collect the embeddings of a batch; the loss is none."""
        features = self.model.features(batch.image)
        with single_precision(batch.image.device):
            self.collect(features, batch.image, batch.image_path or [""] * len(batch.image))
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    @stage("fit")
    def collect(self, features: Features, images: torch.Tensor, paths: Sequence[str]) -> None:
        """Add a batch to what ``fit`` needs.

        Args:
            features: that the backbone has for the images, see ``PadimModel.features``.
            images: (B, 3, H, W), normalised.
            paths: B paths.
        """
        self._training_paths += paths
        self.model.collect(features, images)

    @stage("fit")
    def fit(self) -> None:
        """Fit the Gaussians and, if asked for, calibrate; runs once, after the last training batch.

        Raises:
            UserError: too few photos or parts, or copies where they are an error.
        """
        if not self.model.calibrating:
            self.model.fit()
            self.model.forget_embeddings()
            return
        post_processor = self.post_processor
        if not isinstance(post_processor, CalibratedPostProcessor):
            raise UserError("calibration: true needs the post_processor of this package (leave it out or true).")
        count = self.model.count
        paths = self._training_paths if len(self._training_paths) == count else [""] * count
        parts, copies = self._parts(paths)
        calibration = self.model.fit_and_calibrate(post_processor.pixel_quantile, parts)
        post_processor.calibrate(calibration)
        scores = calibration.image_scores.cpu()
        assert post_processor.rule is not None
        p_values = torch.from_numpy(post_processor.rule.p_values_of_calibration(scores))
        self.training_scores = TrainingScores(paths, list(parts.names), scores, p_values, copies)
        self.model.forget_embeddings()

    def leave_one_out_maps(self, images: Sequence[int]) -> torch.Tensor:
        """Return the anomaly maps (n, H, W) of training photos, each by the Gaussians fitted without its part.

        Args:
            images: n indices into ``training_scores``; available after training, not after loading.
        """
        assert self.training_scores is not None
        maps = self.model.leave_one_out_maps(torch.tensor(images))
        if self.model.damped:
            maps = self.model.damp(maps[:, None], self.training_scores.scores[list(images), None].to(maps.device))[:, 0]
        return maps.cpu()

    @stage("copies")
    def _parts(self, paths: list[str]) -> tuple[Parts, list[tuple[str, str, str]]]:
        """Return the parts of the training photos, and the copies among them that ``group`` does not join."""
        parts = Parts.of_photos(paths, self.group)
        if self.copies == "ignore":
            return parts, []
        exact = exact_copies(paths)
        found = exact + near_copies(self.model.likenesses)
        # A photo is named once, as an exact copy if it is one.
        new = {copy.second: copy for copy in reversed(found) if parts.names[copy.first] != parts.names[copy.second]}
        copies = [(paths[copy.first], paths[copy.second], copy.kind) for _, copy in sorted(new.items())]
        if not copies:
            return parts, []
        first, second, kind = copies[0]
        message = (
            f"{len(copies)} of {len(paths)} training photos are copies, or nearly so, of others, for example "
            f"{Path(second).name} of {Path(first).name} ({kind}). A part photographed more than once vouches for "
            "itself: the false-alarm rate would be higher than alpha."
        )
        if self.copies == "error":
            raise UserError(f"{message} Take them out, or name the parts with group.")
        if self.copies == "group":
            return parts.joined((copy.first, copy.second) for copy in new.values()), copies
        logger.warning("%s Take them out, name the parts with group, or set copies: group.", message)
        return parts, copies

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the weights came from, and how photos are read, to what anomalib saves."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["padim_bottle_photo_bits"] = self.photo_bits
        checkpoint["padim_bottle_weights"] = self.weights.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the record of the weights; a checkpoint of anomalib's Padim has neither it nor a calibration."""
        super().on_load_checkpoint(checkpoint)
        self.photo_bits = checkpoint.get("padim_bottle_photo_bits", self.photo_bits)
        for name, value in (("reduction", "random"), ("neighborhood", 1)):
            if (found := checkpoint.get("hyper_parameters", {}).get(name, value)) != value:
                raise UserError(f"{name}: this model was trained with {found}, which is no longer supported.")
        if "padim_bottle_weights" in checkpoint:
            self.weights = backbones.Weights(**checkpoint["padim_bottle_weights"])
        if "model.gaussian.inv_covariance" in checkpoint["state_dict"]:
            self.model.calibrating = self.model.position_calibration = False
            self.post_processor = PostProcessor()
            config = checkpoint.get("anomalib_post_processor_config")
            if config:
                self.post_processor.load_checkpoint_config(config)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> "Padim":
        """Load a checkpoint of this class or of anomalib's ``Padim``; no ImageNet weights are looked for."""
        kwargs.setdefault("pre_trained", False)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
