// Makes a part of the page like its newer version, and touches only what differs: focus, selected
// boxes, open details and scroll positions stay.

const KEPT = new Set(["open", "checked", "value"]);

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || null : null;
}

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
}

export function morph(from, to) {
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  if (from.hasAttribute("data-keep")) return;
  const holdsState = ["INPUT", "DETAILS", "TEXTAREA", "SELECT"].includes(from.nodeName);
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !(holdsState && KEPT.has(name))) from.removeAttribute(name);
  }
  for (const { name, value } of [...to.attributes]) {
    if (holdsState && KEPT.has(name)) continue;
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  morphChildren(from, to);
}

function morphChildren(from, to) {
  const keyed = new Map();
  for (const child of from.childNodes) {
    const key = keyOf(child);
    if (key) keyed.set(key, child);
  }
  let here = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const key = keyOf(wanted);
    let found = key ? keyed.get(key) : null;
    if (found && !alike(found, wanted)) found = null;
    if (!found && !key && here && alike(here, wanted)) found = here;
    if (found) {
      if (found === here) here = here.nextSibling;
      else from.insertBefore(found, here);
      morph(found, wanted);
    } else {
      from.insertBefore(document.importNode(wanted, true), here);
    }
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}
