// Plots as SVG: curves over epochs, and points of quality against cost. Text keeps its size at any
// width; what lies nearest to the pointer is named below the plot.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 240;
const EDGE = { left: 46, right: 14, top: 10, bottom: 30 };

export function element(name, attributes = {}, children = []) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function steps(low, high, most, tight = false) {
  if (!(high > low)) {
    const spread = Math.abs(low) * 0.1 || 0.5;
    [low, high] = [low - spread, high + spread];
  }
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw - 1e-12);
  const begin = Math.floor(low / step + 1e-9) * step;
  const end = Math.ceil(high / step - 1e-9) * step;
  const values = [];
  for (let n = 0; begin + n * step <= end + step / 2; n += 1) values.push(begin + n * step);
  let digits = 0;
  while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits += 1;
  if (!tight) return { begin, end, values, digits };
  return { begin: low, end: high, values: values.filter((v) => v >= low && v <= high), digits };
}

function padded(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * 0.08;
  return [low - room, high + room];
}

/** The frame with axes; returns the SVG and functions from values to places. */
function frame(figure, { title, xLabel, xs, ys, wholeX }) {
  const below = EDGE.bottom;
  const width = Math.max(240, figure.clientWidth);
  const svg = element("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": title,
  });
  const across = steps(Math.min(...xs), Math.max(...xs), Math.max(3, Math.floor(width / 90)), true);
  const up = steps(Math.min(...ys), Math.max(...ys), 5);
  const x = (v) => EDGE.left + ((v - across.begin) / (across.end - across.begin)) * (width - EDGE.left - EDGE.right);
  const y = (v) => HEIGHT - below - ((v - up.begin) / (up.end - up.begin)) * (HEIGHT - below - EDGE.top);
  for (const value of up.values) {
    svg.append(
      element("line", { class: "tick", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
      element("text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, [value.toFixed(up.digits)]),
    );
  }
  for (const value of across.values) {
    if (wholeX && !Number.isInteger(Number(value.toFixed(6)))) continue;
    svg.append(element("text", { x: x(value), y: HEIGHT - below + 16, "text-anchor": "middle" }, [value.toFixed(wholeX ? 0 : across.digits)]));
  }
  svg.append(
    element("line", { class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: HEIGHT - below, y2: HEIGHT - below }),
    element("text", { x: width - EDGE.right, y: HEIGHT - 1, "text-anchor": "end" }, [xLabel]),
  );
  return { svg, x, y, width };
}

/** Names the nearest point below the plot, and rings it. */
function watch(svg, points, readout) {
  const ring = element("circle", { class: "near", r: 6, visibility: "hidden" });
  svg.append(ring);
  const leave = () => {
    ring.setAttribute("visibility", "hidden");
    readout.textContent = "";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = null;
    for (const point of points) {
      const far = (point.x - px) ** 2 + (point.y - py) ** 2;
      if (!best || far < best.far) best = { ...point, far };
    }
    if (!best || best.far > 60 ** 2) return leave();
    ring.setAttribute("cx", best.x);
    ring.setAttribute("cy", best.y);
    ring.setAttribute("visibility", "visible");
    readout.textContent = best.text;
  });
  svg.addEventListener("pointerleave", leave);
}

function place(figure, svg) {
  figure.querySelector(".plot").replaceChildren(svg);
}

export function empty(figure, text) {
  const note = document.createElement("p");
  note.className = "empty";
  note.textContent = text;
  figure.querySelector(".plot").replaceChildren(note);
}

/**
 * Curves.
 *
 * series: [{name, slot, dash, points: [[epoch, value]]}]
 */
export function drawCurves(figure, { title, series }) {
  const all = series.flatMap((one) => one.points);
  if (!all.length) return empty(figure, "No numbers yet.");
  const { svg, x, y } = frame(figure.querySelector(".plot"), {
    title: `${title}: ${series.length} curves; their last values are in the table below`,
    xLabel: "epoch", wholeX: true,
    xs: [0, ...all.map((p) => p[0])], ys: all.map((p) => p[1]),
  });
  const near = [];
  for (const one of series) {
    const places = one.points.map(([epoch, value]) => [x(epoch), y(value)]);
    const group = element("g", { class: `series-${one.slot}` });
    if (places.length > 1) {
      group.append(element("polyline", {
        class: `curve dash-${one.dash}`, points: places.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" "),
      }));
    }
    const last = places.at(-1);
    group.append(element("circle", { class: "dot", cx: last[0], cy: last[1], r: 3 }));
    svg.append(group);
    one.points.forEach(([epoch, value], n) => near.push({
      x: places[n][0], y: places[n][1], text: `${one.name}, epoch ${epoch}: ${value.toPrecision(4)}`,
    }));
  }
  watch(svg, near, figure.querySelector(".readout"));
  place(figure, svg);
}

function front(cells, qualityUp, costDown) {
  const order = [...cells].sort((a, b) => (costDown ? a.x - b.x : b.x - a.x) || (qualityUp ? b.y - a.y : a.y - b.y));
  const kept = [];
  for (const cell of order) {
    const best = kept.at(-1);
    if (!best || (qualityUp ? cell.y > best.y : cell.y < best.y)) kept.push(cell);
  }
  return kept;
}

/**
 * Points of quality against cost: seeds small, the mean of each cell large and named, the cells
 * that no other beats in both joined by a line.
 *
 * cells: [{name, label, slot, hollow, x, y, seeds: [[x, y]]}]
 */
export function drawFront(figure, { title, cells, xLabel, qualityUp, costDown }) {
  if (!cells.length) return empty(figure, "No cell has both numbers yet.");
  const points = cells.flatMap((cell) => [[cell.x, cell.y], ...cell.seeds]);
  const { svg, x, y, width } = frame(figure.querySelector(".plot"), {
    title: `${title}: ${cells.length} cells; their values are in the table below`,
    xLabel, xs: padded(points.map((p) => p[0])), ys: padded(points.map((p) => p[1])),
  });
  const line = front(cells, qualityUp, costDown);
  if (line.length > 1) {
    svg.append(element("polyline", {
      class: "front", points: line.map((cell) => `${x(cell.x).toFixed(1)},${y(cell.y).toFixed(1)}`).join(" "),
    }));
  }
  const near = [];
  for (const cell of cells) {
    const group = element("g", { class: `series-${cell.slot}` });
    for (const [cost, quality] of cell.seeds) {
      group.append(element("circle", { class: "dot seed", cx: x(cost), cy: y(quality), r: 2.5 }));
    }
    group.append(element("circle", { class: `dot${cell.hollow ? " hollow" : ""}`, cx: x(cell.x), cy: y(cell.y), r: 5 }));
    if (cell.label && cells.length <= 10) {
      const right = x(cell.x) > width * 0.62;
      const short = cell.label.length > 26 ? `${cell.label.slice(0, 25)}…` : cell.label;
      group.append(element("text", {
        class: "name-of", x: x(cell.x) + (right ? -9 : 9), y: y(cell.y) + 13,
        "text-anchor": right ? "end" : "start",
      }, [short]));
    }
    svg.append(group);
    near.push({
      x: x(cell.x), y: y(cell.y),
      text: `${cell.name}: ${cell.y.toPrecision(3)} at ${cell.x.toPrecision(3)}${line.includes(cell) ? ", on the front" : ""}`,
    });
  }
  watch(svg, near, figure.querySelector(".readout"));
  place(figure, svg);
}

/** The sign of a series in a legend. */
export function swatch(slot, dash) {
  return element("svg", { viewBox: "0 0 26 12", "aria-hidden": "true", class: `series-${slot}` }, [
    element("line", { class: `curve dash-${dash}`, x1: 1, x2: 25, y1: 6, y2: 6 }),
    element("circle", { class: "dot", cx: 13, cy: 6, r: 3.5 }),
  ]);
}
