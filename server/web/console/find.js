/**
 * The page that finds sessions. What is looked for is in the address, so that a search can be sent to someone; the results come newest
 * first, and older ones when asked for.
 *
 * @typedef {object} Summary
 * @property {string} session_id
 * @property {string} user_id
 * @property {string} client_id
 * @property {string} model
 * @property {string} status
 * @property {number} created_ms
 * @property {number} updated_ms
 * @property {number | null} ended_ms
 * @property {number} num_turns
 * @property {number} num_answers
 * @property {number} num_errors
 * @property {number} num_interruptions
 * @property {number} num_up
 * @property {number} num_down
 * @property {number | null} max_first_token_ms
 * @property {string | null} first_text
 * @property {string | null} snippet   where the text was found
 */

import { Refusal, address } from "./api.js";
import { h } from "./dom.js";
import { filterForm, filters, readFilters } from "./filters.js";
import { resultOf } from "./results.js";
import { count, when } from "./text.js";
import { failure, waiting } from "./states.js";

/** @typedef {import("./app.js").House} House */

const PAGE_SIZE = 50;

/** @param {House} house @param {URL} url @returns {import("./app.js").Page} */
export function findPage(house, url) {
  const search = new Search(house);
  const form = filterForm((values) => house.go(address("/console", values)));
  const node = h(
    "div",
    { class: "find" },
    h("h1", { tabindex: -1 }, "Sessions"),
    form.node,
    h("section", { class: "found", "aria-label": "Results" }, search.node),
  );

  /** @param {URL} to */
  function accept(to) {
    if (to.pathname !== "/console" && to.pathname !== "/console/sessions") return false;
    const values = readFilters(to.searchParams);
    form.fill(values);
    search.start(values);
    return true;
  }
  accept(url);
  return { title: "Sessions", node, accept, leave: () => search.stop() };
}

class Search {
  #house;
  /** @type {Record<string, string>} */ #values = {};
  #list = h("ol", { class: "results" });
  #foot = h("div", { class: "results-foot" });
  #abort = new AbortController();
  #numFound = 0;

  /** @param {House} house */
  constructor(house) {
    this.#house = house;
    this.node = h("div", {}, this.#list, this.#foot);
  }

  /** @param {Record<string, string>} values */
  start(values) {
    this.stop();
    this.#abort = new AbortController();
    this.#values = values;
    this.#numFound = 0;
    this.#list.replaceChildren();
    void this.#fetch("");
  }

  stop() {
    this.#abort.abort();
  }

  /** @param {string} after */
  async #fetch(after) {
    const { signal } = this.#abort;
    this.#foot.replaceChildren(waiting(after ? "Looking further back" : "Looking"));
    let answer;
    try {
      answer = await this.#house.api.get("/v1/sessions", { ...filters(this.#values), limit: PAGE_SIZE, after }, signal);
    } catch (error) {
      if (signal.aborted) return;
      this.#foot.replaceChildren(failure(error, () => void this.#fetch(after)));
      if (error instanceof Refusal) this.#house.say(error.message);
      return;
    }
    if (!signal.aborted) this.#show(answer);
  }

  /** @param {{ data: Summary[], next: string | null, searched_to_ms: number | null }} answer */
  #show({ data, next, searched_to_ms: searchedToMs }) {
    const rows = data.map((summary) => resultOf(summary, this.#values["text"] ?? ""));
    this.#numFound += rows.length;
    this.#list.append(...rows);
    const tally = this.#tally(next, searchedToMs);
    this.#foot.replaceChildren(tally);
    if (next) {
      const isPartial = searchedToMs !== null;
      const label = isPartial ? "Look further back" : "Older";
      this.#foot.append(h("button", { type: "button", class: "again", onclick: () => void this.#older(next) }, label));
    }
    this.#house.say(tally.textContent ?? "");
  }

  /** @param {string} after */
  async #older(after) {
    const numBefore = this.#list.children.length;
    await this.#fetch(after);
    const first = this.#list.children[numBefore]?.querySelector("a");
    (first ?? this.#foot.querySelector("button"))?.focus({ preventScroll: first === undefined });
  }

  /** How many there are, and whether that is all: never "none" for what was not looked at. @param {string | null} next @param {number | null} searchedToMs */
  #tally(next, searchedToMs) {
    const many = this.#numFound === 0 ? "No session" : count(this.#numFound, "session");
    if (next && searchedToMs !== null) return h("p", { class: "tally" }, `${many} so far. Looked back to `, when(searchedToMs), ".");
    if (next) return h("p", { class: "tally" }, `${many} so far, newest first.`);
    if (this.#numFound > 0) return h("p", { class: "tally" }, `${many}; that is all.`);
    const isNarrow = Object.keys(this.#values).length > 0;
    return h("p", { class: "tally nothing" }, isNarrow ? "No session is like this. Try fewer filters, or other words." : "There are no sessions yet.");
  }
}
