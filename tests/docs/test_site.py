"""The documentation: every page is in the navigation, links lead somewhere, blocks run."""

import re
from pathlib import Path

import pytest
import yaml

from house import snapshot
from house.test_readme import MAKEFILE, blocks, unknown_flags
from house.tree import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
TOP = {"changes.md", "contributing.md", "security.md", "governance.md"}
MADE = {*TOP, "command_line.md", "api/index.md"}

# Pages whose Python runs as it stands, block after block in one session. The others show parts.
RUN = (
    "index.md",
    "five_minutes.md",
    "fp8_for_my_model.md",
    "design_a_model.md",
    "method_units.md",
    "method_recipes.md",
    "writing_models.md",
)


def named(navigation):
    """The pages of a navigation, in order."""
    for entry in navigation:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from named(value)


NAVIGATION = list(named(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The places of a page that a link can name, as Markdown makes them of its headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", slug))
    return found


def broken(pages, folder):
    """Links between pages, and to pictures, that lead nowhere."""
    found = []
    for name, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
            place, _, anchor = target.partition("#")
            if target.startswith(("http://", "https://")) or place in MADE:
                continue
            if place.endswith(".md") or not place:
                page = pages.get(place or name)
                if page is None:
                    found.append(f"{name}: {target}")
                elif page is not None and anchor and anchor not in anchors(page):
                    found.append(f"{name}: {target}, which has no such heading")
            elif not (folder / place).is_file():
                found.append(f"{name}: {target}")
    return found


def test_every_page_is_in_the_navigation_once():
    assert sorted(NAVIGATION) == sorted(set(NAVIGATION))
    assert set(PAGES) - set(NAVIGATION) == set(), "add the page to nav in mkdocs.yml"
    assert set(NAVIGATION) - set(PAGES) - MADE == set()


def test_links_lead_somewhere():
    assert broken(PAGES, DOCS) == []


def test_broken_links_are_seen():
    pages = {"a.md": "# One\n[x](b.md) [y](a.md#two) ![z](c.svg) [w](#one)\n```\n[v](d.md)\n```\n"}
    assert broken(pages, DOCS) == [
        "a.md: b.md",
        "a.md: a.md#two, which has no such heading",
        "a.md: c.svg",
    ]


def test_pages_named_in_texts_are_there():
    named_pages = {n for text in PAGES.values() for n in re.findall(r"`docs/(\w+\.md)`", text)}
    assert named_pages - set(PAGES) == set()


def run(name, chosen):
    """What is defined after blocks of a page, one after the other in one session."""
    scope = {}
    for index, block in enumerate(chosen):
        exec(compile(block, f"{name} block {index}", "exec"), scope)
    return scope


def test_pages_named_in_docstrings_are_there():
    """The site makes links of them, in its pages of the API."""
    sources = sorted((REPOSITORY / "src").rglob("*.py"))
    named_pages = {n for path in sources for n in re.findall(r"`docs/(\w+\.md)`", path.read_text())}
    assert named_pages - set(PAGES) == set()


@pytest.mark.parametrize("name", RUN)
def test_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(name, blocks(PAGES[name], "python"))


def test_a_block_that_fails_is_noticed():
    with pytest.raises(AssertionError):
        run("none", ["x = 1", "assert x == 2"])


def test_the_model_without_our_modules_has_its_rates():
    (own,) = (block for block in blocks(PAGES["learning_rates.md"], "python") if "class" in block)
    groups = run("learning_rates.md", [own])["optimizer"].param_groups
    assert {group["kind"] for group in groups} == {"input", "hidden", "norm"}


def test_python_of_every_page_is_python():
    for name, text in PAGES.items():
        for index, block in enumerate(blocks(text, "python") + blocks(text, "py")):
            compile(block, f"{name} block {index}", "exec")


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_exist(name):
    assert unknown_flags(PAGES[name], snapshot.read("cli_flags")) == []


def test_make_targets_exist():
    known = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    wanted = {
        target
        for text in PAGES.values()
        for target in re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE)
    }
    assert wanted - known == set()


SCRIPT = re.compile(
    r"python ((?:experiments|benchmarks|docs/scripts|examples)/[\w/]+\.py)([^`\n#]*)"
)


def wrong_scripts(text):
    """Scripts that a text runs and that are not there, and options that they do not have."""
    found = []
    for script, rest in SCRIPT.findall(text.replace("\\\n", " ")):
        path = REPOSITORY / script
        if not path.is_file():
            found.append(script)
        else:
            source = with_siblings(path)
            flags = re.findall(r"(?<=\s)--[a-z][\w-]*", rest)
            found += [f"{script} {flag}" for flag in flags if f'"{flag}"' not in source]
    return found


def with_siblings(path):
    """The text of a script and of the files beside it that it imports: options may be theirs."""
    source = path.read_text(encoding="utf-8")
    names = re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
    beside = [path.with_name(f"{name}.py") for name in names]
    return source + "".join(one.read_text(encoding="utf-8") for one in beside if one.is_file())


@pytest.mark.parametrize("name", PAGES)
def test_scripts_of_a_page_exist(name):
    assert wrong_scripts(PAGES[name]) == []


def test_wrong_scripts_are_seen():
    text = "python experiments/serving.py --out x \\\n --stpes 3\n`python benchmarks/none.py`"
    assert wrong_scripts(text) == ["experiments/serving.py --stpes", "benchmarks/none.py"]


FIGURE = re.compile(r"[+-]?\d+\.\d+ ± \d+\.\d+|\d\.\d+ \(\d\.\d+ to \d\.\d+\)")


def test_guides_have_no_figure_that_no_measurement_has():
    guides = ("choose_recipe.md", "reproduce.md", "did_not_work.md")
    measured = "\n".join(text for name, text in PAGES.items() if name not in guides)
    measured = measured.replace("+-", "±")
    for name in guides:
        figures = FIGURE.findall(PAGES[name])
        assert figures
        assert [figure for figure in figures if figure not in measured] == []
    assert FIGURE.findall("it is 1.2345 ± 0.0001") == ["1.2345 ± 0.0001"]


@pytest.mark.slow
def test_site_builds_and_fetches_nothing(tmp_path):
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    loaded = config.load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build.build(loaded)  # aborts at a warning
    pages = [path.read_text(encoding="utf-8") for path in Path(tmp_path).rglob("*.html")]
    assert len(pages) > 50
    fetched = {
        u
        for text in pages
        for u in re.findall(r'<(?:script|img|link)[^>]*"(https?://[^"]+)"', text)
    }
    assert fetched == set()
    assert (tmp_path / "frame_worker.js").is_file()
