"""The HTML of a report: text that is escaped, tables, pictures within the file, and the page around them."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from twinblock.core.console import show
from twinblock.data.decode import printable

# nothing is loaded from anywhere, whatever the file holds; the one script shows a thumbnail
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
COLOURS = "#4477aa", "#d9772b", "#2e9e5b", "#c44a5c", "#8a63b8", "#b59a1d", "#1f9aa8", "#d070a8", "#8b6b4a", "#7a8a99"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #58626c; --paper: #fff; --card: #f5f6f8; --line: #d5dae0;
  --good: #1c7c43; --bad: #b3261e; --unsure: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3adb7; --paper: #15181b; --card: #1f2428;
  --line: #3a4148; --good: #5fd08b; --bad: #ff8a80; --unsure: #f0b849; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 0.6rem; } h1 { margin-top: 0; }
h2 { border-top: 2px solid var(--line); padding-top: 1.2rem; }
.soft, caption, figcaption { color: var(--soft); font-size: 0.9rem; text-align: left; }
.verdict { background: var(--card); border-left: 0.4rem solid var(--unsure); padding: 0.8rem 1rem; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.verdict strong { font-size: 1.25rem; } .verdict p { margin: 0.3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0; text-align: left;
  vertical-align: top; }
td.number, th.number { text-align: right; }
pre { background: var(--card); padding: 0.8rem; overflow: auto; max-height: 30rem; font-size: 0.85rem; }
code { background: var(--card); padding: 0 0.2rem; }
figure { margin: 0.5rem 0; }
.drawn { background: #fff; max-width: 100%; border-radius: 0.3rem; }
.near { display: grid; grid-template-columns: repeat(8, minmax(3rem, 6rem)); gap: 0.3rem; align-items: start;
  margin-bottom: 0.8rem; }
.near img { width: 100%; display: block; border: 3px solid transparent; image-rendering: auto; }
.near div { font-size: 0.7rem; line-height: 1.2; } .near .of img { border-color: var(--ink); }
.near .same img { border-color: var(--good); } .near .other img { border-color: var(--bad); border-style: dashed; }
.map { position: relative; max-width: 46rem; } .map svg { width: 100%; height: auto; display: block;
  background: var(--card); border-radius: 0.3rem; }
.map circle { fill: var(--soft); fill-opacity: 0.75; } .map circle:hover { stroke: var(--ink); stroke-width: 3; }
.shown { position: absolute; display: none; pointer-events: none; background: var(--card); padding: 0.3rem;
  border: 1px solid var(--line); font-size: 0.8rem; max-width: 14rem; z-index: 1; }
.tile { background-repeat: no-repeat; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0; list-style: none; font-size: 0.9rem; }
.legend i { display: inline-block; width: 0.8rem; height: 0.8rem; border-radius: 50%; margin-right: 0.3rem;
  background: var(--soft); print-color-adjust: exact; }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --paper: #fff; --card: #f5f6f8; --line: #bbb;
  --good: #1c7c43; --bad: #b3261e; --unsure: #8a5a00; }
  body { padding: 0; max-width: none; font-size: 10pt; } pre { max-height: none; white-space: pre-wrap; }
  figure, table, .verdict, .near { break-inside: avoid; } h2, h3 { break-after: avoid; } .wide { overflow: visible; }
  .drawn { max-height: 24cm; } nav, .shown { display: none !important; } .verdict { print-color-adjust: exact; } }
""" + "".join(
    f".c{i} {{ fill: {c} !important; }} .legend .c{i} {{ background: {c}; }}\n" for i, c in enumerate(COLOURS)
)
SCRIPT = """
for (const map of document.querySelectorAll(".map")) {
  const shown = map.querySelector(".shown"), [tile, words] = shown.children;
  const side = Number(map.dataset.side), columns = Number(map.dataset.columns);
  map.addEventListener("pointerover", event => {
    const dot = event.target.closest("circle");
    shown.style.display = dot ? "block" : "none";
    if (!dot) return;
    const i = Number(dot.dataset.i), box = map.getBoundingClientRect(), at = dot.getBoundingClientRect();
    tile.style.backgroundPosition = `${-(i % columns) * side}px ${-Math.floor(i / columns) * side}px`;
    words.textContent = dot.querySelector("title").textContent;
    const left = at.right - box.left + 8, width = shown.offsetWidth;
    shown.style.left = `${left + width > box.width ? Math.max(0, at.left - box.left - 8 - width) : left}px`;
    shown.style.top = `${at.top - box.top}px`;
  });
  map.addEventListener("pointerleave", () => { shown.style.display = "none"; });
}
"""


def text(value: Any) -> str:
    """A value as HTML shows it, letter by letter; control characters and bytes that are no text are escapes."""
    return escape(printable(str(value)))


def paragraph(words: str, kind: str = "") -> str:
    """Words that are escaped here."""
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """A table of rows with the same columns; the first column heads each row."""
    numbers = {name for name in rows[0] if all(isinstance(row[name], int | float | None) for row in rows)}
    kind = lambda name: ' class="number"' if name in numbers else ""  # noqa: E731
    head = "".join(f'<th scope="col"{kind(name)}>{text(name)}</th>' for name in rows[0])
    lines = []
    for row in rows:
        (first, value), *others = row.items()
        cells = "".join(f"<td{kind(name)}>{text(show(cell))}</td>" for name, cell in others)
        lines.append(f'<tr><th scope="row"{kind(first)}>{text(show(value))}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def uri(data: bytes, kind: str) -> str:
    """A picture (png, jpeg, svg+xml) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes, kind: str, alt: str, caption: str = "") -> str:
    """A drawing on white, legible in the light and in the dark; `alt` says in words what it shows."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img class="drawn" src="{uri(data, kind)}" alt="{text(alt)}">{below}</figure>'


def listed(items: Sequence[str]) -> str:
    """A list of texts that are escaped here."""
    return f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>"


def document(title: str, body: str) -> str:
    """The whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
