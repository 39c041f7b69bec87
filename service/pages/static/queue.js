// The queue's page: several experiments cancelled at once.

import "./page.js";
import { confirm, say } from "./actions.js";
import { send } from "./api.js";

const bulk = document.getElementById("bulk");
const boxes = () => [...document.querySelectorAll("input[data-pick]")];
const picked = () => boxes().filter((box) => box.checked);

function show() {
  if (!bulk) return;
  const count = picked().length;
  bulk.hidden = count === 0;
  const text = `${count} selected`;
  const place = document.getElementById("bulk-count");
  if (place.textContent !== text) place.textContent = text;
}

function pick(checked) {
  boxes().forEach((box) => { box.checked = checked; });
  show();
}

if (bulk) {
  document.addEventListener("change", show);
  document.addEventListener("fresh", show);
  document.getElementById("bulk-all").addEventListener("click", () => pick(true));
  document.getElementById("bulk-none").addEventListener("click", () => pick(false));
  document.getElementById("bulk-cancel").addEventListener("click", () => {
    const chosen = picked();
    const names = chosen.map((box) => box.dataset.name);
    const shown = names.slice(0, 8).join(", ") + (names.length > 8 ? ", …" : "");
    confirm(
      {
        title: names.length === 1 ? `Cancel ${names[0]}?` : `Cancel ${names.length} experiments?`,
        text: `${shown}. What runs is stopped; what is done is kept.`,
        yes: "Cancel them",
      },
      async () => {
        const answer = await send("POST", "/experiments/cancel", { ids: chosen.map((box) => box.value) });
        const wrong = answer.items.filter((item) => item.problem);
        pick(false);
        if (wrong.length) {
          throw new Error(`${answer.items.length - wrong.length} cancelled; ${wrong.map((item) => item.problem).join("; ")}`);
        }
        say(`${answer.items.length} cancelled`);
      },
    );
  });
  show();
}
