/**
 * The thumbs under each answer, and how far a rating has come, as a person sees and hears it. Draws and listens; what is rated and
 * what the server knows of it is the business of `Ratings`.
 *
 * @typedef {object} Row   the thumbs of one answer
 * @property {string} itemId
 * @property {string} sessionId
 * @property {HTMLElement} place
 * @property {HTMLElement} group
 * @property {Record<Thumb, HTMLButtonElement>} thumbs
 * @property {HTMLButtonElement} more
 * @property {HTMLElement} progress
 */

import { element, icon, textButton } from "./elements.js";
import { Reasons, USUAL_REASONS } from "./reasons.js";

/** @import { Answer } from "./answer.js" */
/** @import { Opinion, Progress, Ratings, Thumb } from "./ratings.js" */

const THUMB =
  "M7.5 10.5v9M7.5 10.5l3.6-6.7c1.5 0 2.6 1.3 2.3 2.8l-.6 3.4h5.3c1.3 0 2.3 1.3 1.9 2.6l-1.6 5.4c-.3.9-1.1 1.5-2 1.5H5.2c-.7 0-1.2-.5-1.2-1.2v-6.6c0-.7.5-1.2 1.2-1.2z";
const LONGEST_NAME = 60;

/** @type {Record<Progress, string>} */
const SHOWN = {
  "": "",
  waiting: "Waiting for the connection",
  delayed: "Not saved yet, trying again",
  sending: "Saving…",
  saved: "Saved",
  withdrawn: "Withdrawn",
  refused: "Not saved.",
};

/** @type {Partial<Record<Progress, string>>} */
const SPOKEN = {
  waiting: "Your rating waits for the connection.",
  delayed: "Your rating is not saved yet. It will be sent again.",
  saved: "Your rating is saved.",
  withdrawn: "Your rating is withdrawn.",
  refused: "Your rating was not saved.",
};

export class Thumbs {
  /** What may be wrong with an answer, as the server names it. @type {readonly string[]} */ reasons = USUAL_REASONS;
  #ratings;
  #say;
  /** @type {Map<string, Row>} */ #rows = new Map();
  /** @type {Map<string, string>} */ #drafts = new Map();
  /** Rated here, and its end not told yet. @type {Map<string, Progress>} */ #awaited = new Map();
  /** @type {{ row: Row, rating: Thumb | null, panel: Reasons } | null} */ #open = null;
  /** Where the person was when the log was cleared. @type {{ itemId: string, isOpen: boolean, focus: "panel" | "row" | "" } | null} */
  #left = null;

  /** @param {Ratings} ratings @param {(text: string) => void} say tells a screen reader */
  constructor(ratings, say) {
    this.#ratings = ratings;
    this.#say = say;
  }

  /** Puts thumbs under an answer that has text; does nothing where they are. @param {Answer} answer @param {HTMLElement} place */
  show({ itemId, sessionId, question }, place) {
    if (place.querySelector(".rating")) return;
    const row = this.#row(itemId, sessionId, question, place);
    this.#rows.set(itemId, row);
    place.prepend(row.group);
    this.refresh(itemId);
  }

  /** Shows what is thought of that answer now; false if it is not on the page. @param {string} itemId */
  refresh(itemId) {
    const row = this.#rows.get(itemId);
    if (!row) return false;
    const opinion = this.#ratings.opinion(itemId);
    const progress = this.#ratings.progress(itemId);
    for (const [name, thumb] of Object.entries(row.thumbs)) thumb.setAttribute("aria-pressed", String(opinion.rating === name));
    row.more.textContent = opinion.reason || opinion.comment ? "Edit" : opinion.rating === "up" ? "Comment" : "Say why";
    row.more.setAttribute("aria-expanded", String(this.#open?.row === row));
    row.progress.dataset["progress"] = progress;
    row.progress.textContent = `${SHOWN[progress]} ${this.#ratings.complaint(itemId)}`.trim();
    if (this.#open?.row === row) this.#open.panel.refresh(opinion);
    // It was refused, or is another one since.
    if (this.#open?.row === row && this.#open.rating !== opinion.rating) this.close();
    if (opinion.rating === null && document.activeElement === row.more) this.#focus(row);
    row.more.hidden = opinion.rating === null;
    if (this.#left?.itemId === itemId) this.#comeBack(row, this.#left);
    // A comment that is refused can be mended.
    if (progress === "saved" && this.#drafts.get(itemId)?.trim() === (opinion.comment ?? "")) this.#drafts.delete(itemId);
    this.#tell(itemId, progress);
    return true;
  }

  /** Closes the panel, keeping what was typed. */
  close() {
    if (!this.#open) return;
    const { row, panel } = this.#open;
    const hadFocus = panel.element.contains(document.activeElement);
    this.#open = null;
    panel.element.remove();
    row.more.setAttribute("aria-expanded", "false");
    if (hadFocus) this.#focus(row);
  }

  /** The log is about to be cleared and given anew: `show` will find what was open and focused. @param {HTMLElement} meanwhile has the focus */
  leave(meanwhile) {
    const focused = document.activeElement;
    const row = [...this.#rows.values()].find(({ place }) => place.contains(focused)) ?? this.#open?.row;
    if (!row) return;
    const isOpen = this.#open?.row === row;
    const isInPanel = isOpen && this.#open?.panel.element.contains(focused) === true;
    this.#left = { itemId: row.itemId, isOpen, focus: isInPanel ? "panel" : row.place.contains(focused) ? "row" : "" };
    if (this.#left.focus) meanwhile.focus({ preventScroll: true });
    this.#open = null;
  }

  /** @param {Row} row @param {{ isOpen: boolean, focus: "panel" | "row" | "" }} left */
  #comeBack(row, { isOpen, focus }) {
    // Ratings are told after the answers.
    if (isOpen && this.#ratings.opinion(row.itemId).rating === null) return;
    this.#left = null;
    if (isOpen) this.#openPanel(row);
    if (focus === "panel") this.#open?.panel.focus();
    else if (focus === "row") this.#focus(row);
  }

  /** @param {Row} row */
  #focus({ itemId, thumbs }) {
    thumbs[this.#ratings.opinion(itemId).rating ?? "up"].focus();
  }

  // Rating

  /** @param {Row} row @param {Thumb} thumb */
  #tap(row, thumb) {
    const { rating, comment } = this.#ratings.opinion(row.itemId);
    const isSame = rating === thumb;
    this.close();
    // A slip of the finger must not cost the words: the panel offers them again.
    if (comment && !this.#drafts.has(row.itemId)) this.#drafts.set(row.itemId, comment);
    this.#rate(row, { rating: isSame ? null : thumb, reason: null, comment: null });
    // Praise needs no reasons: a comment is offered beside it.
    if (thumb === "down" && !isSame) this.#openPanel(row);
  }

  /** @param {Row} row @param {Partial<Opinion>} change */
  #rate({ itemId, sessionId }, change) {
    this.#say("");
    this.#awaited.set(itemId, "");
    this.#ratings.rate(itemId, sessionId, { ...this.#ratings.opinion(itemId), ...change });
  }

  /** What becomes of a rating is said once, and only to who gave it. @param {string} itemId @param {Progress} progress */
  #tell(itemId, progress) {
    const words = SPOKEN[progress];
    // Taken back before it was sent.
    if (!progress) this.#awaited.delete(itemId);
    if (!words || !this.#awaited.has(itemId) || this.#awaited.get(itemId) === progress) return;
    if (progress === "waiting" || progress === "delayed") this.#awaited.set(itemId, progress);
    else this.#awaited.delete(itemId);
    this.#say(`${words} ${this.#ratings.complaint(itemId)}`.trim());
  }

  /** @param {Row} row */
  #openPanel(row) {
    this.close();
    const { itemId } = row;
    const opinion = this.#ratings.opinion(itemId);
    const panel = new Reasons(opinion, this.#drafts.get(itemId) ?? opinion.comment ?? "", this.reasons, {
      onReason: (reason) => this.#rate(row, { reason }),
      onComment: (comment) => {
        if (comment !== (this.#ratings.opinion(itemId).comment ?? "")) this.#rate(row, { comment: comment || null });
        this.close();
      },
      onDraft: (draft) => this.#drafts.set(itemId, draft),
      onClose: () => this.close(),
      say: this.#say,
    });
    this.#open = { row, rating: opinion.rating, panel };
    row.place.append(panel.element);
    row.more.setAttribute("aria-expanded", "true");
    panel.appear();
  }

  // Drawing

  /** @param {string} itemId @param {string} sessionId @param {string} question @param {HTMLElement} place @returns {Row} */
  #row(itemId, sessionId, question, place) {
    const group = element("div", "rating");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", nameOf(question));
    const thumbs = { up: thumbButton("up", "Good answer"), down: thumbButton("down", "Bad answer") };
    const more = textButton("more", "");
    const progress = element("p", "progress");
    group.append(thumbs.up, thumbs.down, more, progress);
    const row = { itemId, sessionId, place, group, thumbs, more, progress };
    thumbs.up.addEventListener("click", () => this.#tap(row, "up"));
    thumbs.down.addEventListener("click", () => this.#tap(row, "down"));
    more.addEventListener("click", () => (this.#open?.row === row ? this.close() : this.#openPanel(row)));
    place.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || this.#open?.row !== row) return;
      event.preventDefault();
      // Escape stops an answer elsewhere.
      event.stopPropagation();
      this.close();
    });
    return row;
  }
}

/** @param {string} question */
function nameOf(question) {
  const words = question.replace(/\s+/g, " ").trim();
  if (!words) return "Rate this answer";
  return `Rate the answer to “${words.length > LONGEST_NAME ? `${words.slice(0, LONGEST_NAME).trimEnd()}…` : words}”`;
}

/** @param {Thumb} thumb @param {string} name */
function thumbButton(thumb, name) {
  const button = textButton(`thumb ${thumb}`, "");
  button.title = name;
  button.append(icon(THUMB), element("span", "unseen", name));
  return button;
}
