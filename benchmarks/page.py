"""Write docs/index.html from page.html: each paper's algorithm beside the code, line by line.

    python benchmarks/page.py

algorithm.csv says which lines belong together, by the first words of both. Its rows follow the
algorithm, some of whose lines are equal; of the code, only one line may begin with the words.
"""

import csv
import re
from html import escape
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("ddpg_continuous", "dqn_shower", "a3c_cartpole")


def read(script: str) -> str:
    """Return a script up to its harness."""
    return (ROOT / f"{script}.py").read_text().partition("\n# ---")[0].rstrip()


def pairs(script: str) -> list[tuple[str, dict[int, str]]]:
    """Return the algorithm's lines in a script's docstring, each with its code by line number."""
    source = [*enumerate(map(str.strip, read(script).splitlines()), 1)]
    blocks = read(script).partition("\n\nSymbol")[0].partition("\n\n")[2]
    lines, found = [line for line in blocks.splitlines() if line], []
    with open(ROOT / "benchmarks" / "algorithm.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["script"] == script]
    for line, (words, group) in zip(lines, groupby(rows, itemgetter("paper")), strict=True):
        assert line.strip().startswith(words), f"{script}: {words!r} does not begin {line!r}"
        code = [[(n, c) for n, c in source if c.startswith(row["code"])] for row in group]
        found.append((line, dict(pair for (pair,) in code)))  # one each, or it is an error
    return found


def html() -> str:
    """Return the page: the algorithm's lines link to themselves, those of its code to the first."""
    template = (ROOT / "benchmarks" / "page.html").read_text()
    page, section, rest = template.split("<!-- each script -->\n")
    for script in SCRIPTS:
        source, name, links, items = read(script), script.partition("_")[0], {}, []
        first = " ".join(source.split('"""')[1].split("\n\n")[0].split())
        title, _, paper = escape(first, quote=False).partition(", ")
        paper = re.sub(r"https://([\w./]+)", r'<a href="\g<0>">\1</a>', paper)
        for i, (line, code) in enumerate(pairs(script), 1):
            links = dict.fromkeys(code, f'a href="#{name}-{i}"') | links
            link = f'<a href="#{name}-{i}" data-code="{[*code]}">{escape(line.strip())}</a>'
            items.append(f'<li style="--spaces: {len(line) - len(line.lstrip())}">{link}</li>')
        text = highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))
        text = re.sub(r'<span class="(?![cskm]|n[cf])\w+">(.*?)</span>', r"\1", text)  # no colour
        rows = [(links.get(n, "span"), row) for n, row in enumerate(text.splitlines(), 1)]
        text = "".join(f"<{tag}>{row}\n</{tag.split()[0]}>" for tag, row in rows)
        parts = {"name": name, "script": script, "title": title, "paper": paper, "code": text}
        page += section.format(lines="\n".join(items), **parts)
    return page + rest


if __name__ == "__main__":
    (ROOT / "docs" / "index.html").write_text(html())
