"""Writes the page of a placement that cannot be: what is needed and offered, what stands in the way, what would fit.

It is one HTML file without scripts that needs no network; every text of the user's goes through ``html.escape``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ir.diagnostics import Diagnostic
from ir.explanation import Amount, Explanation

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 56rem; padding: 0 1rem;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #181818) }
:root { color-scheme: light dark }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
td.figure { text-align: right; font-variant-numeric: tabular-nums } code { font-size: .95em }
.bar { fill: #4a7fb5 } .over { fill: #c0504d } .room { fill: none; stroke: currentColor }
svg text { font: 13px system-ui, sans-serif; fill: currentColor }
"""
_WIDTH = 640


def render_failure(fault: Diagnostic, producer: str = "waferc") -> str:
    """The page of ``fault``, whose explanation it shows; the same fault gives the same text, but for times."""
    found = fault.explanation
    parts = [
        f"<h1>{escape(fault.message)}</h1>",
        f"<p>error {escape(fault.code)} of <code>{escape(fault.where)}</code></p>",
        *(_explained(found) if found else ()),
        f"<footer><p>{escape(producer)}</p></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(fault.message)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _explained(found: Explanation) -> Iterable[str]:
    yield _bars(found)
    yield "<h2>Memory</h2>"
    yield _table(
        ("", "tiles", "bytes"),
        [
            ("needed", *_figures(found.demand)),
            ("offered", *_figures(found.capacity)),
            ("short", *_figures(found.gap)),
            ("largest part that shares a wafer", *_figures(found.largest.demand)),
            ("largest wafer", *_figures(found.largest.capacity)),
        ],
    )
    yield f"<p>The largest part is <code>{escape(', '.join(found.largest.blocks))}</code>.</p>"
    yield "<h2>What it is needed for</h2>"
    yield _table(("", "bytes"), [(name, _figure(size)) for name, size in found.terms.to_dict().items()])
    yield "<p>The reserve for code and buffers comes on top of the bytes needed; tiles offer what it leaves.</p>"
    if found.conflict is not None:
        fewest = "the fewest that do" if found.conflict.smallest else "none of which can be left out"
        yield f"<h2>Rules that cannot all be kept ({fewest})</h2>"
        yield _table(("rule", "from"), [(rule.text, rule.source) for rule in found.conflict.rules])
    yield "<h2>What would fit</h2>"
    rows = [(lever.text, str(lever.was), str(lever.to), f"{lever.solve_s:.1f}") for lever in found.levers]
    yield _table(("tried, placed and laid out", "from", "to", "seconds"), rows) if rows else "<p>Nothing tried did.</p>"
    yield f"<h2>Proof that nothing fits</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in found.proof)}</ul>"


def _bars(found: Explanation) -> str:
    """Tiles needed, all and of the largest part, against those offered."""
    rows = (
        ("all wafers", found.demand.tiles, found.capacity.tiles),
        ("largest part on a wafer", found.largest.demand.tiles, found.largest.capacity.tiles),
    )
    drawn = []
    for number, (name, needed, offered) in enumerate(rows):
        scale, y = _WIDTH / max(needed, offered, 1), 50 * number + 20
        drawn.append(
            f'<text x="0" y="{y - 5}">{name}: {needed:,} of {offered:,} tiles</text>'
            f'<rect class="bar" x="0" y="{y}" height="16" width="{min(needed, offered) * scale:.1f}"/>'
            f'<rect class="over" x="{offered * scale:.1f}" y="{y}" height="16" '
            f'width="{max(0, needed - offered) * scale:.1f}"/>'
            f'<rect class="room" x="0.5" y="{y}" height="16" width="{offered * scale:.1f}"/>'
        )
    return f'<svg viewBox="0 0 {_WIDTH + 2} {50 * len(rows)}" role="img">{"".join(drawn)}</svg>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells of digits stand at the right."""

    def cell(text: str) -> str:
        is_figure = text.replace(",", "").replace(".", "").isdigit()
        return f'<td class="figure">{text}</td>' if is_figure else f"<td>{escape(text)}</td>"

    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = ["".join(map(cell, row)) for row in rows]
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _figures(amount: Amount) -> tuple[str, str]:
    return _figure(amount.tiles), _figure(amount.bytes)


def _figure(value: int) -> str:
    return f"{value:,}"
