"""What `mkdocs build` does besides: pages that are made, and links out of the folder of the pages.

api/*.md           every public symbol (site_api)
command_line.md    every command (site_commands)
changes.md ...     files of the repository's top folder, as they are
"""

import logging
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mkdocs.structure.files import File

import site_api
import site_commands

ROOT = Path(__file__).parents[2]
TOP = {
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "governance.md": "GOVERNANCE.md",
}
COMING = ("writing_models.md", "bert.md", "characters.md", "migrate.md")
"""Pages that the navigation names and that may not be there yet; all others have to be."""

log = logging.getLogger("mkdocs.hooks.site")


def api_pages() -> dict[str, str]:
    """The pages of the API by their place, `index.md` for the facade."""
    return {
        "api/index.md" if room == "unitscale" else f"api/{room}.md": room
        for room in site_api.rooms()
    }


def on_config(config: Any) -> Any:
    """Put the pages of the API into the navigation, and leave out those that are to come."""
    docs = Path(config.docs_dir)
    for section in config.nav:
        for title, entries in section.items():
            if not isinstance(entries, list):
                continue
            section[title] = [
                {"API": [{room: place} for place, room in api_pages().items()]}
                if "API" in entry
                else entry
                for entry in entries
                if not any(e in COMING and not (docs / e).exists() for e in entry.values())
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    made = {place: site_api.page(room) for place, room in api_pages().items()}
    made["command_line.md"] = site_commands.page()
    made |= {place: (ROOT / file).read_text(encoding="utf-8") for place, file in TOP.items()}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would fetch for a page that is read from the disk; `frame_worker.js` is ours."""


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Fetch nothing from elsewhere."""
    return output.replace(SHIM, f"{page.file.url.count('/') * '../'}frame_worker.js")


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The page for an address that is not there needs it too."""
    return output.replace(SHIM, "frame_worker.js")


PAGE_IN_TEXT = re.compile(r"`docs/(\w+)\.md`")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make a link of each page that a text names as `docs/NAME.md`."""

    def link(match: re.Match[str]) -> str:
        target = f"{match[1]}.md"
        if files.get_file_from_path(target) is None:
            log.warning("%s names docs/%s, which is not there", page.file.src_path, target)
            return match[0]
        up = "../" * page.file.src_path.count("/")
        return f"[`{match[1]}`]({up}{target})"

    return PAGE_IN_TEXT.sub(link, markdown)
