"""A small Padim without weights, how to train it, and what it says of the test images."""

import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback

from padim_bottle import MVTecAD, Padim

SIZE = (64, 64)


class Recorder(Callback):
    """Keeps the raw predictions of a test run."""

    def __init__(self):
        self.scores, self.maps, self.labels, self.masks = [], [], [], []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.scores.append(outputs.pred_score.flatten().clone())
        self.maps.append(
            outputs.anomaly_map.clone()[:, 0] if outputs.anomaly_map.ndim == 4 else outputs.anomaly_map.clone()
        )
        self.labels.append(outputs.gt_label)
        self.masks.append(outputs.gt_mask)

    def collected(self):
        return {name: torch.cat(getattr(self, name)) for name in ("scores", "maps", "labels", "masks")}


def small_padim(**kwargs):
    defaults = {
        "pre_trained": False, "n_features": 40, "image_size": SIZE, "evaluator": False, "visualizer": False,
        "alpha": 0.2, "checkpoint_precision": "float32",
    }  # fmt: skip
    return Padim(**{**defaults, **kwargs})


def run(model, bottles, folder, **data):
    recorder = Recorder()
    datamodule = MVTecAD(root=bottles, num_workers=0, verify=False, train_batch_size=5, **data)
    engine = Engine(
        callbacks=[recorder], default_root_dir=folder, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    engine.train(model=model, datamodule=datamodule)
    return recorder.collected(), engine


def training_images(model, bottles):
    """Return the training images as the network sees them."""
    datamodule = MVTecAD(root=bottles, num_workers=0, verify=False)
    datamodule.setup()
    resize, normalise = model.pre_processor.transform.transforms
    return torch.stack([normalise(resize(item.image)) for item in datamodule.train_data])
