/** Elements made of plain text: nothing that anyone wrote is ever read as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} tag @param {string} className @param {string} text */
export function element(tag, className, text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** @param {string} className @param {string} text */
export function textButton(className, text) {
  const button = /** @type {HTMLButtonElement} */ (element("button", className, text));
  button.type = "button";
  return button;
}

/** One outline in a square of 24. @param {string} path */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const outline = document.createElementNS(SVG, "path");
  outline.setAttribute("d", path);
  svg.append(outline);
  return svg;
}
