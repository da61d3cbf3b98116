"""``app``: try fitted models in a browser."""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from padim_bottle.commands.arguments import Positive
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError

# Read by Gradio when it is loaded.
NO_RECORDS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}


def app(*, model: list[Path], images: Path | None = None, port: Positive | None = None, share: bool = False) -> None:
    """Try fitted models in a browser.

    Drop or take a photo, or pick a good one, draw a defect on it, and see each model's heatmap, verdict and p-value, at
    any false-alarm rate.

    The page is for this machine alone, needs no network and keeps no photo. --share opens it to everybody who knows the
    address of a tunnel through Gradio's servers. Ctrl-C ends it.

    Args:
        model (PATH): run folders, checkpoints or folders of exported models, side by side
        images (FOLDER): photos to pick from (default: the run's good test photos)
        port (NUMBER): of this machine (a free one from 7860 on)
        share: open the page to others, through Gradio's tunnel
    """
    if find_spec("gradio") is None:
        raise UserError('The app needs gradio: pip install -e ".[app]".')
    with TemporaryDirectory(prefix="padim-bottle-app-") as folder:
        # Before Gradio is loaded. What it stores goes when the app ends.
        os.environ.update(NO_RECORDS, GRADIO_TEMP_DIR=folder)
        with quiet_imports():
            from padim_bottle.app.browser import build_page, serve
            from padim_bottle.app.judging import load_models
            from padim_bottle.app.uploads import find_good_photos
            from padim_bottle.predict.watch import stop_signal

        gallery, no_gallery = [], None
        try:
            gallery = find_good_photos(model, images)
        except UserError as error:
            if images is not None:
                raise
            no_gallery = str(error)
        page = build_page(load_models(model), gallery, no_gallery)
        with stop_signal() as stop, serve(page, port, share=share) as address:
            print(f"The app runs at {address} (Ctrl-C ends it).", flush=True)
            stop.wait()
