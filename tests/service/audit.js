// What keeps people out, as sentences: names, labels, headings, landmarks, tables, contrast.
(() => {
  const found = [];
  const say = (text, node) => found.push(node ? `${text}: ${node.outerHTML.slice(0, 140)}` : text);
  const seen = (node) => {
    if (node.closest("[hidden], .visually-hidden")) return false;
    const box = node.getBoundingClientRect();
    const style = getComputedStyle(node);
    return box.width > 1 && box.height > 1 && style.visibility === "visible" && style.display !== "none";
  };
  const label = (node) => {
    const by = node.getAttribute("aria-labelledby");
    if (by) return by.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" ").trim();
    return (node.getAttribute("aria-label") ?? "").trim();
  };
  const name = (node) => label(node) || node.textContent.trim() || node.getAttribute("title")
    || node.querySelector("img[alt]")?.alt;

  if (!document.documentElement.lang) say("the page has no language");
  if (!document.title.trim()) say("the page has no title");
  if (document.querySelectorAll("main").length !== 1) say("there is not one main landmark");
  if (document.querySelectorAll("h1").length !== 1) say("there is not one h1");
  document.querySelectorAll("nav").forEach((node) => { if (!node.getAttribute("aria-label")) say("a nav without a name", node); });

  let level = 0;
  for (const heading of document.querySelectorAll("main :is(h1, h2, h3, h4)")) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) say(`a heading of level ${now} after ${level}`, heading);
    level = now;
  }

  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  ids.filter((id, n) => ids.indexOf(id) !== n).forEach((id) => say(`the id ${id} stands twice`));
  for (const attribute of ["aria-labelledby", "aria-describedby", "for", "list"]) {
    for (const node of document.querySelectorAll(`[${attribute}]`)) {
      for (const id of node.getAttribute(attribute).split(/\s+/)) {
        if (!document.getElementById(id)) say(`${attribute} names nothing`, node);
      }
    }
  }

  document.querySelectorAll("a[href], button, summary").forEach((node) => { if (!name(node)) say("no name", node); });
  document.querySelectorAll("input:not([type=hidden]), select, textarea").forEach((node) => {
    if (!label(node) && ![...node.labels].some((one) => one.textContent.trim())) say("no label", node);
  });
  document.querySelectorAll("img").forEach((node) => { if (!node.hasAttribute("alt")) say("no alt", node); });
  document.querySelectorAll("canvas, svg[role=img], [role=img], progress, [role=region], [role=group], [role=log], [role=search], dialog").forEach((node) => {
    if (!label(node)) say("no name", node);
  });
  document.querySelectorAll("svg:not([role]):not([aria-hidden])").forEach((node) => say("a drawing that is neither named nor hidden", node));
  document.querySelectorAll("[tabindex]").forEach((node) => { if (node.tabIndex > 0) say("a place in the tab order", node); });
  document.querySelectorAll("[role=button], [onclick], div[data-post], span[data-post]").forEach((node) => say("no real button", node));

  for (const table of document.querySelectorAll("table")) {
    if (!table.caption?.textContent && !label(table)) say("a table without a caption", table);
    if (!table.querySelector("thead th[scope=col]")) say("a table without column headers", table);
    for (const row of table.tBodies[0].rows) {
      if (!row.querySelector("th[scope=row]")) say("a row without a header", row);
    }
  }
  for (const box of document.querySelectorAll("main *")) {
    const style = getComputedStyle(box);
    const scrolls = (/auto|scroll/.test(style.overflowX) && box.scrollWidth > box.clientWidth + 1)
      || (/auto|scroll/.test(style.overflowY) && box.scrollHeight > box.clientHeight + 1);
    const within = box.querySelector("a, button, input, [tabindex='0']");
    if (scrolls && box.tabIndex < 0 && !within) say("scrolls, and no key reaches it", box);
  }

  for (const cell of document.querySelectorAll("td, th")) {
    const text = cell.innerText.trim();
    if (!text || !seen(cell) || cell.querySelector(".visually-hidden")) continue;
    // Heads of tables that are cards here: for screen readers only.
    if (getComputedStyle(cell.closest("thead, tbody")).clipPath !== "none") continue;
    if (cell.scrollWidth > cell.clientWidth + 1) say("a text runs out of its cell", cell);
    const style = getComputedStyle(cell);
    const room = cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const longest = Math.max(...text.split(/\s+/).map((word) => word.length));
    if (room < Math.min(5, longest) * 6) say("a cell too narrow for its text", cell);
  }

  // Contrast (WCAG 2.2): 4.5, or 3 for large text.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const colour = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return { r, g, b, a: a / 255 };
  };
  const ground = (node) => {
    for (let here = node; here; here = here.parentElement) {
      const own = colour(getComputedStyle(here).backgroundColor);
      if (own.a > 0.99) return own;
    }
    return colour("white");
  };
  const light = ({ r, g, b }) => {
    const part = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ratio = (a, b) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const judged = new Set();
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || judged.has(node) || !seen(node)) continue;
    judged.add(node);
    if (node.closest(":disabled, option, datalist, script, noscript")) continue;
    const style = getComputedStyle(node);
    const inSvg = node.closest("svg");
    const own = ratio(colour(inSvg ? style.fill : style.color), ground(inSvg ? inSvg.parentElement : node));
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (own < (large ? 3 : 4.5)) say(`contrast ${own.toFixed(2)}`, node);
  }
  // Lines and dots of plots: 3 against the ground.
  for (const node of document.querySelectorAll(".plot .curve, .plot .dot:not(.seed):not(.hollow)")) {
    const style = getComputedStyle(node);
    const own = ratio(colour(node.matches(".curve") ? style.stroke : style.fill), ground(node.closest(".plot")));
    if (own < 3) say(`contrast of a plot ${own.toFixed(2)}`, node);
  }

  // Targets (WCAG 2.2, 2.5.8): 24 px, unless they are links within a text.
  document.querySelectorAll("button, input, select, summary, nav a").forEach((node) => {
    const box = node.getBoundingClientRect();
    if (seen(node) && (box.height < 24 || box.width < 24) && node.type !== "checkbox") say("too small to hit", node);
  });
  if (!document.querySelector("a.skip[href='#main']")) say("no skip link");
  return found;
})();
