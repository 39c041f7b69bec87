// An experiment's page: results, pictures, logs.

import "./page.js";
import { watchLogs } from "./logs.js";
import { watchPictures } from "./pictures.js";
import { Results } from "./results.js";

const SPACING_MS = 4000;

const section = document.getElementById("results");
const api = section.dataset.results;
const results = new Results(section, [{ api, name: "", trials: JSON.parse(section.dataset.trials) }]);
let last = Date.now();
let timer = null;
results.load();
document.addEventListener("fresh", () => {
  if (timer !== null) return;
  timer = setTimeout(() => {
    timer = null;
    last = Date.now();
    results.load();
  }, Math.max(0, SPACING_MS - (Date.now() - last)));
});

watchLogs(document.getElementById("logs"));
watchPictures(document.getElementById("samples"));
