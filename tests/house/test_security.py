"""What SECURITY.md says: nothing in the package reads a pickle or runs text by itself."""

import ast

import pytest

from house.tree import PACKAGE, REPOSITORY

# What turns bytes or text into running code.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"torch.load", "np.load", "numpy.load", "eval", "exec", "yaml.load", "os.system"}

# Where a file may choose what is imported, or what is a pickle of torch's; SECURITY.md has both.
IMPORTS_BY_NAME = {"models/existing.py"}
READS_PICKLES_OF_TORCH = {"train/sharded.py"}


def dangers(source):
    """What in a file reads a pickle or runs text, a line each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            yield from (n for n in names if n.partition(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield called
            for keyword in node.keywords:
                text = f"{keyword.arg}={ast.unparse(keyword.value)}"
                if text in ("trust_remote_code=True", "weights_only=False", "shell=True"):
                    yield text


def files_with(text):
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if text in path.read_text()
    }


def test_nothing_reads_a_pickle_or_runs_text():
    found = {
        path.relative_to(PACKAGE).as_posix(): list(dangers(path.read_text()))
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("torch.load(path)", "torch.load"),
        ("model = f(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("eval(text)", "eval"),
    ],
)
def test_dangers_are_seen(source, danger):
    assert danger in list(dangers(source))
    assert list(dangers("model.eval(); ast.literal_eval(text); json.load(file)")) == []


def test_what_does_run_code_is_where_the_note_says():
    assert files_with("spec_from_file_location") == IMPORTS_BY_NAME
    assert files_with("FileSystemReader") == READS_PICKLES_OF_TORCH
    note = (REPOSITORY / "SECURITY.md").read_text()
    for words in ("MODULE:NAME", ".metadata", "unitscale sweep", "unitscale export"):
        assert words in note
