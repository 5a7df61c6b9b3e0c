/**
 * Notes of reviewers on a session, some at a moment of it.
 *
 * @import { Detail, Note } from "./session.js"
 */

import { arrange, h } from "./dom.js";
import { failure } from "./states.js";
import { clock, passage, said, shortly } from "./text.js";

const MAX_CHARS = 5000;
const RETURNED = "Not saved yet: as you left it.";

export class Notes {
  #detail;
  #house;
  #player;
  #onAdded;
  #list = h("ol", { class: "notes" });
  /** Those that are shown, by their ids. @type {Map<string, HTMLElement>} */ #entries = new Map();
  #text = h("textarea", { id: "note", rows: 3, maxlength: MAX_CHARS, required: true, oninput: () => this.#keep() });
  #isHere = h("input", { type: "checkbox", id: "note-here", checked: true });
  #here = h("span", {}, "At 0:00");
  #told = h("p", { class: "fine", role: "status" });
  #trouble = h("div");
  #isSaving = false;

  /** @param {Detail} detail @param {import("./app.js").House} house @param {import("./player.js").Player} player @param {() => void} onAdded */
  constructor(detail, house, player, onAdded) {
    this.#detail = detail;
    this.#house = house;
    this.#player = player;
    this.#onAdded = onAdded;
    const form = h(
      "form",
      { class: "note-form", onsubmit: (/** @type {Event} */ event) => void this.#submit(event) },
      h("label", { for: "note" }, "New note"),
      this.#text,
      h("div", { class: "choice" }, h("button", { type: "submit", class: "again" }, "Add note"), h("label", { class: "check", for: "note-here" }, this.#isHere, this.#here), this.#told),
      this.#trouble,
    );
    this.node = h("section", { class: "panel" }, h("h2", {}, "Notes"), this.#list, form);
    this.show();
    const draft = house.drafts.get(this.#place);
    if (draft) [this.#text.value, this.#told.textContent] = [draft.text, RETURNED];
  }

  get #place() {
    return `note ${this.#detail.session.session_id}`;
  }

  #keep() {
    if (this.#text.value) this.#house.drafts.set(this.#place, { text: this.#text.value });
    else this.#house.drafts.delete(this.#place);
  }

  /** @param {number} positionMs */
  set positionMs(positionMs) {
    const text = `At ${clock(positionMs)}`;
    if (this.#here.textContent !== text) this.#here.textContent = text;
  }

  /** Those that there are by now. */
  show() {
    const before = this.#entries;
    const entries = this.#detail.notes.map((note) => /** @type {const} */ ([note.note_id, before.get(note.note_id) ?? this.#entry(note)]));
    this.#entries = new Map(entries);
    arrange(this.#list, entries.length > 0 ? [...this.#entries.values()] : [h("li", { class: "fine" }, "No notes yet.")]);
  }

  /** @param {Note} note */
  #entry({ author_id: author, text, position_ms: ms, created_ms: createdMs }) {
    const place = ms === null ? null : h("button", { type: "button", class: "quiet", onclick: () => this.#player.seek(ms) }, `At ${clock(ms)}`);
    return h("li", {}, h("p", { class: "fine" }, said(author), " · ", shortly(createdMs), " ", place), passage(text));
  }

  /** @param {Event} event */
  async #submit(event) {
    event.preventDefault();
    const text = this.#text.value.trim();
    if (!text || this.#isSaving) return;
    this.#isSaving = true;
    const position = this.#isHere.checked ? { position_ms: Math.round(this.#player.positionMs) } : {};
    const id = encodeURIComponent(this.#detail.session.session_id);
    this.#told.textContent = "Saving…";
    this.#trouble.replaceChildren();
    try {
      const reply = await this.#house.api.post(`/v1/sessions/${id}/notes`, { text, ...position });
      this.#detail.notes.push({ position_ms: null, ...(reply.note ?? reply) });
    } catch (error) {
      this.#told.textContent = "";
      this.#trouble.replaceChildren(failure(error));
      return;
    } finally {
      this.#isSaving = false;
    }
    // What was typed since is another note.
    if (this.#text.value.trim() === text) this.#text.value = "";
    this.#keep();
    this.#told.textContent = "Saved.";
    this.show();
    this.#onAdded();
  }
}
