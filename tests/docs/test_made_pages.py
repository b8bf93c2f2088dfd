"""What scripts make for the documentation: tables and pictures are fresh, and the API is whole."""

import importlib
import re
from xml.etree import ElementTree

import pytest
import torch

import site_api
import site_commands
import site_pictures
import site_tables
from house import snapshot
from house.tree import REPOSITORY

PINNED = re.search(r"^torch==([\d.]+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", site_tables.PAGES)
def test_tables_are_fresh(name):
    if name == "op_rules.md" and not torch.__version__.startswith(PINNED[1]):
        pytest.skip(f"the names of ops are those of torch {PINNED[1]}")
    written = (site_tables.DOCS / name).read_text(encoding="utf-8")
    assert written == site_tables.PAGES[name](), "run: python docs/scripts/site_tables.py"


def test_a_table_that_is_old_is_seen(tmp_path):
    (tmp_path / "formats.md").write_text("old")
    assert site_tables.old_pages(tmp_path) == list(site_tables.PAGES)


def test_numbers_of_tables_are_the_values():
    assert [site_tables.number(x) for x in (448.0, 2.0**-24, 57344.0, 1.0, 0.125)] == [
        "448", "2^-24", "57344", "1", "0.125",
    ]  # fmt: skip


def test_pictures_are_fresh():
    assert site_pictures.old_pictures() == [], "run: python docs/scripts/site_pictures.py"


def test_a_picture_that_is_old_is_seen(tmp_path):
    assert site_pictures.old_pictures(tmp_path) == list(site_pictures.DRAWN)


@pytest.mark.parametrize("name", site_pictures.DRAWN)
def test_text_of_a_picture_stays_inside(name):
    """By the width that no letter of such a font exceeds on average, 0.62 of its size."""
    picture = site_pictures.DRAWN[name]()
    for text in ElementTree.fromstring(picture.svg()).iter("{http://www.w3.org/2000/svg}text"):
        width = 0.62 * float(text.get("font-size")) * len(text.text)
        left = (
            float(text.get("x"))
            - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        )
        assert left >= 0
        assert left + width <= picture.width


def test_every_public_symbol_is_documented():
    assert site_api.undocumented() == []


def test_api_is_what_is_public():
    assert site_api.rooms() == snapshot.public_api()
    for room, names in site_api.rooms().items():
        page = site_api.page(room)
        module = importlib.import_module(room)
        headings = set(re.findall(r"^## (\S+)", page, re.MULTILINE))
        assert headings == {n for n in names if not site_api.is_room(getattr(module, n))}


DOCSTRING = """One `a < b` line, x < y.

Args:
    x: of
        two lines.
Raises:
    ValueError: no.
"""


def test_docstrings_become_markdown():
    assert site_api.markdown(DOCSTRING).splitlines() == [
        "One `a < b` line, x &lt; y.",
        "",
        "**Arguments**",
        "",
        "- `x`: of two lines.",
        "",
        "**Raises**",
        "",
        "- `ValueError`: no.",
    ]


def test_a_symbol_without_description_is_seen(monkeypatch):
    import unitscale.laws as laws

    monkeypatch.setattr(laws, "fit", lambda: None)
    assert site_api.undocumented() == ["unitscale.laws.fit"]


def test_every_command_is_on_its_page():
    page = site_commands.page()
    for command, flags in snapshot.read("cli_flags").items():
        assert f"## {command}\n" in page
        assert all(f"`{flag}`" in page for flag in flags if flag.startswith("--"))
