"""The Padim that the configs name: anomalib's, calibrated without defects."""

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
from padim_bottle.model.network import PadimModel, Reduction
from padim_bottle.model.post_processor import CalibratedPostProcessor


class Padim(AnomalibPadim):
    """PaDiM with a seed that applies, a leave-one-out calibrated threshold, and a faster fit.

    Works on CPU, CUDA and MPS in float32; with Lightning's ``bf16-mixed`` precision the backbone runs in bfloat16 and
    the statistics stay float32.

    Args:
        backbone: timm name with its tag, for example ``resnet18.tv_in1k``.
        layers: layers to join, from shallow to deep.
        pre_trained: use ImageNet weights; else fixed random ones (the demo).
        n_features: features to keep of the joined channels; ``None`` for the paper's number.
        seed: decides everything random: the channels that are kept, or the projection.
        image_size: height and width to which images are resized; the datamodule takes it from here.
        reduction: ``random`` keeps channels (the paper's), ``orthogonal`` projects all of them.
        neighborhood: 1 (the paper's), 3 or 5: features are averaged over that many positions a side.
        calibration: thresholds from leave-one-out scores of the training images; ``false`` for anomalib's, which
            are tuned on the test set.
        alpha: false-alarm rate that the calibrated image threshold is to have.
        pixel_quantile: the pixel threshold is this quantile of the leave-one-out pixels.
        position_calibration: score an image by its largest pixel, standardised at each position by how good images
            vary there; ``false`` for PaDiM's own maximum. Needs ``calibration``.
        checkpoint_precision: ``float16`` (a quarter of anomalib's size) or ``float32``.
        pre_processor, post_processor, evaluator, visualizer: as in anomalib.
    """

    def __init__(
        self,
        backbone: str = "resnet18.tv_in1k",
        layers: list[str] = ["layer1", "layer2", "layer3"],  # noqa: B006
        pre_trained: bool = True,
        n_features: int | None = None,
        seed: int = 42,
        image_size: tuple[int, int] = (256, 256),
        reduction: Reduction = "random",
        neighborhood: Literal[1, 3, 5] = 1,
        calibration: bool = True,
        alpha: float = 0.05,
        pixel_quantile: float = 0.9995,
        position_calibration: bool = True,
        checkpoint_precision: Literal["float16", "float32"] = "float16",
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        for name, value in (("alpha", alpha), ("pixel_quantile", pixel_quantile)):
            if not 0 < value < 1:
                raise UserError(f"{name}: {value} is not between 0 and 1.")
        if seed < 0:
            raise UserError(f"seed: {seed} is negative, choose 0 or more.")
        if min(image_size) < 1:
            raise UserError(f"image_size: {list(image_size)} is not a height and a width of 1 or more.")
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(tuple(image_size))
        if post_processor is True and calibration:
            post_processor = CalibratedPostProcessor(alpha=alpha, pixel_quantile=pixel_quantile)
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
        n_features = backbones.check_embedding(backbone, layers, n_features)
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
            reduction=reduction,
            neighborhood=neighborhood,
            position_calibration=calibration and position_calibration,
            storage_dtype=getattr(torch, checkpoint_precision),
        )
        self.model.calibrating = calibration

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Anomalib's arguments; a calibrated model needs no validation, so the test images are inferred once."""
        arguments = dict(super().trainer_arguments)
        if self.model.calibrating:
            arguments["limit_val_batches"] = 0
        return arguments

    def fit(self) -> None:
        """Fit the Gaussians and, if asked for, calibrate; runs once, after the last training batch."""
        if self.model.calibrating:
            post_processor = self.post_processor
            if not isinstance(post_processor, CalibratedPostProcessor):
                raise UserError("calibration: true needs the post_processor of this package (leave it out or true).")
            post_processor.calibrate(self.model.fit_and_calibrate(post_processor.pixel_quantile))
        else:
            self.model.fit()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the weights came from to what anomalib saves."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["padim_bottle_weights"] = self.weights.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the record of the weights; a checkpoint of anomalib's Padim has neither it nor a calibration."""
        super().on_load_checkpoint(checkpoint)
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
