// A spec is looked at while it is written: every mistake with its line, or the plan.

import { Problem, ask } from "./api.js";
import { significant } from "./numbers.js";

const PAUSE_MS = 450;

const form = document.getElementById("submit");
const [text, priority, sender, counter] = ["spec", "priority", "send", "cost"].map((id) => document.getElementById(id));
const verdict = document.getElementById("verdict");
const mistakes = document.getElementById("mistakes");
const region = document.getElementById("plan-region");

let timer = null;
let looking = null;
let key = null; // of the submission; the same as long as the same is sent

function body() {
  return { method: "POST", headers: { "Content-Type": "application/yaml" }, body: text.value };
}

function say(words, bad = false) {
  verdict.textContent = words;
  verdict.classList.toggle("bad", bad);
}

function showMistakes(list) {
  mistakes.replaceChildren(...list.map((sentence) => {
    const item = document.createElement("li");
    const found = sentence.match(/^request:(\d+): (.*)$/s);
    if (found) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `line ${found[1]}`;
      button.addEventListener("click", () => goTo(Number(found[1])));
      item.append(button);
    }
    item.append(found ? found[2] : sentence.replace(/^request: /, ""));
    return item;
  }));
}

function goTo(line) {
  const lines = text.value.split("\n");
  const begin = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  text.focus();
  text.setSelectionRange(begin, begin + (lines[line - 1] || "").length);
  const height = parseFloat(getComputedStyle(text).lineHeight);
  text.scrollTop = Math.max(0, (line - 5) * height);
}

async function look(cost = false) {
  looking?.abort();
  const mine = new AbortController();
  looking = mine;
  sender.disabled = true;
  counter.disabled = true;
  if (!text.value.trim()) {
    showMistakes([]);
    region.hidden = true;
    return say("write a spec");
  }
  say(cost ? "counting; this takes seconds …" : "looking …");
  try {
    const plan = await ask(`/experiments?plan=true${cost ? "&cost=true" : ""}`, { ...body(), signal: mine.signal });
    showMistakes([]);
    const cells = plan.cells.length;
    say(`${plan.name}: ${plan.trials} trial${plan.trials === 1 ? "" : "s"} of ${cells} cell${cells === 1 ? "" : "s"}`);
    showPlan(plan);
    sender.disabled = false;
    counter.disabled = false;
  } catch (error) {
    if (error.name === "AbortError") return;
    region.hidden = true;
    const list = error instanceof Problem ? (error.errors.length ? error.errors : [error.message]) : [];
    showMistakes(list);
    say(list.length ? `${list.length} mistake${list.length === 1 ? "" : "s"}` : error.message, true);
    counter.disabled = !cost;
  }
}

function showPlan(plan) {
  const costs = plan.cells.some((cell) => cell.cost);
  const table = document.createElement("table");
  table.className = "grid";
  const caption = table.createCaption();
  caption.className = "visually-hidden";
  caption.textContent = "Cells of the plan";
  const top = table.createTHead().insertRow();
  const head = ["Cell", "trials", "keep ratio", "mean", ...(costs ? ["GFLOPs", "encoder", "parameters"] : []), "overrides"];
  const numbers = head.length - 1;
  head.forEach((name, n) => add(top, "th", name, n > 0 && n < numbers, "col"));
  const rows = table.createTBody();
  for (const cell of plan.cells) {
    const row = rows.insertRow();
    const cost = (name) => {
      const value = cell.cost?.[`cost/${name}`];
      return value === undefined ? "–" : significant(value);
    };
    add(row, "th", cell.name + (cell.baseline ? " (baseline)" : ""), false, "row");
    const values = [String(cell.trials), String(cell.keep_ratio), cell.mean_keep_ratio.toFixed(3)];
    if (costs) values.push(cost("gflops"), cost("encoder_gflops"), cost("params"));
    values.forEach((value) => add(row, "td", value, true));
    const overrides = Object.entries(cell.overrides).map(([path, value]) => `${path}: ${JSON.stringify(value)}`);
    add(row, "td", overrides.join(", ") || "none", false);
  }
  document.getElementById("plan").replaceChildren(table);
  region.hidden = false;
}

function add(row, kind, value, number, scope) {
  const cell = document.createElement(kind);
  cell.textContent = value;
  if (number) cell.className = "number";
  if (scope) cell.scope = scope;
  row.append(cell);
}

text.addEventListener("input", () => {
  key = null;
  sender.disabled = true;
  clearTimeout(timer);
  timer = setTimeout(look, PAUSE_MS);
});
priority.addEventListener("input", () => { key = null; });
counter.addEventListener("click", () => look(true));
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sender.disabled || !form.reportValidity()) return;
  key ||= newKey();
  sender.disabled = true;
  say("submitting …");
  try {
    const query = `?priority=${Number(priority.value) || 0}`;
    const options = body();
    options.headers["Idempotency-Key"] = key;
    const { experiment } = await ask(`/experiments${query}`, options);
    location.assign(`/ui/experiments/${experiment.name}`);
  } catch (error) {
    say(error.message, true);
    showMistakes(error.errors || []);
    sender.disabled = false;
  }
});

function newKey() {
  // crypto.randomUUID is there on safe origins only.
  return [...crypto.getRandomValues(new Uint8Array(16))].map((n) => n.toString(16).padStart(2, "0")).join("");
}

const filter = document.getElementById("help-filter");
filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  let count = 0;
  for (const section of document.querySelectorAll("#help details")) {
    let any = false;
    for (const row of section.querySelectorAll("tr[data-field]")) {
      const fits = !wanted || `${row.dataset.field} ${row.textContent}`.toLowerCase().includes(wanted);
      row.hidden = !fits;
      any ||= fits;
      count += fits;
    }
    section.hidden = !any;
    section.open = Boolean(wanted) && any;
  }
  document.getElementById("help-count").textContent = wanted ? `${count} fields` : "";
});

look();
