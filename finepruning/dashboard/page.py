"""The page: one HTML file with its data, styles and scripts inside, which asks nobody for anything."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finepruning.dashboard.verdict import points

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = [  # in this order
    f"{name}.js"
    for name in (
        *("basics", "table", "matrix", "charts", "parallel"),
        *("network", "repairs", "details", "app"),
    )
]


def render(data: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        data: What :func:`finepruning.dashboard.data.page_data` returns; the scripts draw it.
        about: ``title``, ``folder``, ``counted`` (the runs), ``built`` (when), ``watch`` (seconds
            between reloads of an open page, or None).
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = points
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    own = _inside_script("\n".join((ASSETS / name).read_text() for name in SCRIPTS))
    states = [verdict["state"] for verdict in data["verdicts"]]
    values = script_json({**data, "verdicts": [], "watch": about["watch"]})
    return environment.get_template("page.html").render(
        about,
        data=data,
        attacks={
            "removed": states.count("cleaned"),
            "live": sum(states.count(state) for state in ("cleaned", "survives", "dear")),
            "dead": states.count("dead"),
        },
        json=values,
        style=Markup((ASSETS / "style.css").read_text()),
        script=Markup(f'"use strict";\n(() => {{\n{own}\n}})();\n'),
        plotly=Markup(_inside_script(plotly_source())),
        nonce=hashlib.sha256(values.encode()).hexdigest()[:32],  # no text in the data can know it
    )


def write_page(page: str, file: Path) -> None:
    """Write the page beside its place, then rename, so that a browser never reads half of it."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
    partial.replace(file)


def plotly_source() -> str:
    """Return plotly's own JavaScript, which its Python package carries, without importing the package.

    Raises:
        ValueError: If the package is not installed.
    """
    package = importlib.util.find_spec("plotly")
    if package is None or not package.submodule_search_locations:
        raise ValueError("The charts need the package plotly. Install it: pip install plotly.")
    folder = Path(next(iter(package.submodule_search_locations)))
    return (folder / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def script_json(data: Any) -> Markup:
    r"""Return JSON that no HTML parser can leave: ``<``, ``>`` and ``&`` become ``\u003c`` and so on."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _inside_script(source: str) -> str:
    """Keep a program's own strings from ending the element that it stands in."""
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
