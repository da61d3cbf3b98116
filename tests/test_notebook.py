"""The notebook: as it is kept, and run afresh on the demo, so that it cannot rot."""

import base64
import json
import re
import shutil
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "padim_bottle.ipynb"
PARAMETERS = """\
CONFIG = DEMO = "configs/demo.yaml"
RESULTS = "results/notebook"
SEEDS = "0,1"
SETTINGS = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
"""


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameter_cell(notebook):
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    return cell


def printed(notebook):
    """Everything that the outputs say in words."""
    words = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            words.append(output.get("text", ""))
            words += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(words)


def pictures(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    encoded = [text for o in outputs for kind, text in o.get("data", {}).items() if kind.startswith("image/")]
    return [Image.open(BytesIO(base64.b64decode(text))) for text in encoded]


def test_it_is_kept_valid_and_small_with_the_outputs_of_one_run_from_top_to_bottom(kept):
    nbformat.validate(kept)
    assert NOTEBOOK.stat().st_size < 3_000_000
    assert [cell.execution_count for cell in code_cells(kept)] == list(range(1, len(code_cells(kept)) + 1))
    kinds = {output.output_type for cell in code_cells(kept) for output in cell.outputs}
    assert "error" not in kinds
    assert not [o for cell in code_cells(kept) for o in cell.outputs if o.get("name") == "stderr"]
    assert len(pictures(kept)) >= 8


def test_its_outputs_are_those_of_the_experiment_and_not_of_the_demo(kept):
    words = printed(kept)
    assert "MVTec AD: 209 good training images" in words
    assert "anomalib's PaDiM page, ResNet-18" in words
    assert "DEMO" not in words
    assert 'CONFIG = "configs/padim_resnet18.yaml"' in parameter_cell(kept).source


def test_it_holds_no_path_of_the_machine_it_ran_on(kept):
    text = printed(kept) + "".join(cell.source for cell in kept.cells)
    # A slash that begins a word, and a name after it: an absolute path.
    assert re.findall(r"(?<![\w.:/*>-])/(?!/)[A-Za-z][\w.-]*/", text) == []
    assert re.findall(r"[A-Z]:\\\\|file://", text) == []


def test_its_links_lead_to_its_own_headings_and_to_files_that_exist(kept):
    text = "\n".join(cell.source for cell in kept.cells if cell.cell_type == "markdown")
    headings = {line.lstrip("# ").replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 8
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings
        else:
            assert (NOTEBOOK.parent / link).exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_runs_on_the_demo(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    demo["model"]["init_args"]["image_size"] = [64, 64]
    demo["data"]["init_args"] |= {"size": 96, "train_good": 20, "test_good": 5, "test_per_defect": 3}
    (tmp_path / "configs" / "demo.yaml").write_text(yaml.safe_dump(demo))

    notebook = nbformat.from_dict(json.loads(json.dumps(kept)))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    parameter_cell(notebook).source = PARAMETERS
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    words = printed(notebook)
    assert "synthetic bottles: 20 good training images" in words
    assert "These figures say nothing about MVTec AD" in words
    assert "false alarms promised: 10%" in words
    assert len(pictures(notebook)) == len(pictures(kept))
    results = tmp_path / "results" / "notebook"
    runs = {path.parent.relative_to(results).as_posix() for path in results.glob("*/seed_*/metrics.json")}
    assert runs == {
        "demo_synthetic_random_weights/seed_42", "demo_synthetic_random_weights/seed_0",
        "demo_synthetic_random_weights/seed_1", "another_backbone/seed_42",
    }  # fmt: skip
    metrics = json.loads((results / "demo_synthetic_random_weights" / "seed_42" / "metrics.json").read_text())
    assert f"{metrics['image_AUROC']:.4f}" in words
    assert f"threshold from left-out scores {metrics['thresholds']['image']:22.2f}" in words
