"""What is released: declared packages, bounds, and the files that describe the project."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import unitscale
from house.tree import PACKAGE, REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))

# Declared for work that is to come; nothing imports them yet (docs/install.md says so).
TO_COME = {"scipy", "cma"}
# Imported by Trainer of transformers, by torch.utils.tensorboard, by the caller of a sweep's jobs.
NEEDED_BY_OTHERS = {"accelerate", "tensorboard", "submitit", "ray"}
# Parts of what is declared: of typer, matplotlib, and lightning under its older name.
BROUGHT_ALONG = {"click", "mpl_toolkits", "pytorch_lightning"}
FOR_DEVELOPERS = ("dev", "docs", "release", "measure")


def package_of(requirement):
    return re.match(r"[\w-]+", requirement)[0].lower()


def declared(requirements):
    return {package_of(text) for text in requirements} - {"unitscale"}


def imported_by(folder):
    """Packages that the source imports anywhere, by a statement or by a name in a text."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and node.args:
                name, first = ast.unparse(node.func), node.args[0]
                is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
                if name in ("imported", "arrow", "import_module") and is_text:
                    found.add(first.value.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"unitscale", ""}


def test_every_imported_package_is_declared():
    for_users = [t for name, texts in EXTRAS.items() if name not in FOR_DEVELOPERS for t in texts]
    known = declared(PROJECT["dependencies"]) | declared(for_users) | BROUGHT_ALONG
    assert imported_by(PACKAGE) - known == set()


def test_every_declared_package_is_imported():
    for_users = [t for name, texts in EXTRAS.items() if name not in FOR_DEVELOPERS for t in texts]
    asked = declared(PROJECT["dependencies"]) | declared(for_users)
    assert asked - imported_by(PACKAGE) - TO_COME - NEEDED_BY_OTHERS == set()


def test_imports_are_seen_wherever_they_are(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    import scipy.stats\n    imported('ray.tune')\n")
    assert imported_by(tmp_path) == {"scipy", "ray"}


def test_library_needs_three_packages():
    assert declared(PROJECT["dependencies"]) == {"torch", "numpy", "safetensors"}
    assert EXTRAS["all"] == ["unitscale[cli,report,hf,parquet,tensorboard]"]


def minors(text):
    """Lower and upper minor version of torch in a requirement."""
    return tuple(int(re.search(rf"{sign}2\.(\d+)", text)[1]) for sign in (">=", "<"))


def test_bound_of_torch_is_what_ci_tests_and_the_documentation_says():
    (torch,) = (text for text in PROJECT["dependencies"] if package_of(text) == "torch")
    low, high = minors(torch)
    ci = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    matrix = ci["jobs"]["matrix"]["strategy"]["matrix"]
    assert [int(v.split(".")[1]) for v in matrix["torch"]] == list(range(low, high))
    page = (REPOSITORY / "docs" / "install.md").read_text()
    assert f"torch 2.{low} or newer but older than 2.{high}" in page
    assert all(version in page for version in matrix["torch"])
    assert minors("torch>=2.3,<2.7") == (3, 7)


def test_versions_of_python_are_the_same_everywhere():
    ci = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    tested = ci["jobs"]["matrix"]["strategy"]["matrix"]["python"]
    classified = [t.rpartition(" ")[2] for t in PROJECT["classifiers"] if ":: 3." in t]
    assert tested == classified
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == unitscale.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["cff-version"] == "1.2.0"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_runs_what_is_there(path):
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    jobs = yaml.safe_load(path.read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert lines
    for line in lines:
        assert set(re.findall(r"\bmake ([\w-]+)", line)) <= targets
        assert all((REPOSITORY / name).exists() for name in re.findall(r"tests/[\w/.]+", line))
        extras = re.findall(r"\.\[([\w,]+)\]", line)
        assert {e for names in extras for e in names.split(",")} <= EXTRAS.keys()
    assert all("timeout-minutes" in job for job in jobs.values())


def test_no_file_has_what_the_hooks_refuse():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0][
        "hooks"
    ]
    patterns = [re.compile(h["entry"], re.MULTILINE) for h in hooks if h["language"] == "pygrep"]
    assert len(patterns) == 2
    assert patterns[0].search("x = 1 \n")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    for name in filter(None, names):
        path = REPOSITORY / name
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ".yml", ".cff", ".css", ".js"):
            text = path.read_text(encoding="utf-8")
            assert not any(pattern.search(text) for pattern in patterns), name


def release_script():
    spec = importlib.util.spec_from_file_location("release", REPOSITORY / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_release_check_tries_each_extra_of_all():
    wanted = re.search(r"\[(.*)\]", EXTRAS["all"][0])[1].split(",")
    assert {extra for extra, _ in release_script().MISSING} == set(wanted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheel_and_sdist_work_without_extras():
    pytest.importorskip("build")
    import torch

    place = Path(torch.__file__).parents[1]
    line = [sys.executable, str(REPOSITORY / ".ci" / "release.py"), "--torch-from", str(place)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
