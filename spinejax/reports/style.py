"""The style sheet of the page: system fonts, light and dark, phone to paper; nothing is loaded."""

CSS = """
:root{color-scheme:light dark;
--paper:#fff;--ink:#16191d;--soft:#5b6570;--line:#dde2e7;--tint:#f4f6f8;--accent:#c2410c;
--train:#c2410c;--val:#0369a1;--note:#fff7e6;--note-line:#e8b04a}
@media (prefers-color-scheme:dark){:root{
--paper:#121518;--ink:#e8ebee;--soft:#9ba6b1;--line:#2c333a;--tint:#1a1f24;--accent:#ff8a4c;
--train:#ff8a4c;--val:#5bc0eb;--note:#2a2314;--note-line:#8a6a2a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}
header p.kind{margin:0;color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
h1{margin:.15em 0 .3em;font-size:clamp(1.6rem,4.2vw,2.3rem);line-height:1.15;
letter-spacing:-.018em;font-weight:680;text-wrap:balance}
.whole{white-space:nowrap}
header p.lead{margin:0;max-width:44em;color:var(--soft);font-size:1.06rem}
h2{margin:2.6em 0 .6em;font-size:1.32rem;line-height:1.25;letter-spacing:-.01em}
h3{margin:1.6em 0 .5em;font-size:1rem}
p,ul{max-width:46em}
li{margin:.35em 0}
a{color:inherit}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{background:var(--tint);padding:.12em .36em;border-radius:4px;overflow-wrap:anywhere}
pre{background:var(--tint);padding:14px 16px;border-radius:8px;overflow:auto}
.key-figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:0;
margin:28px 0 0;padding:0;border-top:1px solid var(--line);border-bottom:1px solid var(--line)}
.key-figures div{padding:14px 18px 13px 0}
.key-figures dt{color:var(--soft);font-size:.84rem}
.key-figures dd{margin:0;font-size:1.45rem;font-weight:620;letter-spacing:-.01em;
font-variant-numeric:tabular-nums}
.key-figures dd{line-height:1.35}
.key-figures small{white-space:nowrap;
font-size:.84rem;font-weight:400;color:var(--soft);letter-spacing:0}
.note{max-width:none;margin:20px 0 0;padding:10px 16px;background:var(--note);
border-left:3px solid var(--note-line);border-radius:0 6px 6px 0}
.nothing{color:var(--soft)}
.wide{overflow-x:auto;margin:0 -24px;padding:0 24px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:8px 0 8px 18px;text-align:right;vertical-align:top;white-space:nowrap;
border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0}
th.text,td.text{text-align:left}
td.wrap{white-space:normal;min-width:13em}
thead th{font-weight:500;color:var(--soft);font-size:.84rem;vertical-align:bottom}
tbody th{font-weight:560}
tbody th small{display:block;font-weight:400;color:var(--soft);white-space:normal;min-width:15em}
td.between{text-align:center;color:var(--soft)}
td.between b{color:var(--ink);font-weight:400}
td.printed{color:var(--soft)}
table.sweep sup{font-size:.7em;line-height:0;margin-left:2px}
ul.marks{list-style:none;padding:0;color:var(--soft);font-size:.9rem}
tr.ours{background:var(--tint)}
tr.ours th,tr.ours td{font-weight:620}
tr.ours th:first-child{padding-left:10px}
tr.theirs th:first-child{padding-left:10px}
figure{margin:0}
figure.scan{margin:0 0 30px;break-inside:avoid}
figure.scan img{display:block;width:100%;height:auto;border-radius:8px;background:#0c0e11}
figure.scan .missing{max-width:none;margin:0;overflow-wrap:anywhere;
padding:34px 20px;border:1px dashed var(--line);border-radius:8px;
color:var(--soft);text-align:center}
figure.scan figcaption{display:flex;flex-wrap:wrap;gap:2px 18px;align-items:baseline;
margin:0 0 10px}
figure.scan figcaption b{font-size:1.05rem}
figure.scan figcaption span{color:var(--soft);font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:24px 28px}
figure.chart figcaption{font-size:.86rem;margin-bottom:6px}
figure.chart b{display:block;font-size:.95rem}
svg{display:block;overflow:visible}
.charts svg{width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px;font-variant-numeric:tabular-nums}
svg text.strong{fill:var(--ink);font-weight:600}
svg .grid{stroke:var(--line);fill:none}
svg .axis{stroke:var(--soft);fill:none}
svg .line{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg .line.faint{stroke-width:1;opacity:.32}
svg .train,svg .rate{stroke:var(--train)}
svg .val{stroke:var(--val)}
svg .dot.train,svg .dot.rate{fill:var(--train);stroke:none}
svg .dot.val{fill:var(--val);stroke:none}
svg .case{fill:var(--val);fill-opacity:.72}
svg .mean{stroke:var(--ink);fill:none;stroke-dasharray:3 3}
svg.dots{max-width:860px;margin:6px 0 22px}
.key{white-space:nowrap;color:var(--soft);margin-right:10px}
.key::before{content:"";display:inline-block;width:14px;height:3px;border-radius:2px;
margin-right:6px;vertical-align:3px;background:currentColor}
.key.train::before,.key.rate::before{background:var(--train)}
.key.val::before{background:var(--val)}
.key .last{color:var(--ink);font-variant-numeric:tabular-nums}
svg .mark{stroke:var(--soft);fill:none;stroke-dasharray:2 3}
.key.mark{white-space:normal}
.key.mark::before{height:0;background:none;border-top:2px dashed var(--soft)}
@media (min-width:900px){.charts.four svg text{font-size:8.6px}}
.charts.four{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.missing{overflow-wrap:anywhere;color:var(--soft)}
tr.all th,tr.all td{font-weight:620;background:var(--tint)}
tr.all th:first-child{padding-left:10px}
tr.matched th,tr.matched td{font-weight:620}
.confusions{display:grid;grid-template-columns:repeat(auto-fill,minmax(236px,1fr));gap:26px 28px}
.confusion figcaption{margin-bottom:8px}
.confusion figcaption b{display:block;overflow-wrap:anywhere}
.confusion figcaption span{color:var(--soft);font-size:.86rem}
.confusion table{table-layout:fixed;font-size:.88rem}
.confusion th,.confusion td{border:0;padding:6px 4px}
.confusion thead th{padding:0 0 4px;font-size:.8rem;text-align:center}
.confusion thead th:first-child{width:36%;text-align:left;padding-left:0}
.confusion tbody th{font-size:.82rem;font-weight:400;padding-left:0;vertical-align:middle}
.confusion tbody td{text-align:center;border:2px solid var(--paper);
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.confusion td small{display:block;color:var(--soft)}
.confusion td.right{background:color-mix(in srgb,var(--val) calc(var(--share)*34%),var(--tint))}
.confusion td.wrong{background:color-mix(in srgb,var(--train) calc(var(--share)*60%),var(--tint))}
table.bars{max-width:760px}
.bars th,.bars td{border:0;padding:3px 0 3px 18px;vertical-align:middle}
.bars tbody th{font-weight:400;padding-left:0}
.bars tr.stage th{font-weight:560;padding-top:14px}
.bars tr.stage small{display:inline;margin-left:8px}
.bars td.bar{width:58%}
.bars i{display:block;height:15px;min-width:1px;border-radius:2px;background:var(--soft);
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.bars td.vertebra i{background:var(--val)}
.tile-row{display:flex;flex-wrap:wrap;gap:26px 15px;align-items:flex-start}
.tiles{max-width:100%}
.tiles figcaption{margin-bottom:8px}
.tiles figcaption b{display:block;font-size:.95rem}
.tiles figcaption span{display:block;color:var(--soft);font-size:.84rem}
img.pixels{display:block;width:100%;height:auto;padding:3px;
background:#3b5a72;border-radius:3px;image-rendering:pixelated}
.slices{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,220px),1fr));
gap:26px 18px;align-items:end}
.slice figcaption{margin-bottom:8px;font-size:.9rem}
.slice figcaption b{display:block;overflow-wrap:anywhere}
.slice figcaption span{color:var(--soft);font-variant-numeric:tabular-nums}
.slice .panel{position:relative;margin-bottom:4px;background:#0c0e11;border-radius:4px;
overflow:hidden;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.slice .panel svg{width:100%;height:auto}
.slice .panel span{position:absolute;left:7px;top:4px;color:#eef1f4;font-size:.75rem;
text-shadow:0 0 3px #000,0 0 3px #000}
.slice svg text{fill:#eef1f4;font-size:16px;paint-order:stroke;stroke:#0c0e11;stroke-width:3px}
.slice svg path{stroke:#eef1f4;stroke-width:3;fill:none}
.slice svg path.under{stroke:#0c0e11;stroke-width:7}
.slice .missing{padding:20px 12px;border:1px dashed var(--line);border-radius:4px}
.errs .nothing{margin:0 0 .5em}
.swatches{display:flex;flex-wrap:wrap;gap:4px 22px;align-items:center;max-width:none}
.swatch i{display:inline-block;width:14px;height:14px;border-radius:3px;margin-right:7px;
vertical-align:-2px;border:1px solid var(--soft);
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.swatches label{color:var(--soft);cursor:pointer}
.rows p.row{margin:12px 0 4px;font-weight:560;font-size:.92rem}
.montage{display:grid;gap:0 4px;max-width:var(--widest);
min-width:min(900px,var(--widest));align-items:start;margin-bottom:10px}
.tile svg{width:100%;height:auto;background:#0c0e11;border-radius:3px;overflow:hidden;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.tile svg text{fill:#eef1f4;font-size:24px;paint-order:stroke;stroke:#0c0e11;stroke-width:4px}
.tile svg path{stroke:#eef1f4;stroke-width:4;fill:none}
.tile svg path.under{stroke:#0c0e11;stroke-width:8}
.tile figcaption{color:var(--soft);font-size:.78rem;font-variant-numeric:tabular-nums}
svg.names{width:100%;height:auto}
svg.names text{font-size:23px;text-anchor:end;dominant-baseline:middle}
body:has(.bare:checked) .layer,
.tile:hover .layer{visibility:hidden}
.beside{display:flex;flex-wrap:wrap;gap:26px 56px;align-items:start;margin-bottom:44px}
.beside>div{max-width:100%}
.beside>.places{flex:1 1 340px;max-width:540px}
.beside table{width:auto}
.beside th,.beside td{padding-top:4px;padding-bottom:4px}
.places tbody th{font-weight:400;white-space:normal;min-width:11em}
@media screen and (min-width:1130px){.rows{width:min(1440px,100vw - 48px);
margin-inline:calc((100% - min(1440px,100vw - 48px))/2);padding:0}}
.vertebrae td.share{background:color-mix(in srgb,#406eff calc(var(--missed)*55%),transparent);
background-clip:padding-box;border-left:6px solid transparent;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.vertebrae td.worse{font-weight:680;color:var(--train)}
.vertebrae td.better{font-weight:680;color:var(--val)}
dl.facts{display:grid;grid-template-columns:minmax(7.5em,max-content) 1fr;gap:6px 22px;margin:0}
dl.facts dt{color:var(--soft)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
details{margin:18px 0}
summary{cursor:pointer;color:var(--soft)}
footer{margin-top:52px;padding-top:14px;border-top:1px solid var(--line);color:var(--soft);
font-size:.86rem}
@media (max-width:560px){main{padding:24px 16px 40px}.wide{margin:0 -16px;padding:0 16px}
dl.facts{grid-template-columns:1fr;gap:0}dl.facts dd{margin-bottom:9px}
.slice svg text{font-size:30px}.slice svg path{stroke-width:5}.slice svg path.under{stroke-width:10}
.key-figures{grid-template-columns:1fr 1fr}.key-figures dd{font-size:1.2rem}
figure.scan .frame{overflow-x:auto;margin:0 -16px}
figure.scan img{border-radius:0;width:auto;max-width:none;height:min(64vw,300px)}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;
--line:#bbb;--tint:#f2f2f2;
--train:#b3400c;--val:#035f94;--note:#fff;--note-line:#999}
body{font-size:10.5pt}main{max-width:none;padding:0}h2,h3{break-after:avoid}
.charts{grid-template-columns:1fr 1fr 1fr}.key-figures dd{font-size:1.15rem}
tr,figure.chart,.confusion,.tiles,.slice,.bars{break-inside:avoid}
.montage{min-width:0}.tile,.rows,.beside>div{break-inside:avoid}.swatches label{display:none}
.slices{grid-template-columns:repeat(4,1fr)}.charts.four svg text{font-size:11px}
.confusions{grid-template-columns:repeat(2,1fr)}.wide{overflow:visible}
figure.scan img{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
