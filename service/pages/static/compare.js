// Two experiments in one plot.

import { Results } from "./results.js";
import { watchTimes } from "./times.js";

watchTimes();
const section = document.getElementById("results");
if (section) {
  const sides = [...section.querySelectorAll("[data-side]")].map(({ dataset }) => ({
    api: dataset.side, name: dataset.name, trials: JSON.parse(dataset.trials),
  }));
  new Results(section, sides).load();
}
