/** Elements made by calls: the only way anything gets onto a page of the console. Strings become text nodes, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {string | number | boolean | null | undefined | ((event: any) => void)} Attribute
 *   true: present without a value; false, null, undefined: absent; a function: listens to the event named after `on` */

/** @param {Element} node @param {Record<string, Attribute>} attributes @param {Child[]} children */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null && child !== undefined && child !== false) node.append(typeof child === "number" ? String(child) : child);
}

/**
 * An HTML element: `h("p", { class: "fine" }, "text", h("b", {}, "more"))`.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Record<string, Attribute>} attributes @param {...Child} children
 */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  fill(node, attributes, children);
  return node;
}

/**
 * The same for SVG.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag @param {Record<string, Attribute>} attributes @param {...Child} children
 */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  fill(node, attributes, children);
  return node;
}

/** A symbol of 24 × 24 for eyes only; what it means is said beside it or by its button's label. @param {string} d @param {string} className */
export function icon(d, className = "icon") {
  return svg("svg", { viewBox: "0 0 24 24", class: className, "aria-hidden": "true" }, svg("path", { d }));
}

/** @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
export function find(id, kind) {
  const node = document.getElementById(id);
  if (!(node instanceof kind)) throw new TypeError(`#${id} is missing from the page`);
  return node;
}

/** Makes `nodes` the children of `parent`. Those that stay are not touched: what is moved loses the focus. @param {Element} parent @param {Node[]} nodes */
export function arrange(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  let next = parent.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
}

/** Places a box by a custom property, which a strict style policy allows. @param {HTMLElement | SVGElement} node @param {string} name @param {string} value */
export function place(node, name, value) {
  node.style.setProperty(name, value);
}
