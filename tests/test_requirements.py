"""What is installed: pyproject.toml, requirements.txt and the constraints say the same."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(lines):
    """By name; comments, blank lines and options of pip are left out, and so is the package itself."""
    read = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))]
    return {canonicalize_name(r.name): r for r in read if canonicalize_name(r.name) != PROJECT["name"]}


def file_requirements(name):
    return requirements((ROOT / name).read_text().splitlines())


def versions(found):
    return {name: requirement.specifier for name, requirement in found.items()}


def lowest(requirement):
    (version,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
    return version


def test_requirements_txt_says_what_pyproject_says():
    assert versions(file_requirements("requirements.txt")) == versions(requirements(PROJECT["dependencies"]))
    assert "-e ." in (ROOT / "requirements.txt").read_text().splitlines()


def test_the_lowest_constraints_are_the_lower_bounds():
    declared = requirements([*PROJECT["dependencies"], *EXTRAS["export"], *EXTRAS["ray"], *EXTRAS["app"]])
    constraints = file_requirements("constraints-lowest.txt")
    assert constraints.keys() == declared.keys()
    for name, constraint in constraints.items():
        (pin,) = constraint.specifier
        assert Version(pin.version) == Version(lowest(declared[name])), name


def test_the_tested_versions_are_allowed_and_complete():
    declared = requirements([*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])
    tested = file_requirements("constraints.txt")
    for name, requirement in declared.items():
        (pin,) = tested[name].specifier
        assert requirement.specifier.contains(pin.version), name


@pytest.mark.parametrize("operator", [">=", "!=", "<"])
def test_torch_and_torchvision_are_bounded_in_pairs(operator):
    declared = requirements(PROJECT["dependencies"])
    torch, torchvision = (
        [int(re.match(r"\d+\.(\d+)", s.version)[1]) for s in declared[name].specifier if s.operator == operator]
        for name in ("torch", "torchvision")
    )
    assert [minor + 15 for minor in torch] == torchvision
