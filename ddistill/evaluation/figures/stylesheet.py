"""The style sheet of the pages: screens wide and narrow, light and dark, and A4 paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #ffffff; --ink: #1f2430;
  --muted: #667085; --rule: #e4e7ed; --accent: #d1495b; --tint: #fbf1f2; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1218; --card: #161a22; --ink: #e8ebf1;
  --muted: #9aa4b5; --rule: #2b313d; --accent: #ff7a8a; --tint: #241d25; --code: #1e242e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 20px 64px; }
header { margin: 0 4px 28px; }
.eyebrow { margin: 0; color: var(--accent); font-size: 13px; font-weight: 650;
  letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 4px 0 10px; font-size: 34px; line-height: 1.15; letter-spacing: -.015em; }
h2 { margin: 0 0 4px; font-size: 19px; line-height: 1.3; letter-spacing: -.005em; }
header p { max-width: 72ch; margin: 0 0 10px; }
.lead { font-size: 18px; color: var(--muted); }
pre { margin: 14px 0 0; padding: 10px 14px; overflow-x: auto; border-radius: 8px;
  background: var(--code); }
code, pre { font: 13.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.caption { max-width: 78ch; margin: 0 0 14px; color: var(--muted); font-size: 14.5px; }
section { margin: 0 0 18px; padding: 22px 24px; border: 1px solid var(--rule);
  border-radius: 12px; background: var(--card); }
.warning { border-color: var(--accent); border-left-width: 5px; background: var(--tint); }
.warning ul { margin: 6px 0 0; padding-left: 20px; max-width: 84ch; }
.tiles { display: grid; gap: 14px; margin: 0 0 18px;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.tile { padding: 16px 20px; border: 1px solid var(--rule); border-radius: 12px;
  background: var(--card); }
.tile b { display: block; font-size: 30px; line-height: 1.2; font-weight: 650;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 14.5px; }
.tile small { color: var(--muted); font-size: 13.5px; }
.scroll { overflow-x: auto; }
.rows { display: grid; grid-template-columns: max-content max-content; align-items: center;
  gap: 0 16px; width: max-content; }
.rows .label { position: sticky; left: 0; padding: 2px 6px 2px 0; text-align: right;
  background: var(--card); font-size: 14.5px; line-height: 1.3; min-width: 150px;
  max-width: 240px; }
.rows .label small { display: block; color: var(--muted); font-size: 12.5px; }
.rows img { display: block; image-rendering: pixelated; }
.rows .space { grid-column: 1 / -1; height: 10px; }
.texts { display: flex; color: var(--muted); font-size: 12.5px; line-height: 1.25;
  text-align: center; }
.texts span { flex: none; padding: 0 3px; box-sizing: border-box; overflow-wrap: anywhere; }
.levels { display: flex; color: var(--muted); font-size: 12.5px; text-align: center;
  font-variant-numeric: tabular-nums; }
.rows .label.head { color: var(--muted); font-size: 12.5px; }
figure { margin: 0; } figure img { width: 100%; max-width: 1040px; height: auto; }
figure .light { display: block; } figure .dark { display: none; }
@media screen and (prefers-color-scheme: dark) { figure .light { display: none; }
  figure .dark { display: block; } }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 7px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th { color: var(--muted); font-weight: 550; font-size: 12.5px; vertical-align: bottom;
  white-space: normal; line-height: 1.25; }
th:first-child, td:first-child { position: sticky; left: 0; text-align: left;
  background: var(--card); }
tbody tr:last-child td { border-bottom: 0; }
tr.student td { background: var(--tint); }
tr.student td:first-child { box-shadow: inset 3px 0 var(--accent); }
tr.more td:first-child { color: transparent; }
tr.more:hover td:first-child { color: inherit; }
tr.real td { color: var(--muted); font-style: italic; }
td b { font-weight: 700; } .pm { color: var(--muted); font-size: 12px; }
td .pm { display: block; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px;
  margin: 8px 0 0; font-size: 14px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
dd code { font-size: 13px; }
summary { cursor: pointer; } summary h2 { display: inline; }
.animation { display: grid; grid-template-columns: max-content max-content; gap: 0 16px;
  width: max-content; }
.animation .label { display: flex; align-items: center; justify-content: flex-end;
  max-width: 240px; text-align: right; font-size: 14.5px; line-height: 1.3; }
.animation picture { grid-column: 2; }
.animation img { display: block; image-rendering: pixelated; }
@media (max-width: 640px) { main { padding: 24px 10px 40px; } section { padding: 16px 14px; }
  h1 { font-size: 27px; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  .rows .label { min-width: 0; max-width: 110px; font-size: 12.5px; } .rows { gap: 0 8px; }
  .animation { gap: 0 8px; } .animation .label { max-width: 110px; font-size: 12.5px; } }
.contents { margin: 0 4px 22px; font-size: 14px; line-height: 1.9; }
.contents a { margin-right: 14px; white-space: nowrap; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 2px; }
mark { padding: 0 4px; border-radius: 4px; background: var(--tint); color: inherit;
  box-shadow: inset 0 0 0 1px var(--accent); }
h3 { margin: 14px 0 2px; font-size: 15px; }
ul.files { margin: 6px 0 0; padding-left: 20px; font-size: 14px; }
@page { size: A4; margin: 13mm; }
@media print {
  :root { color-scheme: light; --paper: #ffffff; --card: #ffffff; --ink: #1f2430;
    --muted: #5b6474; --rule: #d5d9e1; --accent: #b93a4c; --tint: #fbf1f2; --code: #f4f5f7; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; }
  h1 { font-size: 22pt; } h2 { font-size: 13pt; break-after: avoid; }
  h3 { break-after: avoid; }
  .contents, .screen { display: none; }
  section { padding: 10px 12px; border-radius: 6px; break-inside: avoid; }
  section.long { break-inside: auto; }
  .caption { break-after: avoid; break-inside: avoid; font-size: 9pt; }
  .tile, tr, figure, .rows > *, dt, li { break-inside: avoid; }
  .tiles { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; }
  .tile { padding: 8px 10px; } .tile b { font-size: 16pt; } .tile span { font-size: 9pt; }
  .scroll { overflow: visible; }
  .rows { width: 100%; grid-template-columns: minmax(0, 24%) minmax(0, 1fr); gap: 0 8px; }
  .rows .label { position: static; min-width: 0; max-width: none; font-size: 8pt; }
  .rows img { max-width: 100%; height: auto; }
  .rows .label.head { display: none; } .rows .levels { display: none; }
  .texts { font-size: 8pt; } .texts span { flex: 0 1 auto; min-width: 0; }
  table { font-size: 7.2pt; } th { font-size: 7pt; }
  th, td { padding: 3px; white-space: normal; overflow-wrap: anywhere; }
  th { overflow-wrap: break-word; }
  th:first-child, td:first-child { position: static; min-width: 24mm; }
  tr.more td:first-child { color: inherit; }
  .pm { display: block; font-size: 6.4pt; white-space: nowrap; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } code, pre { font-size: 8.5pt; }
  figure img { max-height: 80mm; width: auto; max-width: 100%; }
  dl { font-size: 8.5pt; grid-template-columns: minmax(0, 34%) minmax(0, 1fr); }
  dt { overflow-wrap: anywhere; }
  details::details-content { content-visibility: visible; block-size: auto; }
  details dl { display: block; columns: 2; font-size: 6.8pt; line-height: 1.35; }
  details dt, details dd { display: inline; margin: 0 4px 0 0; }
  details dd::after { content: "\\A"; white-space: pre; }
}
"""
