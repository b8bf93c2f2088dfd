"""Put the tables of the character experiments into docs/characters.md, and the figure beside it.

    python experiments/charlm_page.py --headroom runs/headroom --arms runs/charlm_arms \
        --gap runs/charlm_gap

A table goes between the lines `<!-- NAME -->` and `<!-- end -->`; the text around it stays. Each of
the folders may be left out.
"""

import argparse
import shutil
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "characters.md"
FILES = {"headroom": "headroom.md", "arms": "charlm_arms.md", "gap": "charlm_gap.md"}
END = "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--headroom", type=Path, help="what fp16_true_headroom.py wrote")
    parser.add_argument("--arms", type=Path, help="what charlm_arms.py wrote")
    parser.add_argument("--gap", type=Path, help="what charlm_gap.py wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in FILES if getattr(args, name) is not None}
    page = args.page.read_text()
    for name, folder in given.items():  # all are read before the page is changed
        page = placed(page, name, (folder / FILES[name]).read_text())
    part = args.page.with_suffix(".part")
    part.write_text(page)
    part.replace(args.page)
    if "headroom" in given:
        shutil.copy(given["headroom"] / "headroom.png", args.page.with_name("headroom.png"))


def placed(page: str, name: str, text: str) -> str:
    """The page with the text in the place of that name.

    Raises:
        ValueError: the page has no such place.
    """
    before, mark, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the page has no lines '<!-- {name} -->' and '{END}'; add them")
    return f"{before}{mark}\n{text.strip()}\n\n{end}{after}"


if __name__ == "__main__":
    main()
