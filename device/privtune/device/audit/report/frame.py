"""The frame of every page: no script, no outside resource, readable in light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

_CODE = re.compile("`([^`]+)`")
_CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#5c6878;--line:#e1e5ea;--bad:#c62f3b;
--warn:#b06a00;--good:#1b7f4d;--bar:#4667c8;--bar2:#a9b8e8;--hit:#fbdcdf;--hitink:#8c1420}
@media (prefers-color-scheme:dark){:root{--bg:#11151b;--card:#1a2029;--ink:#e6eaf0;--soft:#9aa7b8;--line:#2c3542;
--bad:#ff7a83;--warn:#f2b04b;--good:#58d294;--bar:#7c9aff;--bar2:#3f4f86;--hit:#5a1f27;--hitink:#ffc9cd}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,sans-serif}main{max-width:68rem;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:1.05rem;
margin:0 0 1rem;color:var(--soft);font-weight:600;letter-spacing:.02em}h2{font-size:1.2rem;margin:0 0 .25rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.25rem 1.4rem;margin:0 0 1rem}
code{background:var(--bg);border-radius:4px;padding:.1em .3em;font-size:.92em}
.verdict{border-left:6px solid var(--tone)}.verdict h2{font-size:1.7rem;line-height:1.25;color:var(--tone);
margin-bottom:.5rem}.bad{--tone:var(--bad)}.warn{--tone:var(--warn)}.good{--tone:var(--good)}p{margin:.4rem 0}
.soft{color:var(--soft);font-size:.92rem}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));
gap:.8rem;margin-top:1rem}.tile{border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}.tile b{
display:block;font-size:1.55rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums;
margin-top:.6rem}th,td{padding:.4rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}td small,.cell small{display:block;
color:var(--soft);font-size:.8em}
tr.top td{font-weight:650}.pair{border-top:1px solid
var(--line);padding:.6rem 0}.pair:first-of-type{border:0}.pair p{margin:.15rem 0;overflow-wrap:anywhere}.who{display:
inline-block;width:5.5rem;color:var(--soft);font-size:.85rem}mark{background:var(--hit);color:var(--hitink);border-radius:
3px;padding:.05em 0}ul{margin:.4rem 0;padding-left:1.2rem}li{margin:.25rem 0}svg{width:100%;height:auto;display:block;
margin-top:.6rem}
.chart{display:grid;grid-template-columns:max-content 1fr 3.6rem;gap:.35rem .7rem;align-items:center;margin:.9rem 0;
font-size:.88rem;font-variant-numeric:tabular-nums}.name{text-align:right}.value{color:var(--soft)}
.track{position:relative;height:1.1rem;background:repeating-linear-gradient(90deg,var(--line) 0 1px,#0000 1px 25%)}
.track span{position:absolute;left:0;top:0;height:100%}.bar{background:var(--bar);border-radius:3px}
.pale{background:var(--bar2)}.track .interval{top:calc(50% - 1px);height:2px;background:var(--ink)}
.track .floor{top:-2px;width:2px;height:calc(100% + 4px);background:var(--bad)}
.scale{grid-column:2;display:flex;justify-content:space-between;color:var(--soft)}
svg text{fill:var(--ink);font:13px system-ui,sans-serif}svg .soft{fill:var(--soft)}dl{display:grid;
grid-template-columns:max-content 1fr;gap:.25rem 1rem;margin:.5rem 0 0;font-size:.92rem}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}.finding{display:grid;grid-template-columns:5.5rem 1fr;gap:0 1rem;padding:.6rem 0;
border-top:1px solid var(--line);font-variant-numeric:tabular-nums}.finding:first-of-type{border:0}.scroll svg{
min-width:36rem}@media (max-width:40rem){.chart{grid-template-columns:1fr 3.6rem}.name{grid-column:1/-1;
text-align:left;margin-bottom:-.3rem}.scale{grid-column:1}main{padding:1rem .6rem 2rem}section{padding:1rem}th,td{
padding:.4rem .3rem}td:first-child{white-space:normal;min-width:8rem}}
"""


def depth(cut: int, tail: int, skip: str | None) -> str:
    """Which blocks are on the device, in words."""
    return f"cut {cut}, tail {tail} (skip {skip})" if tail else f"cut {cut}"


def document(name: str, headline: str, parts: Sequence[str]) -> str:
    """A page of sections, under the name of what made it."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{escape(name)}: {escape(headline)}</title><style>{_CSS}</style></head>"
        f"<body><main><h1>{escape(name)}</h1>{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, note: str, *inner: str) -> str:
    """A card with a title; `inner` is HTML."""
    about = f'<p class="soft">{prose(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}{''.join(inner)}</section>"


def prose(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def bullets(lines: Sequence[str]) -> str:
    """A list, one line an item."""
    return f"<ul>{''.join(f'<li>{prose(line)}</li>' for line in lines)}</ul>"


def claim(statement: dict[str, Any]) -> str:
    """A mechanism's privacy statement (as JSON has it) with its caveats."""
    return f"<p>{escape(statement['text'])}</p>{bullets(statement['caveats'])}"
