"""Run the core's fast tests in a copy that has no doors: ``python tests/without_doors.py [PYTEST-ARGS]``."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOORS = ("app", "commands", "compare", "export", "predict", "report", "sweep", "tune")
CORE = ("data", "model", "evaluation", "runs")
USES_A_DOOR = re.compile(rf"padim_bottle\.({'|'.join(DOORS)})\b")


def main() -> int:
    """Copy, delete, run; return pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("src", "tests", "configs", "benchmarks", "examples"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for door in DOORS:
            shutil.rmtree(Path(folder, "src", "padim_bottle", door))
        files = [path for room in CORE for path in sorted(Path(folder, "tests", room).glob("test_*.py"))]
        chosen = [path for path in files if not USES_A_DOOR.search(path.read_text())]
        print(f"Without doors: {len(chosen)} of {len(files)} files of tests, the others use a door.", flush=True)
        code = (
            f"import sys; sys.path.insert(0, {str(Path(folder, 'src'))!r}); import padim_bottle, pytest\n"
            f"assert padim_bottle.__file__.startswith({folder!r})\nsys.exit(pytest.main(sys.argv[1:]))"
        )
        words = ["-q", "-m", "not slow and not real_data", *map(str, chosen), *sys.argv[1:]]
        return subprocess.run([sys.executable, "-c", code, *words], cwd=folder).returncode


if __name__ == "__main__":
    raise SystemExit(main())
