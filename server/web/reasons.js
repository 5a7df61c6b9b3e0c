/**
 * The panel in which a person says why: a reason, where the answer was not good, and a comment. Holds what is typed; decides and
 * keeps nothing.
 *
 * @typedef {{ onReason: (reason: string | null) => void, onComment: (comment: string) => void, onDraft: (draft: string) => void,
 *   onClose: () => void, say: (text: string) => void }} Wishes
 */

import { element, icon, textButton } from "./elements.js";

/** @import { Opinion } from "./ratings.js" */

/** As people read them; others that a server has are read as they are written. */
const IN_WORDS = new Map([
  ["inaccurate", "Inaccurate"],
  ["unsafe", "Unsafe"],
  ["off-topic", "Off-topic"],
  ["too-long", "Too long"],
  ["too-slow", "Too slow"],
  ["other", "Something else"],
]);

/** Those of a server that was not asked yet. */
export const USUAL_REASONS = [...IN_WORDS.keys()];

const MAX_COMMENT_CHARS = 2000;
const BORDERS_PX = 2;

/** @param {string} name */
const inLetters = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("-", " ");

/** @param {number} count */
const inWords = (count) => count.toLocaleString("en");

export class Reasons {
  #wishes;
  #comment = document.createElement("textarea");
  #count = element("p", "count");
  #isTooLong = false;
  /** @type {Map<string, HTMLButtonElement>} */ #chips = new Map();

  /** @param {Opinion} opinion @param {string} draft @param {readonly string[]} names of the reasons @param {Wishes} wishes */
  constructor(opinion, draft, names, wishes) {
    this.#wishes = wishes;
    this.element = document.createElement("form");
    this.element.className = "reasons";
    this.element.setAttribute("aria-label", "More about your rating");
    if (opinion.rating === "down") this.element.append(this.#choice(names));
    this.element.append(...this.#field(opinion.rating === "down" ? "Anything to add?" : "What was good?"), this.#close());
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#comment.value = draft;
    this.refresh(opinion);
  }

  /** The panel is on the page. */
  appear() {
    this.#measure();
    this.element.scrollIntoView({ block: "nearest" });
  }

  /** Shows which reason holds. @param {Opinion} opinion */
  refresh({ reason }) {
    for (const [name, chip] of this.#chips) chip.setAttribute("aria-pressed", String(name === reason));
  }

  focus() {
    this.#comment.focus();
  }

  /** @param {readonly string[]} names */
  #choice(names) {
    const group = document.createElement("fieldset");
    const chips = element("div", "chips");
    for (const name of names) {
      const chip = textButton("chip", IN_WORDS.get(name) ?? inLetters(name));
      chip.addEventListener("click", () => this.#wishes.onReason(chip.getAttribute("aria-pressed") === "true" ? null : name));
      this.#chips.set(name, chip);
      chips.append(chip);
    }
    group.append(element("legend", "", "What was wrong?"), chips);
    return group;
  }

  /** @param {string} words */
  #field(words) {
    const label = document.createElement("label");
    const [head, row] = [element("div", "head"), element("div", "row")];
    const send = textButton("quiet", "Send");
    send.type = "submit";
    label.textContent = words;
    this.#comment.id = label.htmlFor = "comment";
    this.#count.id = "comment-count";
    this.#comment.rows = 1;
    this.#comment.setAttribute("aria-describedby", this.#count.id);
    this.#comment.addEventListener("input", () => {
      this.#measure();
      row.scrollIntoView({ block: "nearest" });
      this.#wishes.onDraft(this.#comment.value);
    });
    this.#comment.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
      event.preventDefault();
      this.element.requestSubmit();
    });
    head.append(label, this.#count);
    row.append(this.#comment, send);
    return [head, row];
  }

  #close() {
    const close = textButton("close", "");
    close.append(icon("M6 6l12 12M18 6L6 18"), element("span", "unseen", "Close"));
    close.addEventListener("click", () => this.#wishes.onClose());
    return close;
  }

  #send() {
    const comment = this.#comment.value.toWellFormed().trim();
    if (!this.#isTooLong) return this.#wishes.onComment(comment);
    this.#wishes.say(this.#count.textContent ?? "");
    this.#comment.focus();
  }

  /** Characters as the server counts them. */
  #measure() {
    const numChars = [...this.#comment.value.trim()].length;
    const isTooLong = numChars > MAX_COMMENT_CHARS;
    const surplus = numChars - MAX_COMMENT_CHARS;
    this.#count.textContent = isTooLong
      ? `${inWords(surplus)} ${surplus === 1 ? "character" : "characters"} too long`
      : `${inWords(numChars)} of ${inWords(MAX_COMMENT_CHARS)}`;
    this.#comment.style.height = "auto";
    this.#comment.style.height = `${this.#comment.scrollHeight + BORDERS_PX}px`;
    this.#comment.setAttribute("aria-invalid", String(isTooLong));
    if (isTooLong && !this.#isTooLong) this.#wishes.say(`The comment is longer than ${inWords(MAX_COMMENT_CHARS)} characters.`);
    this.#isTooLong = isTooLong;
  }
}
