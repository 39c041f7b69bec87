// Logs by trial and rank, followed while they grow.

import { Problem, ask } from "./api.js";

const MOST = 400000; // characters that are kept on the page
const NEAR_END = 30;

export function watchLogs(section) {
  const api = section.dataset.logs;
  const part = (name) => section.querySelector(`#log-${name}`);
  const [which, follow, text] = [part("which"), part("follow"), part("text")];
  let running = null;

  async function fill() {
    const { items } = await ask(`${api}/logs`);
    const chosen = which.value;
    which.replaceChildren(...items.map(({ trial, rank }) => {
      const name = trial === null ? "driver" : `${trial}, rank ${rank}`;
      return new Option(name, trial === null ? "" : JSON.stringify([trial, rank]));
    }));
    which.value = chosen;
    if (which.selectedIndex < 0) which.selectedIndex = 0;
  }

  function add(more) {
    const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < NEAR_END;
    if (text.textContent.length + more.length > MOST) {
      text.textContent = (text.textContent + more).slice(-MOST);
    } else {
      text.append(more);
    }
    if (atEnd) text.scrollTop = text.scrollHeight;
  }

  async function show() {
    running?.abort();
    const mine = new AbortController();
    running = mine;
    text.hidden = false;
    part("hide").hidden = false;
    text.textContent = "";
    try {
      await fill();
      const query = new URLSearchParams();
      if (which.value) {
        const [trial, rank] = JSON.parse(which.value);
        query.set("trial", trial);
        query.set("rank", rank);
      }
      if (follow.checked) query.set("follow", "true");
      const answer = await fetch(`${api}/log?${query}`, { credentials: "same-origin", signal: mine.signal });
      if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        add(value);
      }
    } catch (error) {
      if (error.name !== "AbortError") add(`\n${error.message}\n`);
    }
  }

  part("show").addEventListener("click", show);
  which.addEventListener("focus", () => fill().catch(() => {}), { once: true });
  which.addEventListener("change", () => { if (!text.hidden) show(); });
  follow.addEventListener("change", () => { if (!text.hidden) show(); });
  part("hide").addEventListener("click", () => {
    running?.abort();
    text.hidden = true;
    part("hide").hidden = true;
  });
}
