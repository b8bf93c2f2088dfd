"""report.html: one file that can be mailed. Table, plot and configuration, nothing fetched."""

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from unitscale.report.summary import TITLES, summarize
from unitscale.report.table import headline

PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>unitscale: $headline</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: auto; padding: 1rem }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
  th:first-child, td:first-child, th:last-child, td:last-child { text-align: left }
  .diverged { color: #b00020 }
  img { width: 100% }
  pre { background: #f6f6f6; padding: 1rem; overflow: auto }
</style>
<h1>Low-precision recipes side by side</h1>
<p>$headline</p>
<table>
<thead><tr>$head</tr></thead>
<tbody>
$rows
</tbody>
</table>
<p>Ranges are ± one standard deviation over seeds. "In range" is the share of tensors whose RMS lies
in [1/2, 2] at the first step, and "saved for backward" what autograd held at the end of its forward
pass, parameters apart.</p>
<img alt="Training loss by step of every recipe" src="data:image/png;base64,$figure">
<h2>Configuration</h2>
<pre>$configuration</pre>
</html>
""")


def write_comparison(results: Mapping[str, Any], figure: Path, path: Path) -> None:
    """Write the report of a results.json with its plot, a PNG, inside."""
    page = PAGE.substitute(
        headline=escape(headline(results)),
        head="".join(f"<th>{escape(title)}</th>" for title in TITLES),
        rows="\n".join(
            f"<tr class='{'diverged' if summary.diverged else 'finished'}'>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in summary.cells())
            + "</tr>"
            for summary in summarize(results["runs"])
        ),
        figure=base64.b64encode(figure.read_bytes()).decode(),
        configuration=escape(
            json.dumps({k: v for k, v in results.items() if k != "runs"}, indent=2)
        ),
    )
    path.write_text(page, encoding="utf-8")
