"""Delete doors from copies of the package, and use the core that is left.

    python tests/core_alone.py OUTPUT DOOR[,DOOR...] ...

For each argument a copy of the package is made without these doors. A process of its own imports every module of the
core; where several doors are gone, it also trains a small model and runs the core's quick tests. ``OUTPUT/<argument>/``
keeps what it said and the run. All processes are forks of this one, so that what takes long is loaded once.
"""

import os
import shutil
import sys
import traceback
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "padim_bottle"
LIBRARIES = ("anomalib.engine", "anomalib.models", "cv2", "matplotlib.figure", "pandas", "scipy.stats", "timm")
QUICK = (
    "test_tables.py", "test_files.py", "evaluation/test_differences.py", "runs/test_description.py", "runs/test_run.py",
)  # fmt: skip


def check(doors: list[str], output: Path) -> None:
    """Do it all in this process."""
    shutil.copytree(PACKAGE, output / "src" / "padim_bottle", ignore=shutil.ignore_patterns("__pycache__", *doors))
    sys.path[:0] = [str(output / "src"), str(TESTS)]
    # An editable installation would find what was deleted here at its own place.
    sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
    package = import_module("padim_bottle")
    assert Path(package.__file__).is_relative_to(output), package.__file__
    core = import_module("padim_bottle.runs.environment").CORE
    for path in sorted((output / "src" / "padim_bottle").rglob("*.py")):
        module = path.relative_to(output / "src").with_suffix("")
        if module.parts[1] in {name.removesuffix(".py") for name in core}:
            import_module(".".join(module.parts).removesuffix(".__init__"))
    if len(doors) == 1:
        return
    # What asks for a report goes on without one.
    import_module("small").train_small(output)
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not real_data"]
    code = pytest.main([*arguments, *(str(TESTS / name) for name in QUICK)])
    assert code == 0, f"pytest ended with {code}"


def main(output: Path, doors: list[str]) -> int:
    """Check each in a fork; return 0 if all went well."""
    for library in LIBRARIES:
        import_module(library)
    failed = []
    for names in doors:
        folder = output / names
        folder.mkdir(parents=True)
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            said = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            code = 1
            try:
                check(names.split(","), folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        if os.waitpid(process, 0)[1]:
            failed.append(names)
    print("\n".join(failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
