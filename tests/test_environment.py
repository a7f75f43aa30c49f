"""What must be installed: pinned exactly for the two make commands, bounded for a package, everywhere the same."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rbc_warp.errors import WARPDRIVE

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT_FILES = ("requirements.txt", "requirements-warpdrive.txt", "requirements-gpu.txt", "requirements-dev.txt")
# gym brings gym_notices.
DISTRIBUTION_OF_MODULE = {"yaml": "pyyaml", "warp_drive": "rl-warp-drive", "gym_notices": "gym"}
# Who asks for one of these installs it; nothing else may need it.
OPTIONAL = {"mlflow", "ray", "wandb"}
CONDA_NAMES = {"pytorch-gpu": "torch"}
# What torch brings, besides what the Makefile lists.
BROUGHT_BY_TORCH = {"torch", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "triton"}


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(*names: str) -> dict[str, str]:
    """Distribution to version."""
    found: dict[str, str] = {}
    for name in names:
        for requirement in requirements(name):
            (specifier,) = requirement.specifier
            key = canonicalize_name(requirement.name)
            assert found.get(key, specifier.version) == specifier.version, f"{key} is pinned twice, differently"
            found[key] = specifier.version
    return found


def conda_dependencies() -> tuple[list[str], list[Requirement]]:
    """conda's own specifications and those of the pip section."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    return [entry for entry in entries if isinstance(entry, str)], [Requirement(line) for line in pip]


@pytest.mark.parametrize("name", REQUIREMENT_FILES)
def test_every_requirement_is_pinned_exactly(name):
    for requirement in requirements(name):
        operators = [(specifier.operator, "*" in specifier.version) for specifier in requirement.specifier]
        assert operators == [("==", False)], f"{name}: {requirement}"


def test_conda_environment_agrees_with_the_requirements():
    conda, pip = conda_dependencies()
    pinned = pins(*REQUIREMENT_FILES)
    for requirement in pip:
        name = canonicalize_name(requirement.name)
        assert str(requirement.specifier) == f"=={pinned[name]}", f"environment.yml: {requirement}"
    for entry in conda:
        name, _, version = entry.partition("=")
        name = canonicalize_name(CONDA_NAMES.get(name, name))
        if version and name in pinned:
            assert pinned[name].startswith(version.removesuffix("*")), f"environment.yml: {entry}"
    given = {canonicalize_name(requirement.name) for requirement in pip}
    given |= {canonicalize_name(CONDA_NAMES.get(name, name)) for name in (entry.partition("=")[0] for entry in conda)}
    assert any(entry.startswith("pytorch-gpu=") for entry in conda), "the solver could choose a CPU build"
    assert any(entry.startswith("cuda-version=") for entry in conda), "the solver could choose another CUDA"
    missing = imported_distributions() - given
    assert not missing, f"environment.yml lacks {missing}"
    assert {"pycuda", "numba", "matplotlib", "torch"} <= given, "rl-warp-drive would make pip build what it declares"


def test_python_version_is_the_same_everywhere():
    conda, _ = conda_dependencies()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in project["classifiers"]
    assert "python=3.11" in conda
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text()


def imported_modules(path: Path) -> dict[str, bool]:
    """Top-level modules that a file imports, and whether it does so as soon as it is imported itself."""
    found: dict[str, bool] = {}

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and not child.level:
                names = [child.module or ""]
            for name in names:
                top = name.partition(".")[0]
                found[top] = found.get(top, False) or at_import
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            visit(child, at_import and not lazy)

    visit(ast.parse(path.read_text(), filename=str(path)), True)
    return found


def sources() -> list[Path]:
    return sorted([*(ROOT / "rbc_warp").rglob("*.py"), *ROOT.glob("*.py")])


def imported_distributions() -> set[str]:
    ours = {"rbc_warp", *(path.stem for path in ROOT.glob("*.py"))}
    modules = {module for path in sources() for module in imported_modules(path)} - ours - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTION_OF_MODULE.get(module, module)) for module in modules - OPTIONAL}


def test_every_import_is_declared():
    declared = set(pins("requirements.txt", "requirements-warpdrive.txt", "requirements-gpu.txt"))
    assert imported_distributions() <= declared


def test_optional_packages_are_imported_only_when_asked_for():
    assert not [path for path in sources() if any(imported_modules(path).get(name, False) for name in OPTIONAL)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pycuda_is_imported_only_where_a_gpu_is(path):
    at_import = imported_modules(path).get("pycuda", False)
    assert not at_import or re.fullmatch(r"pycuda\w*\.py", path.name) and path.parent.name == "warpdrive"


def test_the_package_s_bounds_hold_what_is_pinned():
    """pyproject.toml asks for the distributions that the lab imports, in versions that include the tested ones."""
    imported = (ROOT / "requirements.txt").read_text().split("# What these need")[0]
    names = {canonicalize_name(Requirement(line).name) for line in imported.splitlines() if line and line[0] != "#"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [Requirement(line) for line in project["dependencies"]]
    assert sorted(canonicalize_name(bound.name) for bound in bounds) == sorted(names)
    extras = project["optional-dependencies"]
    bounds += [Requirement(line) for name in ("extras", "gpu", "ray") for line in extras[name]]
    pinned = pins(*REQUIREMENT_FILES, "requirements-extras.txt", "requirements-ray.txt")
    for bound in bounds:
        operators = {specifier.operator for specifier in bound.specifier}
        assert ">=" in operators and "==" not in operators, f"{bound}: a package gives bounds"
        assert bound.specifier.contains(pinned[canonicalize_name(bound.name)]), bound


def test_the_remedy_for_a_missing_warpdrive_is_the_pinned_one():
    (pinned,) = requirements("requirements-warpdrive.txt")
    assert f"pip install --no-deps {pinned}" == WARPDRIVE


def test_makefile_has_the_targets_that_others_call():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {
        "train",
        "test",
        "check",
        "setup",
        "setup-gpu",
        "setup-ray",
        "setup-extras",
        "wheels-gpu",
        "test-gpu",
        "bench",
        "bench-gpu",
        "slow",
        "clean",
    } <= targets
    assert "run_training.py --config $(CONFIG)" in makefile
    assert "CONFIG ?= configs/rbc.yaml" in makefile
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-ray.txt", "requirements-extras.txt"):
        assert f"-r {name}" in makefile, f"the set-up does not install {name}"
    assert "--no-deps -r requirements-warpdrive.txt" in makefile
    assert makefile.count("$(IMPORTABLE)") == 2, "a set-up in which scripts elsewhere cannot import the package"


def lean() -> set[str]:
    """The distributions that `make wheels-gpu` collects, by the Makefile's variables."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    names = [re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE) for name in ("LEAN", "LEAN_SDIST")]
    listed = {canonicalize_name(word) for found in names if found for word in found[1].split() if word[0] != "$"}
    return listed | set(pins("requirements-gpu.txt"))


def test_a_gpu_machine_gets_only_what_is_pinned():
    assert lean() <= set(pins(*REQUIREMENT_FILES))


LEAN_PROGRAM = """
import importlib.metadata, sys
allowed = set(sys.argv[1].split())
for module, owners in importlib.metadata.packages_distributions().items():
    if not {owner.lower().replace("_", "-") for owner in owners} & allowed:
        sys.modules[module] = None
from rbc_warp.commands.train import main
import rbc_warp.commands.bench
settings = [part for setting in ("num_episodes=2", "batch_size=4") for part in ("--set", f"train.{setting}")]
main(["--config", "configs/smoke.yaml", "--experiment-dir", sys.argv[2], "--backend", "host", "--quiet", *settings])
import pytest
sys.exit(pytest.main(["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider", *sys.argv[3:]]))
"""


def test_a_gpu_machine_trains_and_tests_with_what_it_gets(tmp_path):
    """With every other distribution hidden: training, the benchmark's modules, and the tests of the GPU import."""
    tests = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu\n" in path.read_text()]
    done = subprocess.run(
        [sys.executable, "-c", LEAN_PROGRAM, " ".join(lean() | BROUGHT_BY_TORCH), str(tmp_path / "runs"), *tests],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TensorBoard is not installed" in done.stderr and list((tmp_path / "runs").glob("*/metrics.jsonl"))


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"
