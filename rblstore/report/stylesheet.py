"""How a report looks: one column, on a phone, on a desk and on paper."""

from __future__ import annotations

from typing import Final

STYLESHEET: Final = """
:root { color-scheme: light; --ink: #1a1a1a; --soft: #595959; --line: #d5d5d5; --back: #f6f6f4; --deep: #0b3c6f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 62rem; background: #fff; color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1.5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .6rem; border-top: 2px solid var(--deep); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p, ul, ol, dl { margin: .4rem 0; }
a { color: var(--deep); }
code, .id { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .86em; }
small, .soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem 1rem; font-size: .925rem; }
nav a, .tiles a { display: inline-block; padding: .15rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; padding: 0;
  margin: .8rem 0; }
.tiles > div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; background: var(--back); }
.tiles dt { font-size: .8rem; color: var(--soft); }
.tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; line-height: 1.3; }
.tiles dd small { display: block; font-weight: 400; font-size: .8rem; }
.verdict { display: inline-block; padding: 0 .45em; border-radius: 4px; border: 2px solid; font-weight: 600;
  white-space: nowrap; font-size: .925em; }
.exact { background: #0b3c6f; border-color: #0b3c6f; color: #fff; }
.within_tolerance { background: #d6e9f8; border-color: #0b3c6f; color: #0b2a4a; }
.diverged { background: #fff; border-color: #b34700; color: #8f3900; border-style: double; border-width: 3px; }
.unverified { background: #fff; border-color: #767676; color: #4d4d4d; border-style: dashed; }
.notice { border-left: 4px solid #d55e00; background: #fff6ee; padding: .4rem .8rem; margin: .8rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem;
  padding: 0; margin: .6rem 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; min-width: 0; }
.card h3 { margin-top: 0; }
dl.facts { display: grid; grid-template-columns: minmax(6.5rem, max-content) 1fr; gap: .1rem .8rem; margin: .3rem 0;
  font-size: .925rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0; }
caption { text-align: left; padding: .2rem 0 .4rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.scroll td, .scroll th { overflow-wrap: break-word; }
.scroll td { min-width: 3rem; }
.scroll table:not(.heat) td:first-child { min-width: 6rem; }
.scroll caption { position: sticky; left: 0; max-width: 88vw; }
td small.interval { display: block; white-space: nowrap; }
time, td span[title] { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.heat { border-collapse: separate; border-spacing: 2px; width: 100%; }
table.heat td { text-align: center; border: 0; padding: .3rem .4rem; min-width: 4.2rem; border-radius: 3px;
  font-variant-numeric: tabular-nums; line-height: 1.25; }
table.heat td small { display: block; color: inherit; font-size: .78rem; }
table.heat thead th { border: 0; text-align: center; font-size: .85rem; padding: .2rem .3rem; }
table.heat tbody th { border: 0; font-weight: 400; padding: .6rem 0 .1rem; white-space: pre-wrap; }
table.heat tbody th > div { position: sticky; left: 0; width: fit-content; max-width: min(100%, calc(100vw - 2rem)); }
table.heat .none { background: #fff; outline: 1px dashed #999; outline-offset: -1px; color: var(--soft); }
.flag { font-weight: 700; }
figure { margin: .8rem 0; max-width: 36rem; }
svg.figure, svg.lineage { display: block; width: 100%; height: auto; max-width: 36rem; }
svg.lineage { max-width: 30rem; }
svg.figure * { stroke-linejoin: round; stroke-linecap: butt; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1.6rem; }
.prompt { white-space: pre-wrap; }
.message { white-space: pre-wrap; }
ol.commits { list-style: none; padding: 0; }
ol.commits > li { padding: .45rem 0; border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .4rem 0; color: var(--deep); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .6rem; }
@media (max-width: 30rem) {
  body { padding: 0 .75rem 2rem; }
  dl.facts { grid-template-columns: 6rem 1fr; }
}
@media print {
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  a { color: inherit; text-decoration: none; }
  h2, h3 { break-after: avoid; }
  figure, .card, .tiles > div, ol.commits > li, table.heat tbody, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  table.heat tbody th > div { position: static; max-width: none; }
  table { font-size: 8pt; }
  .scroll td, .scroll th { min-width: 0; padding-right: .35rem; overflow-wrap: anywhere; }
  .scroll td small.interval { white-space: normal; font-size: 7pt; }
  figure, svg.figure, svg.lineage { max-width: 11.5cm; }
  svg.figure { max-height: 20cm; }
  .verdict, table.heat td, .tiles > div { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  @page { margin: 1.6cm; }
}
"""
