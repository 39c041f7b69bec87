// Follows the service's events, and reads the page anew when something has happened: often events
// come in bursts, so many of them are one look. While the stream is broken it looks by the clock.

import { toLogin } from "./api.js";
import { morph } from "./morph.js";
import { refreshTimes } from "./times.js";

const BURST_MS = 250;
const SPACING_MS = 1000;
const SETTLED_MS = 1700; // the queue's places are up to a second old
const BROKEN_POLL_MS = 10000;
const SILENCE_MS = 60000; // the service says something every 15 s
const PAUSES_MS = [500, 1000, 2000, 5000, 10000];

let timer = null;
let settling = null;
let lastLook = 0;
let looking = false;
let again = false;

export function follow() {
  const path = document.body.dataset.events;
  if (!path) return;
  new Stream(path, document.body.dataset.after).run();
  pollWhileNeeded();
}

export function freshen() {
  if (timer !== null) return;
  const wait = Math.max(BURST_MS, SPACING_MS - (Date.now() - lastLook));
  timer = setTimeout(() => {
    timer = null;
    look();
  }, wait);
}

async function look() {
  if (looking) {
    again = true;
    return;
  }
  looking = true;
  lastLook = Date.now();
  try {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (answer.redirected && new URL(answer.url).pathname === "/ui/login") return toLogin();
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of document.querySelectorAll("[data-live]")) {
      const newer = fresh.getElementById(region.id);
      if (newer) morph(region, newer);
    }
    refreshTimes();
    document.dispatchEvent(new CustomEvent("fresh"));
  } catch {
    // The next event or the clock tries again.
  } finally {
    looking = false;
    if (again) {
      again = false;
      freshen();
    }
  }
}

function pollWhileNeeded() {
  setInterval(() => {
    if (document.hidden) return;
    const seconds = Number(document.querySelector("[data-poll]")?.dataset.poll || 0);
    const broken = document.getElementById("live")?.dataset.state !== "on";
    const wait = broken ? BROKEN_POLL_MS : seconds * 1000;
    if (wait && Date.now() - lastLook >= wait) freshen();
  }, 1000);
}

function show(state) {
  const sign = document.getElementById("live");
  if (!sign || sign.dataset.state === state) return;
  sign.dataset.state = state;
  sign.textContent = state === "on" ? "live" : "not live";
}

class Stream {
  constructor(path, after) {
    this.path = path;
    this.after = after;
    this.ended = null;
    this.tries = 0;
  }

  async run() {
    // A hidden page holds no connection: browsers have six for one service.
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.stop();
      else this.wake?.();
    });
    for (;;) {
      if (document.hidden) {
        await new Promise((wake) => { this.wake = wake; });
        this.wake = null;
        freshen();
      }
      await this.read();
      if (document.hidden) continue;
      show("broken");
      const pause = PAUSES_MS[Math.min(this.tries, PAUSES_MS.length - 1)];
      this.tries += 1;
      await new Promise((next) => setTimeout(next, pause * (0.75 + Math.random() / 2)));
    }
  }

  stop() {
    this.ended?.abort();
  }

  async read() {
    this.ended = new AbortController();
    let silence = null;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => this.stop(), SILENCE_MS);
    };
    try {
      heard();
      const headers = { Accept: "text/event-stream" };
      if (this.after) headers["Last-Event-ID"] = this.after;
      const answer = await fetch(this.path, {
        credentials: "same-origin", headers, signal: this.ended.signal,
      });
      if (answer.status === 401) return toLogin();
      if (!answer.ok) return;
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        heard();
        show("on");
        this.tries = 0;
        const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
        rest = blocks.pop();
        blocks.forEach((block) => this.take(block));
      }
    } catch {
      // Broken or stopped: begun again where it was.
    } finally {
      clearTimeout(silence);
    }
  }

  take(block) {
    const id = block.match(/^id: ?(.+)$/m);
    if (!id) return;
    this.after = id[1];
    const kind = block.match(/^event: ?(.+)$/m)?.[1];
    document.dispatchEvent(new CustomEvent("happened", { detail: kind }));
    freshen();
    clearTimeout(settling);
    settling = setTimeout(freshen, SETTLED_MS);
  }
}
