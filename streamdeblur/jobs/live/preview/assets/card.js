// One source: its two pictures of one and the same frame, and its numbers.

import {divide} from "./divider.js";

const SAMPLES = 60; // seconds of the latency curve
const SILENCE = 4000; // milliseconds without a picture before the page says so
const COLORS = ["#86f0c2", "#ffd166", "#8cc4ff", "#ff9f80", "#d9a8ff", "#f78fb3", "#b6e36b"];
const STATES = {
  starting: ["busy", "starting", "Starting"],
  connecting: ["busy", "connecting", "Connecting"],
  live: ["good", "live", ""],
  waiting: ["bad", "lost", "Connection to the source lost, trying again"],
  ended: ["over", "ended", "This source has ended"],
  "gave up": ["bad", "given up", "This source was given up"],
  stopped: ["over", "stopped", "Stopped"],
};
const OUTPUTS = {idle: "over", opening: "busy", live: "good", waiting: "bad", "disk full": "bad", closed: "over"};

const whole = n => n == null ? "–" : Math.round(n).toLocaleString("en-US").replaceAll(",", "\u202f");
const percent = share => share == null ? "–" : `${Math.round(share * 100)} %`;
const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function amount(element, value, unit) { // "182 ms", the unit small
  const text = `${value} ${unit}`;
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  const small = document.createElement("small");
  small.textContent = unit;
  element.replaceChildren(`${value} `, small);
}

export class Card {
  // on: {grow(card), watch()}
  constructor(name, on) {
    this.name = name;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    const find = selector => this.element.querySelector(selector);
    this.element.dataset.source = name;
    this.element.setAttribute("aria-label", name);
    set(find("h2"), name);
    find("h2").title = name;
    this.state = find(".state span");
    this.view = find(".view");
    this.veil = {title: find(".veil strong"), text: find(".veil span")};
    this.sides = ["before", "after"].map(side => {
      const canvas = find(`.${side} canvas`);
      canvas.setAttribute("aria-label", `${name}, ${side} restoration`);
      return {canvas, context: canvas.getContext("2d", {alpha: false}), marks: find(`.${side} .marks`)};
    });
    this.tag = find(".tag.right");
    this.values = Object.fromEntries([...this.element.querySelectorAll("[data-value]")].map(e => [e.dataset.value, e]));
    this.rungs = find(".rungs");
    this.curve = find(".curve");
    this.limit = find(".limit");
    this.outputs = find(".outputs");
    this.latencies = [];
    this.snap = find(".snap");
    this.grow = find(".grow");
    this.lastPicture = this.born = performance.now();
    this.visible = false;
    this.bypass = false;

    const divider = find(".divider");
    divider.setAttribute("aria-label", `${name}: before on the left, after on the right`);
    divide(this.view, divider, () => {
      if (this.element.classList.contains("big") || this.element.parentElement.classList.contains("alone")) return false;
      on.grow(this);
      return true;
    });
    this.grow.addEventListener("click", () => on.grow(this));
    this.snap.addEventListener("click", () => this.snapshot());
    this.snap.title = "Save before and after as PNG";
    this.snap.setAttribute("aria-label", `Save a snapshot of ${name}: before and after as PNG`);
    this.enlarge(false);
    new IntersectionObserver(entries => {
      this.visible = entries[entries.length - 1].isIntersecting;
      this.resume();
      on.watch();
    }, {rootMargin: "120px"}).observe(this.element);
  }

  enlarge(big) {
    this.element.classList.toggle("big", big);
    this.grow.setAttribute("aria-pressed", big);
    this.grow.title = big ? "Back to the others" : "Enlarge";
    this.grow.setAttribute("aria-label", big ? `Show ${this.name} among the others` : `Enlarge ${this.name}`);
  }

  // --- pictures -----------------------------------------------------------------------------------------------------

  async draw(header, before, after) {
    const bitmaps = await Promise.all([createImageBitmap(before), after ? createImageBitmap(after) : null]);
    // Both are drawn in one go: what is left and right of the divider is always the same frame.
    this.sides.forEach((side, i) => {
      const bitmap = bitmaps[i] ?? bitmaps[0];
      if (side.canvas.width !== bitmap.width || side.canvas.height !== bitmap.height) {
        side.canvas.width = bitmap.width;
        side.canvas.height = bitmap.height;
      }
      side.context.drawImage(bitmap, 0, 0);
    });
    bitmaps.forEach(b => b?.close());
    this.view.style.setProperty("--ratio", header.width / header.height);
    this.view.dataset.index = header.index;
    this.view.dataset.status = header.status;
    const raw = header.status !== "restored";
    const why = header.reason && header.reason !== header.step ? `, ${header.reason}` : "";
    set(this.tag, raw ? `as it came: ${header.step}${why}` : `after: ${header.step}`);
    this.tag.classList.toggle("raw", raw);
    this.mark(this.sides[1].marks, header.boxes);
    this.mark(this.sides[0].marks, header.boxes_before ?? header.boxes);
    this.view.classList.toggle("old", header.boxes_index !== header.index);
    set(this.values.objects, header.boxes ? whole(header.boxes.length) : "–");
    set(this.values.frame, whole(header.index));
    this.lastPicture = performance.now();
    if (!this.element.classList.contains("seen")) {
      this.element.classList.add("seen");
      this.cover();
    }
  }

  mark(room, boxes) {
    const wanted = boxes ?? [];
    while (room.childElementCount > wanted.length) room.lastElementChild.remove();
    wanted.forEach((one, i) => {
      let mark = room.children[i];
      if (!mark) {
        mark = document.createElement("div");
        mark.className = "mark";
        mark.append(document.createElement("span"));
        room.append(mark);
      }
      const [x1, y1, x2, y2] = one.box;
      Object.assign(mark.style, {left: `${x1 * 100}%`, top: `${y1 * 100}%`, width: `${(x2 - x1) * 100}%`,
        height: `${(y2 - y1) * 100}%`});
      mark.style.setProperty("--c", COLORS[(one.track ?? hash(one.name)) % COLORS.length]);
      mark.classList.toggle("low", y1 < 0.06);
      mark.classList.toggle("right", x1 > 0.8);
      set(mark.firstElementChild, `${one.track == null ? "" : `#${one.track} `}${one.name} ${one.score.toFixed(2)}`);
    });
  }

  async snapshot() {
    this.snap.disabled = true;
    try {
      const path = `api/snapshot/${encodeURIComponent(this.name)}`;
      const first = await take(`${path}?which=before`);
      await take(`${path}?which=after&frame=${first}`);
    } catch (error) {
      this.say(`No snapshot: ${error.message}`);
    } finally {
      this.snap.disabled = false;
    }
  }

  say(text) {
    set(this.state, text);
    this.said = performance.now();
  }

  // --- numbers ------------------------------------------------------------------------------------------------------

  update(s, job) {
    const v = this.values;
    this.status = s;
    this.bypass = s.state === "live" && job.steps?.length > 1 && s.step_index === job.steps.length - 1;
    this.cover();
    amount(v.fps, s.fps_out == null ? "–" : s.fps_out.toFixed(1), "out");
    set(v.fps_in, s.fps_in == null ? "" : `${s.fps_in.toFixed(1)} in`);
    amount(v.p95, whole(s.latency_p95_ms), "ms");
    const deadline = s.latency_ms ?? job.latency_ms;
    v.p95.classList.toggle("alarm", s.latency_p95_ms > deadline);
    set(v.deadline, deadline == null ? "–" : `${whole(deadline)} ms`);
    set(v.p50, s.latency_p50_ms == null ? "" : `p50 ${whole(s.latency_p50_ms)} ms`);
    set(v.dropped, whole(s.dropped));
    v.dropped.classList.toggle("alarm", s.dropped > 0);
    set(v.behind, s.behind ? `${whole(s.behind)} dropped` : whole(s.behind));
    v.behind.classList.toggle("alarm", s.behind > 0);
    set(v.late, `${whole(s.late)} late, ${whole(s.failed)} failed`);
    set(v.step, s.step ?? "–");
    v.step.title = s.step ?? "";
    this.climb(job.steps ?? [], s.step_index);
    const all = (s.restored ?? 0) + (s.bypassed ?? 0) + (s.dropped ?? 0);
    set(v.restored, all ? `${whole(s.restored)} (${percent(s.restored / all)})` : whole(s.restored));
    set(v.bypassed, whole(s.bypassed));
    set(v.reused, percent(s.reused));
    set(v.reconnects, whole(s.reconnects));
    set(v.waiting, whole(s.waiting));
    const size = s.width ? ` · ${s.width}×${s.height}${s.codec ? ` ${s.codec}` : ""}` : "";
    set(v.source, `${s.url ?? ""}${size}`);
    v.source.title = s.url ?? "";
    this.drawOutputs(s.outputs ?? []);
    this.drawDetector(s.detection);
    this.drawGain(s.detection);
    this.latencies.push(s.latency_p95_ms);
    if (this.latencies.length > SAMPLES) this.latencies.shift();
    this.drawCurve(deadline);
  }

  cover() {
    const s = this.status;
    if (!s) return;
    const seen = this.element.classList.contains("seen");
    let [tone, word, title] = STATES[s.state] ?? ["busy", s.state, s.state];
    let text = s.state === "live" || s.state === "ended" || s.state === "stopped" ? "" : s.error ?? "";
    const now = performance.now();
    if (s.state === "live" && this.bypass) [tone, word] = ["warn", "live, bypass"];
    if (s.state === "live" && !seen) {
      title = "Waiting for the first picture";
      tone = "busy";
    } else if (s.state === "live" && this.visible && !document.hidden && now - this.lastPicture > SILENCE) {
      title = `No new picture for ${Math.round((now - this.lastPicture) / 1000)} s`;
      [tone, text] = ["warn", s.error ?? ""];
    }
    this.element.dataset.tone = tone;
    this.element.dataset.state = s.state;
    if (!this.said || now - this.said > 5000) set(this.state, word);
    this.element.classList.toggle("veiled", title !== "");
    set(this.veil.title, title);
    set(this.veil.text, text);
    this.snap.disabled = !seen;
  }

  resume() { // it was out of sight: silence begins to count now
    this.lastPicture = performance.now();
  }

  climb(steps, index) {
    if (this.rungs.childElementCount !== steps.length) {
      this.rungs.replaceChildren(...steps.map(() => document.createElement("i")));
    }
    // The best step fills them all.
    [...this.rungs.children].forEach((rung, i) => {
      rung.className = i < steps.length - index ? index === steps.length - 1 ? "on last" : "on" : "";
    });
  }

  drawOutputs(outputs) {
    while (this.outputs.childElementCount > Math.max(outputs.length, 1)) this.outputs.lastElementChild.remove();
    while (this.outputs.childElementCount < Math.max(outputs.length, 1)) {
      const row = document.createElement("li");
      row.append(document.createElement("b"), document.createElement("em"));
      this.outputs.append(row);
    }
    [...this.outputs.children].forEach((row, i) => {
      const o = outputs[i];
      row.dataset.tone = o ? OUTPUTS[o.state] ?? "busy" : "over";
      set(row.firstElementChild, o ? o.target : "none");
      row.firstElementChild.title = o ? o.target : "";
      row.lastElementChild.hidden = !o;
      if (!o) return;
      const lost = o.dropped ? `, ${whole(o.dropped)} dropped` : "";
      set(row.lastElementChild, `${o.state}${lost}`);
      row.title = o.error && o.state !== "live" ? o.error : "";
    });
  }

  drawDetector(d) {
    if (!d) return;
    const words = [d.looked == null ? "" : `${whole(d.looked)} frames`, d.dropped ? `${whole(d.dropped)} not looked at` : "",
      d.errors ? `${whole(d.errors)} failed` : ""];
    set(this.values.detector, (d.stuck ? d.error : words.filter(Boolean).join(", ")) || "–");
    this.values.detector.classList.toggle("alarm", Boolean(d.stuck || d.errors));
    this.values.detector.title = d.error ?? "";
  }

  drawGain(detection) {
    for (const row of this.element.querySelectorAll(".found")) row.hidden = !detection;
    const gain = detection?.gain;
    const growth = gain?.growth;
    set(this.values.gain, growth == null ? "–" : `${growth >= 0 ? "+" : "−"}${Math.round(Math.abs(growth) * 100)} %`
      + (gain.pays == null ? "" : gain.pays ? ", pays" : ", does not pay"));
  }

  drawCurve(limit) {
    const known = this.latencies.filter(v => v != null);
    if (known.length < 2) return;
    const top = Math.max(limit ?? 0, ...known) * 1.1;
    const y = v => (20 - v / top * 19).toFixed(2);
    let path = "", pen = "M";
    this.latencies.forEach((v, i) => {
      if (v == null) { pen = "M"; return; }
      path += `${pen}${i + SAMPLES - this.latencies.length} ${y(v)}`;
      pen = "L";
    });
    this.curve.setAttribute("d", path);
    if (limit) this.limit.setAttribute("d", `M0 ${y(limit)}H60`);
  }
}

function hash(text) {
  let value = 0;
  for (const letter of text) value = (value * 31 + letter.codePointAt(0)) % 9973;
  return value;
}

// Saves what the address gives, under the name that the server chose; returns the frame's index.
async function take(address) {
  const answer = await fetch(address, {cache: "no-store"});
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({error: answer.statusText}))).error);
  const name = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get("Content-Disposition") ?? "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name ? decodeURIComponent(name[1]) : "snapshot.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return answer.headers.get("X-Frame-Index");
}
