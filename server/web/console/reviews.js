/**
 * What people thought of an answer: the user's ratings, and apart from them the reviewers', among whom is whoever sits here.
 *
 * @import { Detail, Feedback } from "./session.js"
 */

import { address } from "./api.js";
import { h, icon } from "./dom.js";
import { SHAPES } from "./signs.js";
import { failure } from "./states.js";
import { passage, piece, said, shortly } from "./text.js";

const MAX_COMMENT = 2000;
const RETURNED = "Not saved yet: as you left it.";

/** @param {Detail} detail @param {string} itemId */
export function ratingsOf({ feedback }, itemId) {
  return feedback.filter(({ item_id: id, rating }) => id === itemId && rating);
}

/** Where a review that is not saved yet is kept. @param {Detail} detail @param {string} itemId */
export function placeOf({ session }, itemId) {
  return `review ${session.session_id} ${itemId}`;
}

export class Review {
  #detail;
  #itemId;
  #text;
  #tools;
  #list = h("ul", { class: "opinions" });
  #told = h("p", { class: "fine", role: "status" });
  #trouble = h("div");
  #up = this.#thumb("up");
  #down = this.#thumb("down");
  #reason = h("select", {}, h("option", { value: "" }, "No reason"));
  #comment = h("textarea", { rows: 2, maxlength: MAX_COMMENT });

  /** @param {Detail} detail @param {{ itemId: string, text: string }} answer @param {import("./answers.js").Tools} tools */
  constructor(detail, { itemId, text }, tools) {
    this.#detail = detail;
    this.#itemId = itemId;
    this.#text = text;
    this.#tools = tools;
    this.#reason.append(...tools.house.me.feedback_reasons.map((reason) => h("option", { value: reason }, reason.replaceAll("-", " "))));
    this.node = h("section", { class: "review" }, h("h4", {}, "Ratings"), this.#list, itemId ? this.#form() : h("p", { class: "fine" }, "There is no message to rate."));
    this.show();
    this.#begin();
  }

  /** What people thought by now; what is being typed stays. */
  show() {
    const given = ratingsOf(this.#detail, this.#itemId);
    this.#list.replaceChildren(...given.map((rating) => opinion(rating, this.#text)));
    if (given.length === 0) this.#list.append(h("li", { class: "fine" }, "Nobody has rated this answer."));
  }

  /** From what was saved, or from what was not saved yet. */
  #begin() {
    const mine = this.#mine;
    const draft = this.#drafts.get(this.#place);
    const { rating, reason, text } = draft ?? { rating: mine?.rating, reason: mine?.reason, text: mine?.comment };
    this.#press(rating ?? null);
    this.#reason.value = reason ?? "";
    this.#comment.value = text ?? "";
    if (draft) this.#told.textContent = RETURNED;
  }

  get #drafts() {
    return this.#tools.house.drafts;
  }

  get #place() {
    return placeOf(this.#detail, this.#itemId);
  }

  #keep() {
    this.#drafts.set(this.#place, { text: this.#comment.value, rating: this.#pressed, reason: this.#reason.value });
  }

  get #mine() {
    const { subject } = this.#tools.house.me;
    return this.#detail.feedback.find(({ item_id: id, user_id: user, role }) => id === this.#itemId && user === subject && role !== "user");
  }

  #form() {
    return h(
      "form",
      { class: "review-form", oninput: () => this.#keep(), onsubmit: (/** @type {Event} */ event) => this.#submit(event) },
      h("fieldset", {}, h("legend", {}, "Your review, apart from the user's rating"), h("div", { class: "choice" }, this.#up, this.#down)),
      h("label", {}, "Reason", this.#reason),
      h("label", {}, "Comment", this.#comment),
      h("div", { class: "choice" }, h("button", { type: "submit", class: "again" }, "Save review"), this.#told),
      this.#trouble,
    );
  }

  /** @param {"up" | "down"} rating */
  #thumb(rating) {
    const press = () => {
      this.#press(rating === this.#pressed ? null : rating);
      this.#keep();
    };
    return h("button", { type: "button", class: `quiet thumb thumb-${rating}`, "aria-pressed": "false", onclick: press }, icon(SHAPES[rating]), rating === "up" ? "Good" : "Bad");
  }

  get #pressed() {
    return this.#up.ariaPressed === "true" ? "up" : this.#down.ariaPressed === "true" ? "down" : null;
  }

  /** @param {"up" | "down" | null} rating */
  #press(rating) {
    this.#up.ariaPressed = String(rating === "up");
    this.#down.ariaPressed = String(rating === "down");
  }

  /** @param {Event} event */
  async #submit(event) {
    event.preventDefault();
    const rating = this.#pressed;
    const mine = this.#mine;
    if (!rating && !mine?.rating) return void (this.#told.textContent = "Choose good or bad first.");
    this.#told.textContent = "Saving…";
    this.#trouble.replaceChildren();
    const sent = this.#drafts.get(this.#place);
    try {
      await (rating ? this.#save(rating) : this.#withdraw(mine));
    } catch (error) {
      this.#told.textContent = "";
      this.#trouble.replaceChildren(failure(error));
      return;
    }
    this.#told.textContent = rating ? "Saved." : "Withdrawn.";
    // What was typed since is not saved.
    if (this.#drafts.get(this.#place) === sent) {
      this.#drafts.delete(this.#place);
      this.#press(this.#mine?.rating ?? null);
    }
    this.show();
    this.#tools.onReviewed();
  }

  /** @param {"up" | "down"} rating */
  async #save(rating) {
    const [reason, comment] = [this.#reason.value, this.#comment.value.trim()];
    const body = { rating, ...(reason && { reason }), ...(comment && { comment }) };
    const { api } = this.#tools.house;
    const reply = await api.post("/v1/feedback", { session_id: this.#detail.session.session_id, item_id: this.#itemId, feedback: body });
    const { subject, role } = this.#tools.house.me;
    const kept = { role, user_id: subject, session_id: "", rated_ms: reply.feedback.rated_at_ms ?? Date.now(), ...reply.feedback };
    this.#replace({ ...kept, feedback_id: kept.feedback_id ?? kept.id, item_id: this.#itemId });
  }

  /** @param {Feedback | undefined} mine */
  async #withdraw(mine) {
    if (!mine) return;
    // Named in full: the tables may not have it yet.
    const named = { session_id: this.#detail.session.session_id, item_id: this.#itemId };
    await this.#tools.house.api.delete(address(`/v1/feedback/${encodeURIComponent(mine.feedback_id)}`, named));
    this.#replace({ ...mine, rating: null });
  }

  /** @param {Feedback} mine */
  #replace(mine) {
    const { feedback } = this.#detail;
    const index = feedback.findIndex(({ feedback_id: id }) => id === mine.feedback_id);
    feedback.splice(index < 0 ? feedback.length : index, 1, mine);
  }
}

/** @param {Feedback} feedback @param {string} text what it is about */
function opinion({ rating, role, user_id: user, reason, comment, start, end, rated_ms: ms }, text) {
  const who = role === "user" ? "User" : "Reviewer";
  const line = h("p", {}, icon(SHAPES[rating ?? "up"]), h("b", {}, ` ${rating === "up" ? "Good" : "Bad"}`), ` · ${who} `, said(user), " · ", shortly(ms));
  if (reason) line.append(" · ", said(reason.replaceAll("-", " ")));
  return h("li", { class: `thumb-${rating} by-${role}` }, line, piece(text, start, end), comment ? passage(comment) : null);
}
