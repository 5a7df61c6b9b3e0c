/**
 * Who looked at what, newest first, for admins. What is looked for is in the address.
 *
 * @typedef {{ number: number, audit_id: string, at_ms: number, actor_id: string, role: string, client_id: string, action: string,
 *   session_id: string | null, detail: Record<string, unknown>, hash?: string }} Entry
 */

import { address } from "./api.js";
import { h } from "./dom.js";
import { failure, waiting } from "./states.js";
import { count, said, when } from "./text.js";

const PAGE_SIZE = 100;
/** @type {Array<[string, string]>} */
const ACTIONS = [
  ["", "Anything"],
  ["session.view", "Viewed a session"],
  ["session.replay", "Replayed a session"],
  ["session.export", "Exported a session"],
  ["session.search", "Searched sessions"],
  ["feedback.list", "Listed feedback"],
  ["feedback.review", "Reviewed an answer"],
  ["note.create", "Wrote a note"],
  ["token.revoke", "Revoked a token"],
  ["overview.read", "Read the overview"],
  ["audit.read", "Read this log"],
];
const IN_WORDS = new Map(ACTIONS);

/** @param {import("./app.js").House} house @param {URL} url @returns {import("./app.js").Page} */
export function auditPage(house, url) {
  const abort = new AbortController();
  const query = { actor: url.searchParams.get("actor") ?? "", session_id: url.searchParams.get("session_id") ?? "", action: url.searchParams.get("action") ?? "" };
  const rows = h("tbody");
  const foot = h("div", { class: "results-foot" });
  const head = h("tr", {}, ...["When", "Who", "Did", "Session", "Details"].map((name) => h("th", { scope: "col" }, name)));
  const table = h("table", { class: "rows audit" }, h("caption", { class: "unseen" }, "Audit log, newest first"), h("thead", {}, head), rows);
  void fetchPage("");

  /** @param {string} after */
  async function fetchPage(after) {
    foot.replaceChildren(waiting(after ? "Looking further back" : "Reading the log"));
    try {
      const { data, next } = await house.api.get("/v1/audit", { ...query, limit: PAGE_SIZE, after }, abort.signal);
      rows.append(...data.map(row));
      const many = rows.children.length;
      const tally = h("p", { class: "tally" }, many === 0 ? "No entry is like this." : `${count(many, "entry", "entries")}${next ? " so far" : "; that is all"}.`);
      foot.replaceChildren(tally);
      if (next) foot.append(h("button", { type: "button", class: "again", onclick: () => void fetchOlder(next) }, "Older"));
      house.say(tally.textContent ?? "");
    } catch (error) {
      if (!abort.signal.aborted) foot.replaceChildren(failure(error, () => void fetchPage(after)));
    }
  }

  /** The button that had the focus is gone: it goes on at the first entry that came. @param {string} after */
  async function fetchOlder(after) {
    const numBefore = rows.children.length;
    await fetchPage(after);
    const first = rows.children[numBefore];
    first?.setAttribute("tabindex", "-1");
    const next = first ?? foot.querySelector("button");
    if (next instanceof HTMLElement) next.focus({ preventScroll: first === undefined });
  }

  const about = h("p", { class: "fine" }, "Every view, replay and export of another's session is here, before anything was shown. Entries are chained by hashes and never change.");
  const region = h("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "Audit log" }, table);
  const node = h("div", { class: "sheet" }, h("h1", { tabindex: -1 }, "Audit"), about, auditForm(query, house.go), region, foot);
  return { title: "Audit", node, leave: () => abort.abort() };
}

/** @param {{ actor: string, session_id: string, action: string }} query @param {(path: string) => void} go */
function auditForm({ actor, session_id: sessionId, action }, go) {
  const whose = h("input", { id: "audit-actor", value: actor, spellcheck: "false" });
  const which = h("input", { id: "audit-session", value: sessionId, spellcheck: "false" });
  const what = h("select", { id: "audit-action" }, ...ACTIONS.map(([value, label]) => h("option", { value, selected: value === action }, label)));
  /** @param {Event} event */
  function onsubmit(event) {
    event.preventDefault();
    go(address("/console/audit", { actor: whose.value.trim(), session_id: which.value.trim(), action: what.value }));
  }
  /** @param {string} id @param {string} label @param {HTMLElement} input */
  const field = (id, label, input) => h("div", { class: "field" }, h("label", { for: id }, label), input);
  return h(
    "form",
    { class: "range", role: "search", "aria-label": "Audit log", autocomplete: "off", onsubmit },
    h("div", { class: "fields" }, field("audit-actor", "Who", whose), field("audit-action", "Did", what), field("audit-session", "Session", which), h("button", { type: "submit", class: "again" }, "Show")),
  );
}

/** @param {Entry} entry */
function row({ at_ms: ms, actor_id: actor, role, action, session_id: sessionId, detail }) {
  const session = sessionId ? h("a", { href: `/console/sessions/${encodeURIComponent(sessionId)}` }, said(sessionId)) : "–";
  const facts = Object.entries(detail ?? {}).filter(([, value]) => value !== null);
  const details = facts.flatMap(([name, value], n) => [n > 0 ? ", " : "", said(name), " ", said(typeof value === "string" ? value : JSON.stringify(value))]);
  return h(
    "tr",
    {},
    h("td", {}, when(ms)),
    h("td", {}, said(actor), h("span", { class: "role" }, role)),
    h("td", { title: action }, IN_WORDS.get(action) ?? said(action)),
    h("td", {}, session),
    h("td", { class: "details" }, ...details),
  );
}
