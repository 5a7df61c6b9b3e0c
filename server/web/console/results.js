/** One found session as a row: what was said, by whom, and what is worth a look. */

import { h } from "./dom.js";
import { count, duration, found, said, shortly } from "./text.js";
import { badge, thumbs } from "./signs.js";

/** @typedef {import("./find.js").Summary} Summary */

const SLOW_MS = 1000;
const LONGEST_EXCERPT = 220;

/** @param {Summary} summary @param {string} text what was looked for */
export function resultOf(summary, text) {
  const { session_id: id, user_id: user, client_id: client, model, created_ms: createdMs } = summary;
  const excerpt = (summary.snippet ?? summary.first_text ?? "").slice(0, LONGEST_EXCERPT);
  const title = excerpt ? found(excerpt, text) : h("span", { class: "silent" }, "Nothing was said");
  return h(
    "li",
    {},
    h("p", { class: "result-said" }, h("a", { href: `/console/sessions/${encodeURIComponent(id)}` }, title)),
    h("p", { class: "result-who" }, shortly(createdMs), " · ", said(user), " with ", said(client), " · ", said(model)),
    h("ul", { class: "signs" }, ...signsOf(summary).map((sign) => h("li", {}, sign))),
  );
}

/** @param {Summary} summary @returns {HTMLElement[]} */
function signsOf({ status, num_turns, num_errors, num_interruptions, num_up, num_down, max_first_token_ms }) {
  const signs = [badge(count(num_turns, "turn"), "plain")];
  if (status !== "ended") signs.unshift(badge(status === "active" ? "Live" : "Waiting", "live"));
  if (num_up > 0) signs.push(thumbs("up", num_up));
  if (num_down > 0) signs.push(thumbs("down", num_down));
  if (max_first_token_ms !== null) signs.push(badge(`first token ${duration(max_first_token_ms)}`, max_first_token_ms >= SLOW_MS ? "slow" : "plain"));
  if (num_errors > 0) signs.push(badge(count(num_errors, "error"), "bad"));
  if (num_interruptions > 0) signs.push(badge(count(num_interruptions, "interruption"), "busy"));
  return signs;
}
