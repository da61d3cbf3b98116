"""Where data, weights and configs are looked for when no path is given."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_root(start: Path = Path()) -> Path:
    """Return the folder that holds the categories of MVTec AD.

    It is ``$MVTEC_AD_ROOT``, else the first that is there of ``datasets/MVTecAD``, ``../datasets/MVTecAD`` and
    ``../shared/data/MVTecAD``, which several checkouts can share, else ``datasets/MVTecAD``, to be downloaded.

    Args:
        start: what the paths are relative to.
    """
    if named := os.environ.get("MVTEC_AD_ROOT"):
        return Path(named).expanduser()
    default = start / "datasets" / "MVTecAD"
    places = (default, start / ".." / "datasets" / "MVTecAD", start / ".." / "shared" / "data" / "MVTecAD")
    return next(filter(Path.is_dir, places), default)


def weights_folders(start: Path = Path()) -> list[Path]:
    """Return the folders that may hold a backbone's weights, the first one goes first.

    They are ``$PADIM_WEIGHTS_DIR``, ``weights``, ``../weights`` and ``../shared/weights``.

    Args:
        start: what the paths are relative to.
    """
    named = os.environ.get("PADIM_WEIGHTS_DIR")
    return [
        *([Path(named).expanduser()] if named else []),
        start / "weights",
        start / ".." / "weights",
        start / ".." / "shared" / "weights",
    ]


def find_config(path: Path) -> Path:
    """Return a config that is not there from among those that come with the package.

    Args:
        path: of a file; ``padim_resnet18.yaml``, ``configs/demo.yaml`` and ``peers/dfm_resnet18.yaml`` come with the
            package, wherever it is installed.

    Returns:
        The path itself if it is there, or if the package has none of that name.
    """
    if path.exists() or path.is_absolute():
        return path
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    # In a wheel, and in a checkout.
    places = (folder / "configs" / name for folder in (_PACKAGE, _PACKAGE.parents[1]))
    return next(filter(Path.is_file, places), path)
