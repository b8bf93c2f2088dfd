import pytest

from house import tree

RULES = [
    tree.layer_violations,
    tree.torch_violations,
    tree.size_violations,
    tree.name_violations,
    tree.public_name_violations,
]


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps_the_rules(rule):
    assert list(rule(tree.PACKAGE)) == []


@pytest.mark.parametrize("rule", [tree.size_violations, tree.name_violations])
@pytest.mark.parametrize("folder", ["tests", "experiments", "benchmarks"])
def test_other_folders_keep_the_rules_of_every_file(rule, folder):
    assert list(rule(tree.REPOSITORY / folder)) == []


def write(tmp_path, **files):
    """Lay a package; a name's `__` is a folder: nn__linear="..." is nn/linear.py."""
    package = tmp_path / "unitscale"
    for name, text in files.items():
        path = package / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("from ..models import CharLM", "functional imports models, which is not below it"),
        ("from unitscale import nn as unn", "functional imports nn, which is not below it"),
        ("import unitscale.nn.linear", "functional imports nn, which is not below it"),
        ("def f():\n    from .. import train", "functional imports train, which is not below it"),
        ("from unitscale import scaled", "imports unitscale.scaled; import it from the room"),
        ("import unitscale as us", "imports unitscale; import it from the room"),
    ],
)
def test_import_that_goes_up_is_seen(tmp_path, statement, complaint):
    package = write(tmp_path, functional__activation=statement)
    (violation,) = tree.layer_violations(package)
    assert violation.startswith("functional/activation.py:")
    assert complaint in violation


def test_import_of_a_peer_is_seen(tmp_path):
    package = write(tmp_path, numerics__digest="from ..scaling import scaled")
    assert list(tree.layer_violations(package)) == [
        "numerics/digest.py:1: numerics imports scaling, which is not below it"
    ]


def test_unknown_room_is_seen(tmp_path):
    package = write(tmp_path, attic__box="")
    assert list(tree.layer_violations(package)) == [
        "attic/box.py: 'attic' is not a room of the house"
    ]


def test_imports_down_and_for_type_checkers_pass(tmp_path):
    package = write(
        tmp_path,
        nn__linear=(
            "import torch\nfrom typing import TYPE_CHECKING\nimport unitscale.functional as U\n"
            "from ..scaling import scaled\nfrom .activation import GELU\n"
            "if TYPE_CHECKING:\n    from ..train import loop\n"
        ),
    )
    assert list(tree.layer_violations(package)) == []


@pytest.mark.parametrize(
    "text",
    ["import torch", "from torch import nn", "def f():\n    import torch.nn.functional as F"],
)
def test_torch_in_a_torch_free_file_is_seen(tmp_path, text):
    package = write(tmp_path, scaling__factors__linear=text, scaling__primitive=text)
    (violation,) = tree.torch_violations(package)
    assert "scaling.factors.linear is to be free of torch" in violation


def test_command_may_import_torch_when_it_runs(tmp_path):
    package = write(tmp_path, cli__train="def run():\n    import torch", cli__bad="import torch")
    (violation,) = tree.torch_violations(package)
    assert violation.startswith("cli/bad.py:1")


def test_long_file_is_seen(tmp_path):
    package = write(tmp_path, nn__short="x\n" * 400, nn__long="x\n" * 401)
    assert list(tree.size_violations(package)) == ["nn/long.py: 401 lines, more than 400"]


@pytest.mark.parametrize("name", ["nn__utils", "nn___helpers", "common__linear"])
def test_empty_name_is_seen(tmp_path, name):
    package = tmp_path / "unitscale"
    path = package / name.replace("__", "/", 1)
    path.with_suffix(".py").parent.mkdir(parents=True)
    path.with_suffix(".py").touch()
    assert len(list(tree.name_violations(package))) == 1


def test_package_without_public_names_is_seen(tmp_path):
    package = write(tmp_path, nn__linear="")
    (package / "nn" / "__init__.py").write_text("from .linear import Linear\n")
    assert list(tree.public_name_violations(package)) == ["nn/__init__.py: defines no __all__"]
    (package / "nn" / "__init__.py").write_text("__all__: list[str] = []\n")
    assert list(tree.public_name_violations(package)) == []
