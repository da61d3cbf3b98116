"""The backbone: which network it is, and where its ImageNet weights come from.

A backbone is named as timm names it, tag included (``resnet18.tv_in1k``). Its weights are looked for in

1. ``$PADIM_WEIGHTS_DIR/<name>/`` or ``weights/<name>/``: a folder with ``config.json`` and
   ``model.safetensors``, as ``timm.models.save_for_hf`` writes it;
2. the Hugging Face hub, in the repository that timm names for it.

Only safetensors files are read: a pickle from a stranger can run code, a safetensors file cannot.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm

from padim_bottle.errors import UnavailableError, UserError, in_a_line
from padim_bottle.files import sha256
from padim_bottle.model.extractor import network_facts
from padim_bottle.places import weights_folders

# Table I of the PaDiM paper (Defard et al. 2021): R18-Rd100 and WR50-Rd550.
PAPER_N_FEATURES = {"resnet18": 100, "wide_resnet50_2": 550}

LOCAL_PREFIX = "local-dir:"


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights came from; recorded with a run.

    Attributes:
        name: timm's name of the backbone, tag included.
        source: ``folder``, ``hugging face hub`` or ``random``.
        sha256: digest of ``model.safetensors``; ``None`` for random weights.
    """

    name: str
    source: str
    sha256: str | None

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields as a JSON-ready mapping."""
        return asdict(self)


def default_n_features(backbone: str) -> int | None:
    """Return the paper's number of features for a ResNet under any tag, else ``None``."""
    name = Path(backbone.removeprefix(LOCAL_PREFIX)).name
    return PAPER_N_FEATURES.get(name.split(".")[0])


def full_name(backbone: str) -> str:
    """Return the backbone's name with its tag: ``resnet18`` is timm's ``resnet18.a1_in1k``.

    Raises:
        UserError: timm knows no such backbone or tag.
    """
    architecture, _, tag = backbone.partition(".")
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture[:8]}*")[:8]
        raise UserError(
            f"backbone: timm has no model '{architecture}'."
            + (f" Did you mean one of {', '.join(near)}?" if near else " See timm.list_models().")
        )
    if tag and backbone not in timm.list_pretrained(f"{architecture}.*"):
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UserError(f"backbone: timm has no weights '{backbone}'. For {architecture} it has {', '.join(tags)}.")
    if tag:
        return backbone
    config = timm.get_pretrained_cfg(architecture)
    return f"{architecture}.{config.tag}" if config is not None and config.tag else architecture


def locate_weights(backbone: str) -> tuple[str, Weights]:
    """Find a backbone's ImageNet weights, downloading them from the hub when no folder has them.

    Args:
        backbone: timm name, or ``local-dir:<folder>``.

    Returns:
        The name to give to timm (``local-dir:<folder>``) and the record of what was found.

    Raises:
        UnavailableError: neither a folder nor the hub has them; the message says how to get them.
    """
    if backbone.startswith(LOCAL_PREFIX):
        folder = Path(backbone.removeprefix(LOCAL_PREFIX))
        return backbone, Weights(folder.name, "folder", _digest(folder))

    name = full_name(backbone)
    roots = weights_folders()
    for root in roots:
        folder = root / name
        if folder.is_dir():
            return f"{LOCAL_PREFIX}{folder.resolve()}", Weights(name, "folder", _digest(folder))

    folder = _download(name, roots)
    return f"{LOCAL_PREFIX}{folder}", Weights(name, "hugging face hub", _digest(folder))


def feature_layers(backbone: str) -> dict[str, int]:
    """Return the layers a backbone offers and their channels, shallowest first.

    Args:
        backbone: timm name, or ``local-dir:<folder>``.
    """
    return {name: layer.channels for name, layer in network_facts(backbone).layers.items()}


def check_embedding(backbone: str, layers: Sequence[str], n_features: int | None) -> int:
    """Check a choice of layers and features against what the backbone has.

    Args:
        backbone: timm name, or ``local-dir:<folder>``.
        layers: names of the layers to join.
        n_features: features to keep of the joined channels; ``None`` for the paper's number.

    Returns:
        The number of features to keep.

    Raises:
        UserError: an unknown or repeated layer, or a number of features that is missing or impossible.
    """
    available = _check_layers(backbone, layers, "layers")
    offer = _offer(available)
    channels = sum(available[layer] for layer in layers)
    if n_features is None:
        n_features = default_n_features(backbone)
    if n_features is None:
        raise UserError(
            f"n_features: {backbone} has no default, choose 1 to {channels} "
            f"(the channels of {', '.join(layers)}). It offers {offer}."
        )
    if not 1 <= n_features <= channels:
        raise UserError(
            f"n_features: {n_features} is impossible, {', '.join(layers)} of {backbone} have {channels} "
            f"channels together. It offers {offer}."
        )
    return n_features


def check_grids(backbone: str, grids: Sequence[Sequence[str]], n_features: int | None) -> list[str]:
    """Check a choice of grids against what the backbone has.

    Args:
        backbone: timm name, or ``local-dir:<folder>``.
        grids: the layers of each grid.
        n_features: features to keep of a grid that has more; ``None`` for all.

    Returns:
        All their layers, from shallow to deep.

    Raises:
        UserError: an unknown or repeated layer, grids that do not go from fine to coarse, an impossible number.
    """
    if not grids:
        raise UserError("grids: name at least one list of layers, or null for the paper's one grid.")
    for layers in grids:
        available = _check_layers(backbone, layers, "grids")
    order = list(available)
    deepest = [order.index(layers[-1]) for layers in grids]
    if deepest != sorted(deepest):
        raise UserError(f"grids: go from fine to coarse: the deepest layers of {[list(g) for g in grids]} do not.")
    if n_features is not None and n_features < 1:
        raise UserError(f"n_features: {n_features} is less than 1.")
    return [layer for layer in order if any(layer in layers for layers in grids)]


def is_random(
    backbone: str,
    layers: Sequence[str],
    n_features: int | None,
    grids: Sequence[Sequence[str]] | None = None,
) -> bool:
    """Return whether a seed decides anything in a Padim with these arguments: all channels may be kept as they are."""
    if not backbone.startswith(LOCAL_PREFIX):
        backbone = full_name(backbone)
    available = feature_layers(backbone)
    widths = [sum(available.get(layer, 0) for layer in chosen) for chosen in grids or [layers]]
    if grids is None:
        return (n_features or default_n_features(backbone) or 0) < widths[0]
    return n_features is not None and any(n_features < width for width in widths)


def _check_layers(backbone: str, layers: Sequence[str], key: str) -> dict[str, int]:
    available = feature_layers(backbone)
    offer = _offer(available)
    unknown = [layer for layer in layers if layer not in available]
    if unknown or not layers or len(set(layers)) < len(layers):
        problem = f"has no {', '.join(unknown)}" if unknown else f"cannot use the list {list(layers)}"
        raise UserError(f"{key}: {backbone} {problem}. Choose from {offer}, each once.")
    if list(layers) != sorted(layers, key=list(available).index):
        raise UserError(f"{key}: name them from shallow to deep, as {backbone} has them: {offer}.")
    return available


def _offer(available: dict[str, int]) -> str:
    return ", ".join(f"{layer} ({channels} channels)" for layer, channels in available.items())


def _digest(folder: Path) -> str:
    file = folder / "model.safetensors"
    if not file.is_file() or not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is no timm weights folder: it must hold config.json and model.safetensors "
            "(pickled weights are not read)."
        )
    return sha256(file)


def _download(name: str, roots: Sequence[Path]) -> Path:
    from huggingface_hub import snapshot_download

    config = timm.get_pretrained_cfg(name)
    hub_id = getattr(config, "hf_hub_id", None) or "timm/"
    repository = f"{hub_id}{name}" if hub_id.endswith("/") else hub_id
    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:
        # huggingface_hub raises a dozen kinds of errors here; for the user they are one.
        looked = " or ".join(str(root / name) for root in roots)
        raise UnavailableError(
            f"No weights for {name}: no folder {looked}, and the Hugging Face hub ({repository}) did not "
            f"answer ({in_a_line(error)}). Either connect to the internet and run again, or put config.json and "
            f"model.safetensors into {Path('weights', name)} (PADIM_WEIGHTS_DIR names another place)."
        ) from error
