"""The notebook: as it is kept, and run afresh on the demo, so that it cannot rot."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
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
SEEDS = "0,42"
SETTINGS = []
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
    assert "anomalib's PaDiM" in words and "Bertoldo" in words
    assert "AUPIMO" in words
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
    demo["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
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
    assert "false alarms asked for: 10%" in words
    assert "The paper's one grid is still better in:\n- " in words
    assert len(pictures(notebook)) == len(pictures(kept))
    results = tmp_path / "results" / "notebook"
    runs = {path.parent.relative_to(results).as_posix() for path in results.glob("*/seed_*/metrics.json")}
    assert runs == {
        "demo_synthetic_random_weights/seed_42", "demo_synthetic_random_weights/seed_0",
        "demo_two_grids/seed_42", "another_backbone/seed_42",
    }  # fmt: skip
    metrics = json.loads((results / "demo_synthetic_random_weights" / "seed_42" / "metrics.json").read_text())
    assert f"{metrics['image_AUROC']:.4f}" in words
    assert f"threshold from left-out scores {metrics['thresholds']['image']:22.2f}" in words


# --- The first cell, as on a machine where the project is not installed ---


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small copy of the project, as a repository to clone."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "requirements.txt", folder)
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "a_notebook.ipynb").touch()
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "all"], check=True)
    return folder


def run_first_cell(kept, folder, repository=""):
    """Run it in a new interpreter that has the libraries but not the project; pip only says what it was asked for."""
    (folder / "stub").mkdir()
    (folder / "stub" / "pip.py").write_text("import sys; open('asked_of_pip', 'w').write(' '.join(sys.argv[1:]))")
    cell = code_cells(kept)[0].source
    field = 'REPOSITORY = ""  # @param {type:"string"}'
    assert cell.count(field) == 1
    code = cell.replace(field, f"REPOSITORY = {str(repository)!r}") + (
        "\nimport json, padim_bottle.errors"
        "\nprint(json.dumps([os.getcwd(), padim_bottle.errors.__file__, Path('asked_of_pip').read_text()]))"
    )
    # Without the module site there are no editable installs.
    environment = os.environ | {"PYTHONPATH": f"{folder / 'stub'}{os.pathsep}{sysconfig.get_path('purelib')}"}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("way", ["address", "folder beside it", "zip", "clone"])
def test_its_first_cell_finds_or_fetches_the_project(kept, project, tmp_path, way):
    folder, repository, expected = tmp_path, "", tmp_path / "padim-bottle"
    if way == "address":
        repository = project
    elif way == "folder beside it":
        shutil.copytree(project, expected)
    elif way == "zip":
        shutil.make_archive(str(tmp_path / "padim-bottle"), "zip", project)
    else:
        shutil.copytree(project, expected)
        folder = expected / "notebooks"
    done = run_first_cell(kept, folder, repository)
    assert done.returncode == 0, done.stderr
    where, module, asked = json.loads(done.stdout)
    assert Path(where) == expected.resolve()
    assert Path(module) == expected.resolve() / "src" / "padim_bottle" / "errors.py"
    assert asked.split()[0] == "install" and asked.endswith("-r requirements.txt")


def test_its_first_cell_says_what_to_fill_in(kept, tmp_path):
    done = run_first_cell(kept, tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "fill REPOSITORY in with the address of its repository, or upload its zip" in done.stderr
    assert not (tmp_path / "asked_of_pip").exists()


def test_its_first_cell_says_why_an_address_cannot_be_cloned(kept, tmp_path):
    done = run_first_cell(kept, tmp_path, tmp_path / "nothing")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "git clone" in done.stderr and "does not exist" in done.stderr
