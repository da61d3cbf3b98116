"""``scripts/export.py``: export a fitted model and prove the copies."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from padim_bottle.commands.arguments import new_parser
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError, run_command
from padim_bottle.files import write_whole
from padim_bottle.predict.card import FORMATS, PRECISIONS

EXPORT_HELP = """\
Export a fitted model, with its preprocessing, thresholds and p-value inside, to
  <run>/export/{onnx,openvino}/   the model and its card, model.json
and prove it: the test images are judged by every exported model and by the checkpoint, and the differences written to
  <run>/export/report.json

--precision bfloat16 or int8 (OpenVINO alone) makes a faster model, in <run>/export/openvino_<precision>/: its backbone
computes in less precision, and Gaussians, thresholds and p-values are fitted anew to what that backbone sees, with the
training photos. The proof then says what it loses.

Exit code: 0 proven, 1 not: a verdict differs or a normalised score by more than 0.001 (with another precision: image
AUROC falls by more than 0.001 or pixel AUROC by more than 0.002), 2 an error.
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
    parser.add_argument("--format", nargs="+", choices=FORMATS, help="what to write (all that have the precision)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the backbone (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="instead of <run>/export")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="prove it on these photos (default: the run's test images)"
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _export(options))


def _export(options: argparse.Namespace) -> int:
    from padim_bottle.export.formats import check_packages, export, find_checkpoint

    lowered = options.precision != "float32"
    formats = options.format or (["openvino"] if lowered else FORMATS)
    if lowered and formats != ["openvino"]:
        raise UserError(f"--precision {options.precision}: only OpenVINO has it, leave --format out.")
    check_packages(formats, options.precision)
    with quiet_imports():
        from padim_bottle.export.proof import find_proof_photos, find_training_photos, print_report, prove

    checkpoint = find_checkpoint(options.model)
    output = options.output or checkpoint.parent / "export"
    photos = find_proof_photos(checkpoint.parent, options.images)
    training = find_training_photos(checkpoint.parent) if lowered else []
    folders = export(checkpoint, formats, output, options.precision, training)
    report = prove(checkpoint, folders, photos, options.precision)
    path = output / (f"report_{options.precision}.json" if lowered else "report.json")
    write_whole(path, json.dumps(report, indent=2) + "\n")
    print_report(report, path)
    return 0 if report["passed"] else 1
