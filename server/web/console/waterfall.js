/**
 * Where an answer's time went: a table whose bars are a waterfall, so that what is seen and what is read aloud are the same. The parts sum
 * to the whole.
 *
 * @typedef {"queue" | "prefill" | "first_token" | "decode" | "delivery" | "heard"} PartName
 * @typedef {{ part: PartName, start_ms: number, duration_ms: number }} Part
 */

import { h, place } from "./dom.js";
import { duration } from "./text.js";

/** @type {Record<PartName, [name: string, meaning: string]>} */
const NAMES = {
  queue: ["Queue", "waiting for the engine"],
  prefill: ["Prefill", "the engine reads the prompt"],
  first_token: ["First token", "from the engine to the journal"],
  decode: ["Decode", "token by token"],
  delivery: ["Delivery", "until the answer was over"],
  heard: ["Heard", "until the listener had it"],
};

/** @param {Part[]} parts */
export function waterfall(parts) {
  if (parts.length === 0) return h("p", { class: "fine" }, "Nothing is known of where the time went.");
  const wholeMs = parts.reduce((sum, part) => sum + part.duration_ms, 0);
  const head = h("tr", {}, h("th", { scope: "col" }, "Part"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "When")), h("th", { scope: "col", class: "amount" }, "Took"), h("th", { scope: "col", class: "amount" }, "Share"));
  const rows = parts.map((part) => row(part, wholeMs));
  const foot = h("tr", {}, h("th", { scope: "row" }, "Whole"), h("td"), h("td", { class: "amount" }, duration(wholeMs)), h("td", { class: "amount" }, "100 %"));
  const columns = ["name", "when", "took", "share"].map((name) => h("col", { class: `column-${name}` }));
  return h("table", { class: "waterfall" }, h("caption", {}, "Where the time went"), h("colgroup", {}, ...columns), h("thead", {}, head), h("tbody", {}, ...rows), h("tfoot", {}, foot));
}

/** @param {Part} part @param {number} wholeMs */
function row({ part, start_ms: startMs, duration_ms: durationMs }, wholeMs) {
  const [name, meaning] = NAMES[part] ?? [part, ""];
  const bar = h("span", { class: `part part-${part}` });
  const share = wholeMs > 0 ? durationMs / wholeMs : 0;
  place(bar, "--from", String(wholeMs > 0 ? startMs / wholeMs : 0));
  place(bar, "--share", String(share));
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name, h("span", { class: "meaning" }, meaning)),
    h("td", { class: "lane" }, bar, h("span", { class: "unseen" }, `from ${duration(startMs)}`)),
    h("td", { class: "amount" }, duration(durationMs)),
    h("td", { class: "amount" }, share > 0 && share < 0.01 ? "< 1 %" : `${Math.round(share * 100)} %`),
  );
}
