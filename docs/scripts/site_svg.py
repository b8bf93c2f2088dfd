"""A picture as SVG, written by hand: the same bytes everywhere, and readable on a phone.

Colors and sizes are fixed, and the ground is white: so it looks alike in a light and a dark page.
"""

from collections.abc import Iterable
from xml.sax.saxutils import escape

__all__ = ["BLUE", "GRAY", "GREEN", "INK", "LIGHT", "ORANGE", "Picture"]

INK, GRAY, LIGHT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN = "#2456a6", "#c25700", "#1b7a43"
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"


class Picture:
    """Shapes in the order in which they are drawn.

    Args:
        width, height: of the whole, in pixels.
        title: what it shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "none",
        stroke: str = "none",
        radius: float = 0,
    ) -> None:
        """A rectangle from its upper left corner."""
        self.shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="{radius:g}" fill="{fill}" stroke="{stroke}"/>'
        )

    def line(
        self,
        points: Iterable[tuple[float, float]],
        *,
        color: str = INK,
        width: float = 1.5,
        dashed: bool = False,
        arrow: bool = False,
    ) -> None:
        """A line through points; with an arrow at its end."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        more = ' stroke-dasharray="5 4"' if dashed else ""
        more += f' marker-end="url(#{marker(color)})"' if arrow else ""
        self.shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" '
            f'stroke-width="{width:g}"{more}/>'
        )

    def dot(self, x: float, y: float, *, color: str = INK, radius: float = 3) -> None:
        """A dot one can see through, so that many in a place are darker."""
        self.shapes.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}" fill-opacity="0.45"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        color: str = INK,
        size: int = 15,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """A line of text; `anchor` is start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def svg(self) -> str:
        """The file."""
        markers = "".join(
            f'<marker id="{marker(color)}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{color}"/></marker>'
            for color in (INK, GRAY, BLUE, ORANGE, GREEN)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" font-family="{FONT}">\n'
            f"<title>{escape(self.title)}</title>\n<defs>{markers}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff"/>\n'
            + "\n".join(self.shapes)
            + "\n</svg>\n"
        )


def marker(color: str) -> str:
    """The name of the arrow's head of a color."""
    return f"arrow-{color.removeprefix('#')}"
