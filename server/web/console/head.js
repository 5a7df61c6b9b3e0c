/**
 * The head of a session's page: whose session it was, whether all of it is there, and its export.
 *
 * @import { Detail } from "./session.js"
 * @import { House } from "./app.js"
 */

import { Refusal, address } from "./api.js";
import { h, icon } from "./dom.js";
import { extentOf, holeInWords } from "./moments.js";
import { SHAPES, badge } from "./signs.js";
import { count, duration, said, when } from "./text.js";

// The last line of an export is short.
const END_BYTES = 4096;

export class Head {
  #house;
  #sessionId;
  #facts = h("p", { class: "session-facts" });
  #live = badge("Live", "live");
  #told = h("span", { class: "fine", role: "status" });
  #warnings = h("div", { class: "session-warnings" });

  /** @param {Detail} detail @param {House} house */
  constructor(detail, house) {
    const { session_id: id, user_id: user } = detail.session;
    this.#house = house;
    this.#sessionId = id;
    const button = h("button", { type: "button", class: "quiet", onclick: () => void this.#export() }, "Export as JSON lines");
    const exporting = h("span", { class: "export" }, button, this.#told);
    const tools = h("p", { class: "session-tools" }, this.#live, h("code", {}, said(id)), exporting, h("a", { href: address("/console", { user }) }, "More of this user"));
    this.node = h("div", { class: "session-head" }, this.#facts, tools, this.#warnings);
    this.show(detail);
  }

  /** What is known by now. @param {Detail} detail */
  show(detail) {
    const { user_id: user, client_id: client, model, created_ms: createdMs } = detail.session;
    const extent = extentOf(detail);
    const length = `${duration(extent.last_ms - extent.first_ms)} · ${count(extent.num_events, "event")}`;
    this.#facts.replaceChildren(when(createdMs), " · ", said(user), " with ", said(client), " · ", said(model), ` · ${length}`);
    this.#live.hidden = !extent.is_live;
    this.#warnings.replaceChildren(...warningsOf(detail));
  }

  async #export() {
    this.#told.textContent = "Preparing…";
    try {
      const file = await this.#house.api.file(`/v1/sessions/${encodeURIComponent(this.#sessionId)}/export`);
      const lack = lackOf(await file.slice(-END_BYTES).text());
      const href = URL.createObjectURL(file);
      h("a", { href, download: `${this.#sessionId}.jsonl` }).click();
      setTimeout(() => URL.revokeObjectURL(href), 60_000);
      this.#told.textContent = lack ? `Exported, but not whole: ${lack}` : "Exported.";
    } catch (error) {
      this.#told.textContent = error instanceof Refusal ? error.message : "The export broke off. Try again.";
    }
  }
}

/** What an export lacks, by its last line; empty when it is whole. @param {string} end of the file */
function lackOf(end) {
  const last = end.trimEnd().split("\n").at(-1) ?? "";
  let told;
  try {
    told = JSON.parse(last).end;
  } catch {
    told = undefined;
  }
  if (told?.complete === true) return "";
  if (told?.error === "unavailable") return "what follows could not be read just now. Try again later.";
  if (told?.error === "token_revoked") return "your access has ended. Sign in again to go on.";
  if (told?.complete === false) return "events are missing from the recording; the file says where.";
  return "the file breaks off. Try again.";
}

/** @param {Detail} detail */
function warningsOf(detail) {
  const { holes } = extentOf(detail);
  const nodes = [];
  if (detail.masked) nodes.push(h("p", { class: "fine" }, "Personal data is covered with •. A sign-in with the scope personal_data shows it."));
  if (detail.warnings?.includes("archive_unavailable")) nodes.push(h("p", { class: "damage" }, icon(SHAPES.hole), " The archive cannot be reached now: what is known of the session is shown, and the replay may have to wait."));
  if (holes.length > 0) {
    const list = holes.map(({ first, last, reason }) => holeInWords(last - first + 1, reason)).join("; ");
    nodes.push(h("p", { class: "damage" }, icon(SHAPES.hole), ` This recording is not whole: ${list}. The rest is shown as it was.`));
  }
  return nodes;
}
