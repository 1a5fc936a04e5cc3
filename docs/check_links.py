"""Check that every link between the Markdown files of the repository resolves, headings included.

Usage: python docs/check_links.py [FILE_OR_FOLDER ...]      (default: the whole repository)

Links to the web are not followed: the check needs no network.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
MADE = ("runs", "build")  # by trainings and by the site, not written

CODE_BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# [text](target), [text](<target>), [text](target "title"), and [label]: target
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'(][^)]*)?\)|^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", re.MULTILINE)
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
HTML_ANCHOR = re.compile(r"<[^>]+\s(?:id|name)=[\"']([^\"']+)[\"']")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def blank(match: re.Match[str]) -> str:
    """Replace a match by as many lines of nothing, so that line numbers stay right."""
    return "\n" * match.group().count("\n")


def anchors(path: Path) -> set[str]:
    """The names that `#name` may point to in a Markdown file, as GitHub forms them from the headings."""
    text = CODE_BLOCK.sub(blank, path.read_text(encoding="utf-8"))
    found = set(HTML_ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        name, repeat = slug, 0
        while name in found:
            repeat += 1
            name = f"{slug}-{repeat}"
        found.add(name)
    return found


def broken_links(path: Path) -> list[str]:
    """One message for each link of the file that leads nowhere."""
    text = path.read_text(encoding="utf-8")
    for skipped in (CODE_BLOCK, COMMENT, CODE_SPAN):
        text = skipped.sub(blank, text)
    messages = []
    for match in LINK.finditer(text):
        link = match.group(1) or match.group(2)
        if SCHEME.match(link) or link.startswith("//"):
            continue
        file_name, _, anchor = unquote(link).partition("#")
        base = ROOT if file_name.startswith("/") else path.parent
        target = base / file_name.lstrip("/") if file_name else path
        if not target.exists():
            reason = "no such file"
        elif anchor and target.suffix == ".md" and anchor.lower() not in anchors(target):
            reason = "no such heading"
        else:
            continue
        line = text.count("\n", 0, match.start(1) if match.group(1) else match.start(2)) + 1
        messages.append(f"{path.relative_to(ROOT)}:{line}: {link}: {reason}")
    return messages


def markdown_files(places: list[Path]) -> list[Path]:
    """All Markdown files at or below `places`; hidden folders and those of runs and builds are left out."""
    files = {file for place in places for file in ([place] if place.is_file() else place.rglob("*.md"))}
    return sorted(
        file
        for file in files
        if not any(name in MADE or name.startswith(".") for name in file.relative_to(ROOT).parts)
    )


def main() -> int:
    files = markdown_files([Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT])
    messages = [message for file in files for message in broken_links(file)]
    for message in messages:
        print(message, file=sys.stderr)
    print(f"{len(files)} Markdown files, {len(messages)} broken links")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
