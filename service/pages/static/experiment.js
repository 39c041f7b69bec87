// An experiment's page: results, pictures, logs.

import "./page.js";
import { watchLogs } from "./logs.js";
import { watchPictures } from "./pictures.js";
import { Results } from "./results.js";

const SPACING_MS = 5000; // reading all curves takes MLflow a while
const CHANGING = new Set(["trial", "ended", "submitted"]);

const section = document.getElementById("results");
const api = section.dataset.results;
const results = new Results(section, [{ api, name: "", trials: JSON.parse(section.dataset.trials) }]);
let last = Date.now();
let timer = null;

function reload() {
  if (timer !== null) return;
  timer = setTimeout(() => {
    timer = null;
    last = Date.now();
    results.load();
  }, Math.max(500, SPACING_MS - (Date.now() - last)));
}

results.load();
document.addEventListener("happened", ({ detail }) => { if (CHANGING.has(detail)) reload(); });
document.addEventListener("fresh", () => {
  if (document.getElementById("live").dataset.state !== "on") reload();
});

watchLogs(document.getElementById("logs"));
watchPictures(document.getElementById("samples"));
