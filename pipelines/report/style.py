"""The page's style: one column on a phone, two on a desk, light and dark. Text uses the reader's own fonts, Chinese ones included."""

STYLE = """
:root{color-scheme:light dark;--ground:#fbfaf7;--card:#fff;--ink:#1d2327;--soft:#5d6870;--line:#e3e0d8;--water:#0d6e78;
--kept:#12808a;--rejected:#d9822b;--duplicate:#6c6fc4;--dead:#c0392b;--retracted:#8a6d5a;--control:#b4bac0;--base:#1d2327}
@media (prefers-color-scheme:dark){:root{--ground:#14181b;--card:#1c2226;--ink:#e6e9ea;--soft:#9aa6ad;--line:#2e373d;--water:#4cc2cc;
--kept:#2ba6b1;--rejected:#e09a4f;--duplicate:#9093e6;--dead:#e46a5e;--retracted:#b3927c;--control:#59636a;--base:#e6e9ea}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);line-height:1.5;overflow-wrap:anywhere;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.15rem;line-height:1.3;margin:0 0 12px}
h3{font-size:.95rem;line-height:1.3;margin:0 0 6px}
.zh{font-weight:500;white-space:nowrap;color:var(--soft);letter-spacing:.02em}
p{margin:0 0 10px}.soft{color:var(--soft)}.small{font-size:.875rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;margin:0 0 16px;min-width:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:18px 0 16px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 12px;min-width:0}
.tile b{display:block;font-size:1.4rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile .name{display:block;font-size:.8rem;line-height:1.35;color:var(--soft)}.tile .zh{display:block}
.bars+.small,.bars:last-child{margin-bottom:0}.wide+h3{margin-top:18px}.bars>span:nth-child(3n+1){max-width:11em}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:20px 28px}
.grid>*{min-width:0}
svg{display:block;width:100%}
.flow{display:grid;grid-template-columns:minmax(72px,34%) 1fr}
.flow ol{list-style:none;margin:0;padding:0}
.flow li{display:flex;flex-direction:column;justify-content:center;padding-left:10px;line-height:1.25}
.flow li{min-width:0}
.flow li .what{font-weight:600;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.hist svg{height:96px;border-bottom:1px solid var(--line)}
.axis{display:flex;justify-content:space-between;font-size:.75rem;color:var(--soft);font-variant-numeric:tabular-nums}
.bars{margin-bottom:16px;display:grid;grid-template-columns:minmax(64px,auto) 1fr auto;gap:4px 10px;align-items:center;font-size:.875rem}
.bars .track{height:12px;border-radius:3px;background:var(--line);overflow:hidden}
.bars .track i{display:block;height:100%;background:var(--kept)}
.number,td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{overflow-x:auto;margin:0 -16px;padding:0 16px}
table{border-collapse:collapse;width:100%;font-size:.875rem}
th.n{white-space:normal}th{font-weight:600;color:var(--soft);text-align:left;vertical-align:bottom}
th,td{overflow-wrap:break-word;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
tr:last-child td{border-bottom:0}
td:first-child{min-width:6.6em;max-width:18em;overflow-wrap:anywhere}
td b{white-space:nowrap}td .small{max-width:26em;overflow-wrap:anywhere}
.mark{display:inline-block;border-radius:999px;padding:1px 9px;font-size:.78rem;font-weight:600;color:#fff;background:var(--kept);white-space:nowrap}
.mark.over{background:var(--dead)}
@media (prefers-color-scheme:dark){.mark{color:#0d1113}}
details{border-top:1px solid var(--line);padding:8px 0}
details:last-child{padding-bottom:0}
summary{cursor:pointer;display:flex;gap:10px;justify-content:space-between;align-items:baseline}
summary::before{content:"\\25B8";color:var(--soft)}
details[open] summary::before{content:"\\25BE"}
summary .what{flex:1;font-weight:600}
blockquote{margin:8px 0;padding:8px 12px;border-left:3px solid var(--line);background:var(--ground);border-radius:0 6px 6px 0;
white-space:pre-wrap;unicode-bidi:isolate;line-height:1.6}
blockquote footer{max-width:none;padding:4px 0 0;margin:0;font-size:.78rem;color:var(--soft);white-space:normal}
code{font:.96em ui-monospace,SFMono-Regular,Menlo,Consolas,"Noto Sans Mono CJK SC",monospace;overflow-wrap:anywhere}
.key{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.8rem;color:var(--soft);margin-top:8px}
.key i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.key i.line{height:2px;vertical-align:middle;background:var(--base)}
.kept{fill:var(--kept)}.rejected{fill:var(--rejected)}.duplicate{fill:var(--duplicate)}.dead{fill:var(--dead)}.retracted{fill:var(--retracted)}.control{fill:var(--control)}
.bg-kept{background:var(--kept)}.bg-rejected{background:var(--rejected)}.bg-duplicate{background:var(--duplicate)}.bg-dead{background:var(--dead)}
.bg-retracted{background:var(--retracted)}.bg-control{background:var(--control)}
.ribbon{opacity:.3}
.baseline{fill:none;stroke:var(--base);stroke-width:1.5}
footer.page{padding-top:4px;padding-bottom:32px}
@media (max-width:480px){.flow li .what{font-size:.8rem}table{font-size:.8rem}th,td{padding-right:6px}td:first-child{min-width:3.6em}}
@media print{body{background:#fff}details{display:block}}
"""
