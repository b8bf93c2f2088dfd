"""The paths of a module that is registered more than once."""

from fnmatch import fnmatchcase

from torch import nn

from unitscale.graph.place import alias_patterns


def tied() -> nn.Module:
    model = nn.Module()
    model.first = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.second = model.first
    model.third = nn.ModuleDict({"a[b": model.first[0]})
    model.last = nn.Linear(2, 2)
    return model


def test_a_pattern_holds_for_every_path_of_a_module() -> None:
    found = alias_patterns(tied(), ["first.0"])
    others = ["second.0", "third.a[b"]
    assert len(found) == 2
    assert all(any(fnmatchcase(path, pattern) for pattern in found) for path in others)


def test_a_path_that_is_not_the_first_is_as_good() -> None:
    assert set(alias_patterns(tied(), ["second"])) == {"first"}


def test_a_module_with_one_path_has_no_others() -> None:
    assert alias_patterns(tied(), ["last"]) == ()
    assert alias_patterns(tied(), ["nothing"]) == ()
    assert alias_patterns(tied(), ["*"]) == ()
