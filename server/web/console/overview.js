/** Not there yet. */

import { h } from "./dom.js";

/** @param {import("./app.js").House} _house @param {...unknown} _rest @returns {import("./app.js").Page} */
export function overviewPage(_house, ..._rest) {
  return { title: "", node: h("div") };
}
