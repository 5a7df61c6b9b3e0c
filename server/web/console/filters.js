/**
 * What one can look for, as a form, as part of an address, and as the API's query. In the address a day is a day of whoever reads it and a
 * duration is in milliseconds; only what is set is there.
 */

import { h } from "./dom.js";

/** @typedef {Record<string, string>} Values */
/** @typedef {{ name: string, label: string, type: "text" | "search" | "date" | "number" | "select" | "check", hint?: string, options?: Array<[string, string]> }} Field */

const DAY = /^\d{4}-\d{2}-\d{2}$/;

/** @type {Field[]} */
const FIELDS = [
  { name: "text", label: "Words said", type: "search", hint: "By the user or the answer" },
  { name: "user", label: "User", type: "text" },
  { name: "client", label: "Digital human", type: "text" },
  { name: "model", label: "Model", type: "text" },
  { name: "from", label: "From", type: "date" },
  { name: "to", label: "To", type: "date" },
  { name: "rating", label: "Rating", type: "select", options: [["", "Any"], ["down", "Thumbs down"], ["up", "Thumbs up"], ["none", "Not rated"]] },
  { name: "status", label: "Status", type: "select", options: [["", "Any"], ["active", "In conversation"], ["idle", "Waiting for the user"], ["ended", "Ended"]] },
  { name: "min_first_token_ms", label: "First token over (ms)", type: "number" },
  { name: "has_errors", label: "With errors", type: "check" },
  { name: "has_interruptions", label: "With interruptions", type: "check" },
];

/** Midnight of a day here, `plus` days later, in milliseconds since the epoch. @param {string} day @param {number} plus */
export function midnight(day, plus = 0) {
  const [year = 0, month = 1, date = 1] = day.split("-").map(Number);
  return new Date(year, month - 1, date + plus).getTime();
}

/** A day here as an address has it. @param {Date} at */
export function dayOf(at) {
  return `${at.getFullYear()}-${String(at.getMonth() + 1).padStart(2, "0")}-${String(at.getDate()).padStart(2, "0")}`;
}

/** What an address looks for; what it has no business with is left out. @param {URLSearchParams} query @returns {Values} */
export function readFilters(query) {
  /** @type {Values} */ const values = {};
  for (const { name, type } of FIELDS) {
    const value = query.get(name)?.trim();
    if (value && (type !== "date" || DAY.test(value)) && (type !== "number" || /^\d+$/.test(value))) values[name] = value;
  }
  return values;
}

/** The same for the API. @param {Values} values @returns {Record<string, string | number>} */
export function filters({ from, to, ...rest }) {
  return { ...rest, ...(from ? { from_ms: midnight(from) } : {}), ...(to ? { to_ms: midnight(to, 1) } : {}) };
}

/** @param {(values: Values) => void} onSearch */
export function filterForm(onSearch) {
  const inputs = new Map(FIELDS.map((field) => [field.name, inputOf(field)]));
  const [words, ...others] = FIELDS.map((field) => labelled(field, inputs.get(field.name)));
  const more = h("details", { class: "more-filters", open: matchMedia("(min-width: 56rem)").matches }, h("summary", {}, "Filters"), h("div", { class: "fields" }, ...others));
  const clear = h("button", { type: "button", class: "quiet", onclick: () => onSearch({}) }, "Clear all");
  const node = h(
    "form",
    { class: "filters", role: "search", "aria-label": "Sessions", autocomplete: "off", onsubmit },
    h("div", { class: "ask" }, words, h("button", { type: "submit", class: "primary" }, "Search")),
    more,
    clear,
  );

  /** @param {Event} event */
  function onsubmit(event) {
    event.preventDefault();
    const values = new URLSearchParams();
    for (const [name, input] of inputs) values.set(name, valueOf(input));
    onSearch(readFilters(values));
  }

  /** @param {Values} values */
  function fill(values) {
    for (const [name, input] of inputs) {
      if (input instanceof HTMLInputElement && input.type === "checkbox") input.checked = values[name] === "true";
      else input.value = values[name] ?? "";
    }
    const numSet = Object.keys(values).filter((name) => name !== "text").length;
    clear.hidden = Object.keys(values).length === 0;
    more.open ||= numSet > 0;
    const summary = more.querySelector("summary");
    if (summary) summary.textContent = numSet > 0 ? `Filters (${numSet} set)` : "Filters";
  }

  return { node, fill };
}

/** @param {Field} field */
function inputOf({ name, type, options }) {
  const id = `filter-${name}`;
  if (type === "select") return h("select", { id, name }, ...(options ?? []).map(([value, label]) => h("option", { value }, label)));
  if (type === "check") return h("input", { id, name, type: "checkbox", value: "true" });
  const extra = type === "number" ? { inputmode: "numeric", pattern: "[0-9]*", type: "text" } : { type };
  return h("input", { id, name, spellcheck: "false", ...extra });
}

/** @param {Field} field @param {HTMLElement | undefined} input */
function labelled({ name, label, type, hint }, input) {
  if (type === "check") return h("label", { class: "check", for: `filter-${name}` }, input, label);
  if (hint) input?.setAttribute("placeholder", hint);
  return h("div", { class: `field field-${type}` }, h("label", { for: `filter-${name}` }, label), input);
}

/** @param {HTMLInputElement | HTMLSelectElement} input */
function valueOf(input) {
  if (input instanceof HTMLInputElement && input.type === "checkbox") return input.checked ? "true" : "";
  return input.value;
}
