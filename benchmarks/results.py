"""The file of results: one section per benchmark, each replaced as a whole when it is measured again."""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def replace_section(text: str, name: str, lines: list[str]) -> str:
    """`text` with what stands between the markers of the section `name` replaced by `lines`.

    Raises:
        ValueError: If the text has no such section.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no section between '{begin}' and '{end}'")
    section = "\n".join([begin, "", *lines, "", end])
    return pattern.sub(lambda _: section, text, count=1)


def write_section(name: str, lines: list[str], path: Path = RESULTS) -> None:
    """Replaces one section of the file."""
    path.write_text(replace_section(path.read_text(encoding="utf-8"), name, lines), encoding="utf-8")
