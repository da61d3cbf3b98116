"""``scripts/export.py``: export a fitted model and prove the copies."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from padim_bottle.commands.arguments import new_parser
from padim_bottle.console import quiet_imports
from padim_bottle.deploy.card import FORMATS
from padim_bottle.errors import run_command
from padim_bottle.files import write_whole

EXPORT_HELP = """\
Export a fitted model, with its preprocessing, thresholds and p-value inside, to
  <run>/export/{onnx,openvino}/   the model and its card, model.json
and prove it: the test images are judged by every exported model and by the checkpoint, and the differences written to
  <run>/export/report.json

Exit code: 0 proven, 1 a verdict differs or a normalised score by more than 0.001, 2 an error.
"""


def export_command(arguments: Sequence[str] | None = None) -> int:
    """Export and prove.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``; 1 where an exported model judges differently.
    """
    parser = new_parser("export.py", EXPORT_HELP)
    parser.add_argument("--model", type=Path, required=True, help="a run's folder or a model.ckpt")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="what to write (all)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of <run>/export")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="prove it on these photos (default: the run's test images)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    from padim_bottle.deploy.export import check_packages, export, find_checkpoint

    check_packages(options.format)
    with quiet_imports():
        from padim_bottle.deploy.proof import find_proof_photos, print_report, prove

    checkpoint = find_checkpoint(options.model)
    output = options.output or checkpoint.parent / "export"
    photos = find_proof_photos(checkpoint.parent, options.images)
    folders = export(checkpoint, options.format, output)
    report = prove(checkpoint, folders, photos)
    write_whole(output / "report.json", json.dumps(report, indent=2) + "\n")
    print_report(report, output)
    return 0 if report["passed"] else 1
