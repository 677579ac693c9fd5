// The one connection to the server: pictures and numbers in, what is wanted and what is drawn out.

const FIRST_PAUSE = 500, LONGEST_PAUSE = 8000;

export class Link {
  // on: {status(document), picture(header, before, after) -> promise, state(tone, words)}
  constructor(on) {
    this.on = on;
    this.wanted = [];
    this.pause = FIRST_PAUSE;
    this.open();
  }

  open() {
    const url = new URL("api/live", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.search = url.hash = "";
    const socket = this.socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.pause = FIRST_PAUSE;
      this.on.state("good", "connected");
      this.send({watch: this.wanted});
    };
    socket.onmessage = event => {
      if (typeof event.data === "string") {
        const said = JSON.parse(event.data);
        if (said.status) this.on.status(said.status);
      } else {
        this.take(socket, event.data);
      }
    };
    socket.onclose = () => {
      this.on.state("bad", "connection lost");
      this.explain(opened);
    };
  }

  async take(socket, data) {
    const length = new DataView(data).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    const start = 4 + length, middle = start + header.before_bytes;
    const before = new Blob([new Uint8Array(data, start, header.before_bytes)], {type: "image/jpeg"});
    const after = header.after_bytes
      ? new Blob([new Uint8Array(data, middle, header.after_bytes)], {type: "image/jpeg"}) : null;
    try {
      await this.on.picture(header, before, after);
    } finally {
      // Only now may the next of this source come: a slow page gets fewer pictures, not older ones.
      if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ack: [header.source, header.number]}));
    }
  }

  // A WebSocket does not say why it was refused.
  async explain(opened) {
    if (!opened) {
      try {
        const answer = await fetch("api/status", {cache: "no-store"});
        if (answer.status === 401) {
          location.reload();
          return;
        }
        const status = await answer.json();
        if (answer.ok) {
          this.on.status(status);
          if (status.preview.readers >= status.preview.readers_limit) this.on.state("bad", "too many viewers");
        }
      } catch { /* the server is away; the next try tells */ }
    }
    setTimeout(() => this.open(), this.pause * (0.7 + 0.6 * Math.random()));
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }

  watch(names) {
    const same = names.length === this.wanted.length && names.every((n, i) => n === this.wanted[i]);
    if (same) return;
    this.wanted = names;
    this.send({watch: names});
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
