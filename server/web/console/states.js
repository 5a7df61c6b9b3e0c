/** How a page says that something is on its way, or did not come. */

import { Refusal } from "./api.js";
import { h } from "./dom.js";

/** @param {string} what */
export function waiting(what) {
  return h("p", { class: "waiting-for" }, `${what}…`);
}

/** What went wrong, in words, with a way to try again where that can help. @param {unknown} error @param {() => void} [retry] */
export function failure(error, retry) {
  const isKnown = error instanceof Refusal;
  const node = h("div", { class: "failure" }, h("p", {}, isKnown ? error.message : "This page met an error."));
  if (isKnown && error.id) node.append(h("p", { class: "fine" }, "For whoever runs the server: ", h("code", {}, error.id)));
  const canHelp = !isKnown || error.status === 0 || error.status === 429 || error.status >= 500;
  if (retry && canHelp) node.append(h("button", { type: "button", class: "again", onclick: retry }, "Try again"));
  return node;
}
