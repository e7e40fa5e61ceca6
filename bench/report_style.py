"""The style sheet of the report."""

CSS = """\
:root { color-scheme: light dark; --ink: #1f2430; --muted: #646b78; --line: #e5e7eb;
  --paper: #ffffff; --page: #f5f6f8; --ours: #1f6fba; --good: #0b7a5c; --fair: #8a6d00;
  --bad: #b3372b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --muted: #a0a7b4; --line: #343a46; --paper: #16191f; --page: #0e1014;
    --ours: #6db3f2; --good: #4fc9a4; --fair: #e0c050; --bad: #f08a7e; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.015em; }
h1 span { color: var(--muted); font-weight: 500; }
h2, summary { font-size: 1.25rem; font-weight: 650; margin: 0 0 .8rem; }
header p { margin: 0 0 1.2rem; color: var(--muted); font-size: 1.08rem; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.4rem; margin: 0; font-size: .88rem; }
dl dt, dl dd { display: inline; margin: 0; }
dl dt { color: var(--muted); }
dl dd { font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .9rem;
  list-style: none; margin: 1.8rem 0; padding: 0; }
.cards li, figure, section, details { background: var(--paper); border: 1px solid var(--line);
  border-radius: 12px; }
.cards li { padding: 1rem 1.1rem; }
.cards strong { display: block; font-size: 1.9rem; line-height: 1.2; color: var(--ours);
  letter-spacing: -.02em; }
.cards span { display: block; margin-top: .3rem; color: var(--muted); font-size: .88rem;
  line-height: 1.4; }
figure { margin: 1.4rem 0; padding: .4rem .4rem 1rem; }
figure img { display: block; width: 100%; max-width: 1060px; height: auto; margin: 0 auto; }
figcaption { color: var(--muted); font-size: .92rem; padding: .2rem 1rem 0; }
section, details { margin: 1.4rem 0; padding: 1.2rem 1.3rem; }
details:not([open]) summary { margin: 0; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
.wide td, .wide th { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th { text-align: left; color: var(--muted); font-weight: 600; vertical-align: bottom; }
th, td { padding: .42rem .7rem .42rem 0; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: var(--muted); }
.pill { border: 1px solid currentColor; border-radius: 999px; padding: .05rem .55rem;
  font-size: .78rem; font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .fair { color: var(--fair); } .bad { color: var(--bad); }
@media print { details { display: none; } body { background: none; } }
"""
