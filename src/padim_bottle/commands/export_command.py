"""``export``: export a fitted model and prove the copies."""

import json
from pathlib import Path
from typing import Literal

from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError


def export(
    *,
    model: Path,
    format: list[Literal["onnx", "openvino"]] | None = None,
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    output: Path | None = None,
    images: Path | None = None,
) -> int:
    """Export a fitted model, and prove the copies.

    Writes
      <run>/export/{onnx,openvino}/   the model, with preprocessing, thresholds and p-value, and its card, model.json
      <run>/export/report.json        the proof: every exported model and the checkpoint judge the test images

    --precision bfloat16 or int8 (OpenVINO alone) makes a faster model, in <run>/export/openvino_<precision>/: its
    backbone computes in less precision, and Gaussians, thresholds and p-values are fitted anew to what that backbone
    sees, with the training photos. The proof then says what it loses.

    Exit code: 0 proven, 1 not: a verdict differs or a normalised score by more than 0.001 (with another precision:
    image AUROC falls by more than 0.001 or pixel AUROC by more than 0.002), 2 an error.

    Args:
        model (PATH): a run's folder or a model.ckpt
        format: what to write (all that have the precision)
        precision: of the backbone
        output (FOLDER): instead of <run>/export
        images (FOLDER): prove it on these photos (default: the run's test images)
    """
    from padim_bottle.export.formats import check_packages, export, find_checkpoint
    from padim_bottle.files import write_whole
    from padim_bottle.predict.card import FORMATS

    lowered = precision != "float32"
    formats = format or (["openvino"] if lowered else FORMATS)
    if lowered and formats != ["openvino"]:
        raise UserError(f"--precision {precision}: only OpenVINO has it, leave --format out.")
    check_packages(formats, precision)
    with quiet_imports():
        from padim_bottle.export.proof import find_proof_photos, find_training_photos, print_report, prove

    checkpoint = find_checkpoint(model)
    output = output or checkpoint.parent / "export"
    photos = find_proof_photos(checkpoint.parent, images)
    training = find_training_photos(checkpoint.parent) if lowered else []
    path = output / (f"report_{precision}.json" if lowered else "report.json")
    path.unlink(missing_ok=True)  # a proof is of these copies or of none
    folders = export(checkpoint, formats, output, precision, training)
    report = prove(checkpoint, folders, photos, precision)
    write_whole(path, json.dumps(report, indent=2) + "\n")
    print_report(report, path)
    return 0 if report["passed"] else 1
