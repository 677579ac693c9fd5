"""The report's style sheet and script. No font, library or picture from elsewhere: the page is one file."""

from __future__ import annotations

#: Colours of models in their order; readable as text and as areas on both backgrounds. More models start over.
PALETTE = 8

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#dfe3e8;--grid:#e8ebef;
--good:#0b7a4b;--bad:#b3261e;--c0:#1f6feb;--c1:#d9580d;--c2:#0f8a6a;--c3:#9a3fb0;--c4:#b58900;--c5:#c2255c;--c6:#4a5568;
--c7:#0e7490}
@media (prefers-color-scheme:dark){:root{--bg:#111418;--card:#191d23;--ink:#e7eaee;--soft:#9aa4b1;--line:#2c333c;
--grid:#262c34;--good:#4cc38a;--bad:#ff8a80;--c0:#6aa5ff;--c1:#ff9a57;--c2:#4fd1a5;--c3:#d58ae6;--c4:#e0bd4a;
--c5:#ff7fae;--c6:#a9b4c2;--c7:#4cc9e0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0 .3em}
h2{font-size:1.2rem;margin:2.2em 0 .5em}
h3{font-size:1rem;margin:0 0 .5em;font-weight:600}
.lead{font-size:1.08rem;margin:.4em 0;padding:0;list-style:none}
.meta,.note,figcaption{color:var(--soft);font-size:.875rem}
.meta{margin:0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px;margin:12px 0}
.scroll{overflow-x:auto}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:12px;align-items:start}
.two .card{margin:0}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 8px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:500;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
tr:last-child td{border-bottom:0}
td small,th small{color:var(--soft);display:block;font-weight:400;line-height:1.3;max-width:13em;
overflow:hidden;text-overflow:ellipsis;margin-left:auto}
td:first-child small{margin-left:0;max-width:18em}
.best{font-weight:700}
.up{color:var(--good)}.down{color:var(--bad)}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em;vertical-align:baseline}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.875rem;margin:0 0 8px}
figure{margin:0}
figcaption{margin-top:8px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--ink);font-size:12px;paint-order:stroke;stroke:var(--card);stroke-width:3px;
stroke-linejoin:round}
svg .tick,svg .axis{fill:var(--soft);font-size:11px}
svg .label{font-size:13px;font-weight:600}
svg .faint{fill:var(--soft);font-size:10px}
svg .value,svg .name{font-size:11px}
svg .name{fill:var(--soft)}
svg .grid{stroke:var(--grid)}svg .zero{stroke:var(--soft)}
svg .input{stroke:var(--soft);stroke-dasharray:4 4}
svg .published{fill:none;stroke:var(--soft);stroke-width:1.3}
svg .point{stroke:var(--card);stroke-width:1.5}
svg .line{fill:none;stroke-width:1.8}
.crop{display:grid;grid-template-columns:minmax(0,1fr);gap:10px}
.crop+.crop{margin-top:18px;padding-top:18px;border-top:1px solid var(--line)}
.crop .head{display:flex;gap:12px;align-items:center;font-size:.9rem;overflow-wrap:anywhere}
.overview{position:relative;flex:0 0 132px}
.overview img{display:block;width:100%;border-radius:4px}
.overview i{position:absolute;border:2px solid #ff3b30;box-shadow:0 0 0 1px rgba(255,255,255,.8)}
.parts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,150px),1fr));gap:8px}
.parts img{display:block;width:100%;aspect-ratio:1;image-rendering:pixelated;border-radius:4px;background:var(--grid)}
.parts figcaption{margin-top:3px;overflow-wrap:anywhere}
.compare .controls{display:flex;flex-wrap:wrap;gap:8px 16px;margin-bottom:10px;font-size:.9rem}
.compare select{font:inherit;color:inherit;background:var(--bg);border:1px solid var(--line);border-radius:6px;
padding:3px 6px;max-width:70vw}
.stage{position:relative;overflow:hidden;border-radius:6px;background:var(--grid);touch-action:pan-y;cursor:ew-resize;
--at:50%;-webkit-user-select:none;user-select:none}
.stage img{position:absolute;inset:0;width:100%;height:100%;visibility:hidden;pointer-events:none}
.stage img.under{visibility:visible}
.stage img.over{visibility:visible;clip-path:inset(0 calc(100% - var(--at)) 0 0)}
.divider{position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;background:#fff;
box-shadow:0 0 4px rgba(0,0,0,.6)}
.divider::after{content:"\\2194";position:absolute;top:50%;left:50%;width:36px;height:36px;margin:-18px;border-radius:50%;
background:#fff;color:#1b1f24;display:grid;place-items:center;font-size:20px;line-height:1;
box-shadow:0 1px 5px rgba(0,0,0,.45)}
.divider:focus-visible{outline:none}
.divider:focus-visible::after{outline:3px solid var(--c0);outline-offset:2px}
.tag{position:absolute;bottom:8px;padding:2px 8px;border-radius:4px;background:rgba(0,0,0,.62);color:#fff;
font-size:.8rem;pointer-events:none;max-width:45%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.tag.left{left:8px}.tag.right{right:8px}
details summary{cursor:pointer;font-weight:600}
dl{font-size:.9rem;margin:.6em 0 0}dt{font-weight:600;margin-top:.6em}dd{margin:0;color:var(--soft)}
@media (max-width:560px){main{padding:14px 10px 48px}.card{padding:10px}th,td{padding:5px 7px}h1{font-size:1.4rem}
svg .tick,svg .axis,svg .name{font-size:15px}svg .value{font-size:13px}svg .label{font-size:17px}
svg .faint{font-size:12px}}
@media print{.compare{display:none}body{background:#fff}}
""" + "".join(
    f".fill{i}{{fill:var(--c{i});background:var(--c{i})}}.stroke{i}{{stroke:var(--c{i})}}" for i in range(PALETTE)
)

SCRIPT = """
for (const box of document.querySelectorAll('.compare')) {
  const stage = box.querySelector('.stage'), divider = box.querySelector('.divider');
  const [before, after] = box.querySelectorAll('select'), tags = box.querySelectorAll('.tag');
  const images = [...stage.querySelectorAll('img')];
  const show = () => {
    for (const image of images) {
      image.classList.toggle('over', image.dataset.part === before.value);
      image.classList.toggle('under', image.dataset.part === after.value);
    }
    const over = images.find(i => i.dataset.part === before.value);
    stage.insertBefore(over, divider);
    tags[0].textContent = before.value;
    tags[1].textContent = after.value;
  };
  const move = percent => {
    const at = Math.min(100, Math.max(0, percent));
    stage.style.setProperty('--at', at + '%');
    divider.setAttribute('aria-valuenow', Math.round(at));
  };
  const follow = event => {
    const r = stage.getBoundingClientRect();
    move((event.clientX - r.left) / r.width * 100);
  };
  let held = false;
  stage.addEventListener('pointerdown', event => {
    held = true;
    stage.setPointerCapture(event.pointerId);
    divider.focus({preventScroll: true});
    follow(event);
  });
  stage.addEventListener('pointermove', event => { if (held) follow(event); });
  for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, () => { held = false; });
  divider.addEventListener('keydown', event => {
    const now = Number(divider.getAttribute('aria-valuenow')), step = event.shiftKey ? 10 : 2;
    const to = {ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
      PageDown: now - 10, PageUp: now + 10, Home: 0, End: 100}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });
  before.addEventListener('change', show);
  after.addEventListener('change', show);
  show();
  move(50);
}
"""
