"""``scripts/app.py``: try fitted models in a browser."""

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from padim_bottle.commands.arguments import new_parser, positive
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError, run_command

APP_HELP = """\
Try fitted models in a browser: drop or take a photo, or pick a good one, draw a defect on it, and see each model's
heatmap, verdict and p-value, at any false-alarm rate.

The page is for this machine alone, needs no network and keeps no photo. --share opens it to whoever knows the address
of a tunnel through Gradio's servers. Ctrl-C ends it.
"""
# Read by Gradio when it is loaded.
NO_RECORDS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}


def app_command(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``.
    """
    parser = new_parser("app.py", APP_HELP)
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True,
        help="run folders, checkpoints or folders of exported models, side by side",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="photos to pick from (default: the run's good test photos)"
    )
    parser.add_argument("--port", type=positive, help="of this machine (a free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="open the page to others, through Gradio's tunnel")
    options = parser.parse_args(arguments)
    return run_command(lambda: _app(options))


def _app(options: argparse.Namespace) -> int:
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
            gallery = find_good_photos(options.model, options.images)
        except UserError as error:
            if options.images is not None:
                raise
            no_gallery = str(error)
        page = build_page(load_models(options.model), gallery, no_gallery)
        with stop_signal() as stop, serve(page, options.port, share=options.share) as address:
            print(f"The app runs at {address} (Ctrl-C ends it).", flush=True)
            stop.wait()
    return 0
