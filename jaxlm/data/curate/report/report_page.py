"""A curated directory as one HTML page that needs no other file: flow, histograms, samples."""

import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.core import io
from jaxlm.data.curate.report import explanation, histograms, removal_table
from jaxlm.data.curate.report.histograms import Histogram

_STYLE = """
:root { --ink: #1d2430; --soft: #5d6775; --line: #d9dee5; --paper: #fff; --kept: #2f7d8c;
  --gone: #d0663c; --band: #cfe4e7; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b3; --line: #333c48;
  --paper: #151a21; --kept: #66b6c4; --gone: #e98d66; --band: #23444b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p.sub, figcaption, small { color: var(--soft) } svg { width: 100%; height: auto; display: block }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink) } svg text.soft { fill: var(--soft) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--soft) }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.2rem }
figure { margin: 0 } .sample { border-left: 3px solid var(--gone); padding: .1rem .8rem;
  margin: .8rem 0 } .sample.kept { border-color: var(--kept) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace;
  margin: .3rem 0; max-height: 14rem; overflow: auto }
mark { background: none; color: var(--gone); font-weight: 600 }
"""
_EXCERPT = 1200  # characters of a sample
_BAND = 64.0  # height of the flow of a source


def write(folder: str | os.PathLike[str], file: str | os.PathLike[str], samples: int = 3) -> None:
    """Write the page of a curated directory. Raises: FileNotFoundError, io.WriteError."""
    io.write(pathlib.Path(file), page(folder, samples))


def page(folder: str | os.PathLike[str], samples: int = 3) -> str:
    """The page of a curated directory. Raises: FileNotFoundError."""
    summary = removal_table.summary(folder, samples)
    facts = summary.manifest
    charts = [_histogram(h) for h in histograms.histograms(folder, facts)]
    title = f"Curation of {', '.join(s['name'] for s in facts['sources'])}"
    read = sum(s["documents"] for s in facts["sources"])
    share = facts["documents"] / max(1, read)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="sub">{facts["documents"]:,} of {read:,} documents are kept ({share:.1%}), '
        f"{facts['bytes']:,} bytes; recipe {html.escape(facts['key'])}</p>",
        "<h2>Documents through the steps</h2>",
        *(_flow(source, facts["counts"]) for source in facts["sources"]),
        "<h2>By source and step</h2>",
        _table(facts["counts"]),
        "<h2>Scores and thresholds</h2>",
        '<p class="sub">Documents that reached the step: kept and <mark>removed</mark>; dashed '
        "lines are thresholds. Heights are square roots of counts; the last bar holds what is "
        "beyond it.</p>",
        f'<div class="grid">{"".join(charts)}</div>',
        *(_samples(f"Removed by {step}", rows) for step, rows in summary.removed.items()),
        _samples("Kept", summary.kept),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _flow(source: Mapping[str, Any], counts: Sequence[Mapping[str, Any]]) -> str:
    """A band whose height is the share of a source's documents, step by step; what a step removes
    leaves it downwards."""
    steps = [count for count in counts if count["source"] == source["name"]]
    total, wide = max(1, source["documents"]), 1000.0
    each = (wide - 190) / max(1, len(steps))
    parts = [
        f'<text x="0" y="24">{html.escape(source["name"])}</text>',
        f'<text x="0" y="42" class="soft">{source["documents"]:,} documents</text>',
    ]
    high = _BAND
    for place, count in enumerate(steps):
        left = 150 + place * each
        after = _BAND * (count["documents"] - count["removed"]) / total
        middle = left + each * 0.5
        parts.append(
            f'<path d="M{left:.1f},10 H{left + each:.1f} V{10 + after:.2f} H{middle + 14:.1f} '
            f"C{middle:.1f},{10 + after:.2f} {middle:.1f},{10 + high:.2f} "
            f'{middle - 14:.1f},{10 + high:.2f} H{left:.1f} Z" fill="var(--band)"/>'
        )
        if count["removed"]:
            drop = high - after
            parts.append(
                f'<path d="M{middle - 14:.1f},{10 + after:.2f} h8 V{20 + _BAND:.1f} '
                f'h{max(1.5, drop):.2f} V{10 + after:.2f} Z" fill="var(--gone)" opacity=".75"/>'
            )
        removed = (
            f"−{count['removed'] / max(1, count['documents']):.1%}" if count["removed"] else ""
        )
        # names of many steps would meet: every other one is lower
        lower = _BAND + (32 if place % 2 and len(steps) > 8 else 0)
        parts.append(
            f'<text x="{middle:.1f}" y="{38 + lower:.1f}" text-anchor="middle">'
            f"{html.escape(count['step'])}</text>"
            f'<text x="{middle:.1f}" y="{53 + lower:.1f}" text-anchor="middle" class="soft">'
            f"{removed}</text>"
        )
        high = after
    last = steps[-1]["documents"] - steps[-1]["removed"] if steps else source["documents"]
    parts.append(f'<text x="{wide - 36:.0f}" y="24" text-anchor="end">{last:,}</text>')
    return (
        f'<svg viewBox="0 0 {wide:.0f} {_BAND + (98 if len(steps) > 8 else 66):.0f}" role="img" '
        f'aria-label="flow of {html.escape(source["name"])}">{"".join(parts)}</svg>'
    )


def _table(counts: Sequence[Mapping[str, Any]]) -> str:
    head = ("source", "step", "documents", "bytes", "removed", "share", "bytes removed")
    rows = ["".join(f"<th>{name}</th>" for name in head)]
    for row in removal_table.rows(counts):
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in row))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _histogram(given: Histogram) -> str:
    wide, high, base = 300.0, 90.0, 100.0
    most = max(1.0, float((given.kept + given.removed).max()) ** 0.5)
    each = wide / len(given.kept)
    bars = []
    for place, (kept, removed) in enumerate(zip(given.kept.tolist(), given.removed.tolist())):
        full = (kept + removed) ** 0.5 / most * high
        part = full * removed / max(1, kept + removed)
        left = place * each
        for y, height, color in ((base - full, full - part, "kept"), (base - part, part, "gone")):
            if height > 0:
                bars.append(
                    f'<rect x="{left:.2f}" y="{y:.2f}" width="{each - 0.8:.2f}" '
                    f'height="{height:.2f}" fill="var(--{color})"/>'
                )
    low, top = float(given.edges[0]), float(given.edges[-1])
    for limit in given.thresholds:
        x = (limit - low) / (top - low) * wide
        bars.append(
            f'<line x1="{x:.2f}" x2="{x:.2f}" y1="4" y2="{base}" stroke="var(--ink)" '
            'stroke-dasharray="4 3"/>'
        )
    axis = (
        f'<line x1="0" x2="{wide}" y1="{base}" y2="{base}" stroke="var(--line)"/>'
        f'<text x="0" y="116" class="soft">{low:.3g}</text>'
        f'<text x="{wide}" y="116" text-anchor="end" class="soft">{top:.3g}</text>'
    )
    name = f"{given.step}: {given.score}"
    return (
        f'<figure><svg viewBox="0 0 {wide:.0f} 120" role="img" aria-label="{html.escape(name)}">'
        f"{''.join(bars)}{axis}</svg><figcaption>{html.escape(name)}</figcaption></figure>"
    )


def _samples(heading: str, records: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"<h2>{html.escape(heading)}</h2>"]
    for record in records:
        kept = "" if "step" in record else " kept"
        why = "" if kept else f" · {record['rule']} {removal_table.reason(record)}"
        about = f"{record['id']} · {record['source']} · {record['origin']}{why}"
        text = html.escape(explanation.cut(record["text"], _EXCERPT))
        parts.append(
            f'<div class="sample{kept}"><small>{html.escape(about)}</small><pre>{text}</pre></div>'
        )
    return "\n".join(parts)
