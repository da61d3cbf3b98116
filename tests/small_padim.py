"""A small Padim without weights, how to train it, and what it says of the test images."""

import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, Trainer

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
    """Train and test a model with anomalib's engine; most tests need no more than ``fit`` and ``predict``."""
    recorder = Recorder()
    datamodule = MVTecAD(root=bottles, num_workers=0, verify=False, train_batch_size=5, **data)
    engine = Engine(
        callbacks=[recorder], default_root_dir=folder, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    engine.train(model=model, datamodule=datamodule)
    return recorder.collected(), engine


def images_and_paths(model, bottles, part="train_data"):
    """Return images as the network sees them, and where they lie."""
    datamodule = MVTecAD(root=bottles, num_workers=0, verify=False)
    datamodule.setup()
    resize, normalise = model.pre_processor.transform.transforms
    items = list(getattr(datamodule, part))
    return torch.stack([normalise(resize(item.image)) for item in items]), [item.image_path for item in items]


def training_images(model, bottles):
    return images_and_paths(model, bottles)[0]


def fit(model, bottles):
    """Do what a trainer has a model do in training; return the model, ready to judge."""
    images, paths = images_and_paths(model, bottles)
    model.on_train_start()
    with torch.no_grad():
        model.collect(model.model.features(images), images, paths)
        model.fit()
    return model.eval()


def predict(model, bottles):
    """Return raw scores (N,) and maps (N, H, W) of the test images, in the order of the data module."""
    with torch.no_grad():
        found = model.eval().model(images_and_paths(model, bottles, "test_data")[0])
    return {"scores": found.pred_score.flatten(), "maps": found.anomaly_map[:, 0]}


def saved(model, path):
    """Write the checkpoint that a training would; return its path."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return path
