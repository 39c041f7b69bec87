// Buttons that change something: asked first in the dialog, done, told, and the page read anew.

import { send } from "./api.js";
import { freshen } from "./live.js";

let silence = null;

export function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { said.textContent = ""; }, 6000);
}

/**
 * Ask in the dialog; do it; what goes wrong is said there.
 *
 * act gets the dialog's number and may throw.
 */
export function confirm({ title, text, yes, number = null }, act) {
  const dialog = document.getElementById("ask");
  const part = (name) => document.getElementById(`ask-${name}`);
  part("title").textContent = title;
  part("text").textContent = text;
  part("yes").textContent = yes;
  part("error").textContent = "";
  part("number").hidden = number === null;
  part("priority").disabled = number === null;
  if (number !== null) part("priority").value = number;
  part("yes").disabled = false;
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    part("yes").disabled = true;
    try {
      await act(Number(part("priority").value));
      dialog.close();
      freshen();
    } catch (error) {
      part("error").textContent = error.message;
      part("yes").disabled = false;
    }
  };
  dialog.showModal();
  if (number !== null) part("priority").select();
}

export function watchActions() {
  document.getElementById("ask-no")?.addEventListener("click", () => {
    document.getElementById("ask").close();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button[data-post], button[data-patch]");
    if (!button) return;
    const { post, patch, title, ask, yes, name, priority } = button.dataset;
    if (post) {
      confirm({ title, text: ask, yes }, async () => {
        const answer = await send("POST", post);
        say(answer.state ? `${answer.name}: ${answer.state.toLowerCase()}` : "done");
      });
    } else {
      confirm(
        { title: `Priority of ${name}`, text: "", yes: "Set it", number: priority },
        async (number) => {
          const answer = await send("PATCH", patch, { priority: number });
          say(`${answer.name}: priority ${answer.priority}`);
        },
      );
    }
  });
}
