// Curves, front and values of one experiment or of two, from the numbers that MLflow has.

import { ask } from "./api.js";
import { drawCurves, drawFront, swatch } from "./chart.js";
import { significant } from "./numbers.js";

const LOSS = "loss/total";
const SLOTS = 8;

const COLUMNS = [
  ["coco/AP50", "AP50"], ["tokens/kept_share", "tokens kept"],
  ["tokens/foreground_recall", "foreground recall"], ["cost/gflops", "GFLOPs"],
  ["cost/encoder_gflops", "encoder GFLOPs"], ["cost/latency_ms", "latency, ms"],
  ["cost/params", "parameters"],
];

/** A result section: sides are [{api, name, trials: {id: {cell, seed}}}]. */
export class Results {
  constructor(section, sides) {
    this.section = section;
    this.sides = sides;
    this.quality = section.dataset.quality;
    this.cost = section.dataset.cost;
    this.directions = JSON.parse(section.dataset.directions);
    this.hidden = new Set();
    this.cells = [...new Set(sides.flatMap((side) => Object.values(side.trials).map((t) => t.cell)))];
    this.drawn = "";
    this.legend();
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 1) return;
      width = entry.contentRect.width;
      this.draw();
    }).observe(section.querySelector(".charts"));
  }

  async load() {
    const names = [this.quality, this.cost, LOSS, "coco/AP", ...COLUMNS.map(([name]) => name)];
    const query = [...new Set(names)].map((name) => `metric=${encodeURIComponent(name)}`).join("&");
    try {
      const found = await Promise.all(this.sides.map((side) => ask(`${side.api}/curves?${query}`)));
      const text = JSON.stringify(found);
      if (text === this.drawn) return;
      this.drawn = text;
      found.forEach(({ items }, n) => { this.sides[n].curves = items; });
      if (this.trials().length) this.section.removeAttribute("data-blank");
      this.draw();
      this.table();
    } catch (error) {
      if (!this.drawn) this.note(error.message);
    }
  }

  slot(cell) {
    return this.cells.indexOf(cell) % SLOTS;
  }

  dash(cell, side) {
    return this.sides.length > 1 ? side : Math.floor(this.cells.indexOf(cell) / SLOTS) % 4;
  }

  legend() {
    const place = this.section.querySelector(".legend");
    place.replaceChildren(...this.cells.map((cell) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(swatch(this.slot(cell), this.dash(cell, 0)), cell);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(cell)) this.hidden.add(cell);
        button.setAttribute("aria-pressed", String(!this.hidden.has(cell)));
        this.draw();
      });
      return button;
    }));
  }

  /** Trials that have numbers: [{side, cell, seed, curves}]. */
  trials() {
    return this.sides.flatMap((side, number) => Object.entries(side.curves || {}).flatMap(
      ([id, curves]) => (side.trials[id] ? [{ side: number, ...side.trials[id], curves }] : []),
    ));
  }

  draw() {
    if (!this.drawn) return;
    const trials = this.trials().filter((trial) => !this.hidden.has(trial.cell));
    for (const [chart, metric, title] of [["quality", this.quality, this.quality], ["loss", LOSS, "loss"]]) {
      drawCurves(this.chart(chart), {
        title: `${title} over epochs`,
        series: trials.filter((trial) => trial.curves[metric]?.length).map((trial) => ({
          name: this.nameOf(trial), slot: this.slot(trial.cell), dash: this.dash(trial.cell, trial.side),
          points: trial.curves[metric],
        })),
      });
    }
    const cells = this.means().filter((mean) => !this.hidden.has(mean.cell) && mean.points.length);
    drawFront(this.chart("front"), {
      title: `${this.quality} against ${this.cost}`,
      xLabel: this.cost,
      qualityUp: this.directions[this.quality] !== "min",
      costDown: this.directions[this.cost] !== "max",
      cells: cells.map((mean) => ({
        name: this.sides.length > 1 ? `${this.sides[mean.side].name}, ${mean.cell}` : mean.cell,
        label: mean.side === 0 || !cells.some((m) => m.side === 0 && m.cell === mean.cell) ? mean.cell : "",
        slot: this.slot(mean.cell), hollow: mean.side === 1,
        x: average(mean.points.map((p) => p[0])), y: average(mean.points.map((p) => p[1])),
        seeds: mean.points.length > 1 ? mean.points : [],
      })),
    });
  }

  chart(name) {
    return this.section.querySelector(`[data-chart="${name}"]`);
  }

  nameOf(trial) {
    const side = this.sides.length > 1 ? `${this.sides[trial.side].name}, ` : "";
    return `${side}${trial.cell}, seed ${trial.seed}`;
  }

  /** By cell and side: last values by metric, and points of cost and quality. */
  means() {
    const found = new Map();
    for (const trial of this.trials()) {
      const key = `${trial.side} ${trial.cell}`;
      if (!found.has(key)) found.set(key, { side: trial.side, cell: trial.cell, values: {}, points: [], seeds: 0 });
      const mean = found.get(key);
      mean.seeds += 1;
      for (const [name, points] of Object.entries(trial.curves)) {
        if (points.length) (mean.values[name] ||= []).push(points.at(-1)[1]);
      }
      const [cost, quality] = [this.cost, this.quality].map((name) => trial.curves[name]?.at(-1)?.[1]);
      if (cost !== undefined && quality !== undefined) mean.points.push([cost, quality]);
    }
    return [...found.values()].sort((a, b) => this.cells.indexOf(a.cell) - this.cells.indexOf(b.cell) || a.side - b.side);
  }

  table() {
    const means = this.means();
    if (!means.length) return this.note("No numbers yet.");
    const [head, rows] = this.sides.length > 1 ? this.sideBySide(means) : this.byCell(means);
    const table = document.createElement("table");
    table.className = "grid";
    const caption = table.createCaption();
    caption.className = "visually-hidden";
    caption.textContent = "Means over seeds of the last values, by cell";
    const top = table.createTHead().insertRow();
    head.forEach((text, n) => top.append(cellOf("th", text, n > 0, "col")));
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      row.forEach((text, n) => line.append(cellOf(n ? "td" : "th", text, n > 0, n ? null : "row")));
    }
    this.section.querySelector(".values").replaceChildren(table);
  }

  byCell(means) {
    const columns = [[this.quality, this.quality.replace("coco/", "")], ...COLUMNS]
      .filter(([name], n, all) => all.findIndex((other) => other[0] === name) === n)
      .filter(([name]) => means.some((mean) => mean.values[name]));
    return [
      ["Cell", "seeds", ...columns.map((column) => column[1])],
      means.map((mean) => [
        mean.cell, String(mean.seeds),
        ...columns.map(([name]) => shown(name, mean.values[name], name === this.quality)),
      ]),
    ];
  }

  sideBySide(means) {
    const of = (cell, side, name) => means.find((m) => m.cell === cell && m.side === side)?.values[name];
    const quality = this.quality.replace("coco/", "");
    const [a, b] = this.sides.map((side) => side.name);
    return [
      ["Cell", `${quality}: ${a}`, `${quality}: ${b}`, "difference", `${this.cost}: ${a}`, `${this.cost}: ${b}`],
      this.cells.map((cell) => {
        const [left, right] = [of(cell, 0, this.quality), of(cell, 1, this.quality)];
        const difference = left && right ? average(right) - average(left) : null;
        return [
          cell, shown(this.quality, left, true), shown(this.quality, right, true),
          difference === null ? "–" : `${difference < 0 ? "−" : "+"}${Math.abs(difference).toFixed(3)}`,
          shown(this.cost, of(cell, 0, this.cost)), shown(this.cost, of(cell, 1, this.cost)),
        ];
      }),
    ];
  }

  note(text) {
    const note = document.createElement("p");
    note.className = "empty";
    note.textContent = text;
    this.section.querySelector(".values").replaceChildren(note);
  }
}

function average(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The mean; with the spread the least and the most of the seeds. */
function shown(name, values, spread = false) {
  if (!values?.length) return "–";
  // Shares and AP lie between 0 and 1: decimals are aligned. Costs are of any size.
  const text = (value) => (/^(coco|tokens)\//.test(name) ? value.toFixed(3) : significant(value));
  if (!spread || values.length < 2) return text(average(values));
  return `${text(average(values))} (${text(Math.min(...values))} to ${text(Math.max(...values))})`;
}

function cellOf(kind, text, number, scope) {
  const cell = document.createElement(kind);
  cell.textContent = text;
  if (number) cell.className = "number";
  if (scope) cell.scope = scope;
  return cell;
}
