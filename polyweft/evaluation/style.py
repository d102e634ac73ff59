"""The look of the evaluation's page: CSS with a light and a dark set of colours."""

STYLE = """
:root { color-scheme: light dark; --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e;
  --faint: #898781; --line: #e1e0d9; --first: #2a78d6; --second: #eb6834; --good: #0ca30c; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0d0d; --card: #1a1a19; --ink: #fff;
  --soft: #c3c2b7; --faint: #898781; --line: #2c2c2a; --first: #3987e5; --second: #d95926; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 16px; margin: 0 0 12px; }
p { color: var(--soft); margin: 4px 0 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 20px;
  margin: 16px 0; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 28px; font-weight: 600; line-height: 1.3; }
.tile span, .tile small { color: var(--soft); font-size: 13px; display: block; }
svg { width: 100%; height: auto; display: block; font-family: inherit; } .curve svg { max-width: 720px; }
.grid { stroke: var(--line); } .tick { fill: var(--faint); font-size: 12px; }
.label { fill: var(--ink); font-size: 13px; } .dot { stroke: var(--card); stroke-width: 2; }
.empty { fill: var(--line); fill-opacity: .45; } .number { fill: var(--ink); } .inverse { fill: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
.bar { display: inline-block; width: 90px; height: 8px; border-radius: 4px; background: var(--line);
  overflow: hidden; margin-right: 8px; }
.bar span { display: block; height: 100%; background: var(--first); } .value { font-size: 13px; }
.example { border-top: 1px solid var(--line); padding: 12px 0; }
.example p { color: var(--ink); margin: 0 0 8px; overflow-wrap: anywhere; }
.example em { color: var(--faint); }
.found { display: flex; flex-wrap: wrap; gap: 10px; }
.found img { width: 96px; height: 96px; object-fit: contain; border-radius: 6px; background: #fff;
  border: 3px solid var(--line); }
.found .right { border-color: var(--good); } .found audio { border-radius: 6px; height: 40px; }
.found span { border: 3px solid var(--line); border-radius: 6px; padding: 4px 8px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px; }
.written { display: flex; gap: 14px; } .written ul { margin: 0; padding-left: 18px; color: var(--soft); }
td.share { padding-left: 8px;
  background: color-mix(in srgb, var(--first) calc(var(--share) * 45%), transparent); }
"""
