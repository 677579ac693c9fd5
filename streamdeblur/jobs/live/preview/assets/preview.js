// The page: one card a source, and what is told of the job in the bar.

import {Card} from "./card.js";
import {Link} from "./link.js";

const main = document.getElementById("sources");
const cards = new Map();
const job = Object.fromEntries([...document.querySelectorAll("[data-job]")].map(e => [e.dataset.job, e]));
const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };

const bytes = mb => mb == null ? "–" : mb >= 10000 ? `${(mb / 1000).toFixed(0)} GB` : mb >= 1000
  ? `${(mb / 1000).toFixed(1)} GB` : `${Math.round(mb)} MB`;
function time(seconds) {
  if (seconds == null) return "–";
  const s = Math.floor(seconds), two = n => String(n).padStart(2, "0");
  const days = Math.floor(s / 86400);
  return `${days ? `${days} d ` : ""}${two(Math.floor(s / 3600) % 24)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

function deadlines(status) { // that of all sources, or from the shortest to the longest
  const all = (status.sources ?? []).map(s => s.latency_ms ?? status.latency_ms).filter(d => d != null);
  const ends = [...new Set(all.length ? [Math.min(...all), Math.max(...all)] : [status.latency_ms])];
  return ends[0] == null ? "–" : `${ends.map(Math.round).join("–")} ms`;
}

function watch() {
  link?.watch(document.hidden ? [] : [...cards.values()].filter(c => c.visible).map(c => c.name));
}

function grow(card) {
  const big = card && !card.element.classList.contains("big");
  for (const other of cards.values()) other.enlarge(big && other === card);
  if (big) card.element.scrollIntoView({block: "start", behavior: "instant"});
}

function told(status) {
  const sources = status.sources ?? [];
  const names = new Set(sources.map(s => s.name));
  for (const [name, card] of cards) {
    if (!names.has(name)) {
      card.element.remove();
      cards.delete(name);
    }
  }
  for (const source of sources) {
    let card = cards.get(source.name);
    if (!card) {
      card = new Card(source.name, {grow, watch});
      cards.set(source.name, card);
      main.append(card.element);
    }
    card.update(source, status);
  }
  main.classList.toggle("alone", sources.length === 1);
  document.getElementById("empty").hidden = sources.length > 0;
  document.getElementById("foot").hidden = false;
  set(document.getElementById("version"), `streamdeblur ${status.version}`);
  const live = sources.filter(s => s.state === "live").length;
  set(job.live, `${live} of ${sources.length}`);
  job.live.classList.toggle("alarm", !status.ready);
  job.live.title = (status.problems ?? []).join("\n");
  set(job.device, [status.device, status.model].filter(Boolean).join(" · ") || "–");
  job.device.title = job.device.textContent;
  set(job.load, status.load == null ? "–" : `${Math.round(status.load * 100)} %`);
  job.load.classList.toggle("alarm", status.load > 1);
  set(job.deadline, deadlines(status));
  set(job.memory, bytes(status.memory_mb));
  set(job.gpu, status.gpu_mb == null ? "none" : bytes(status.gpu_mb));
  set(job.running, time(status.seconds));
  document.title = `${live} of ${sources.length} live, streamdeblur`;
  watch();
}

function state(tone, words) {
  const element = document.getElementById("link");
  element.dataset.tone = tone;
  set(element, words);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) cards.forEach(c => c.resume());
  watch();
});
setInterval(() => cards.forEach(c => c.cover()), 1000);
document.addEventListener("keydown", event => { if (event.key === "Escape") grow(null); });
document.getElementById("boxes").addEventListener("click", event => {
  const shown = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", shown);
  document.body.classList.toggle("no-boxes", !shown);
});

const link = new Link({status: told, state, picture: async (header, before, after) => {
  await cards.get(header.source)?.draw(header, before, after);
}});
