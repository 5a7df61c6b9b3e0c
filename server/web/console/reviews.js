/**
 * What people thought of an answer: the user's ratings, and apart from them the reviewers', among whom is whoever sits here.
 *
 * @import { Detail, Feedback } from "./session.js"
 */

import { address } from "./api.js";
import { h, icon } from "./dom.js";
import { SHAPES } from "./signs.js";
import { failure } from "./states.js";
import { passage, said, shortly } from "./text.js";

const MAX_COMMENT = 2000;

/** @param {Detail} detail @param {string} itemId */
export function ratingsOf({ feedback }, itemId) {
  return feedback.filter(({ item_id: id, rating }) => id === itemId && rating);
}

export class Review {
  #detail;
  #itemId;
  #tools;
  #list = h("ul", { class: "opinions" });
  #told = h("p", { class: "fine", role: "status" });
  #trouble = h("div");
  #up = this.#thumb("up");
  #down = this.#thumb("down");
  #reason = h("select", {}, h("option", { value: "" }, "No reason"));
  #comment = h("textarea", { rows: 2, maxlength: MAX_COMMENT });

  /** @param {Detail} detail @param {string} itemId @param {import("./answers.js").Tools} tools */
  constructor(detail, itemId, tools) {
    this.#detail = detail;
    this.#itemId = itemId;
    this.#tools = tools;
    this.#reason.append(...tools.house.me.feedback_reasons.map((reason) => h("option", { value: reason }, reason.replaceAll("-", " "))));
    this.node = h("section", { class: "review" }, h("h4", {}, "Ratings"), this.#list, itemId ? this.#form() : h("p", { class: "fine" }, "There is no message to rate."));
    this.#show();
  }

  get #mine() {
    const { subject } = this.#tools.house.me;
    return this.#detail.feedback.find(({ item_id: id, user_id: user, role }) => id === this.#itemId && user === subject && role !== "user");
  }

  #form() {
    const mine = this.#mine;
    this.#reason.value = mine?.reason ?? "";
    this.#comment.value = mine?.comment ?? "";
    return h(
      "form",
      { class: "review-form", onsubmit: (/** @type {Event} */ event) => this.#submit(event) },
      h("fieldset", {}, h("legend", {}, "Your review, apart from the user's rating"), h("div", { class: "choice" }, this.#up, this.#down)),
      h("label", {}, "Reason", this.#reason),
      h("label", {}, "Comment", this.#comment),
      h("div", { class: "choice" }, h("button", { type: "submit", class: "again" }, "Save review"), this.#told),
      this.#trouble,
    );
  }

  /** @param {"up" | "down"} rating */
  #thumb(rating) {
    const press = () => this.#press(rating === this.#pressed ? null : rating);
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

  #show() {
    const given = ratingsOf(this.#detail, this.#itemId);
    this.#list.replaceChildren(...given.map(opinion));
    if (given.length === 0) this.#list.append(h("li", { class: "fine" }, "Nobody has rated this answer."));
    this.#press(this.#mine?.rating ?? null);
  }

  /** @param {Event} event */
  async #submit(event) {
    event.preventDefault();
    const rating = this.#pressed;
    const mine = this.#mine;
    if (!rating && !mine?.rating) return void (this.#told.textContent = "Choose good or bad first.");
    this.#told.textContent = "Saving…";
    this.#trouble.replaceChildren();
    try {
      await (rating ? this.#save(rating) : this.#withdraw(mine));
    } catch (error) {
      this.#told.textContent = "";
      this.#trouble.replaceChildren(failure(error));
      return;
    }
    this.#told.textContent = rating ? "Saved." : "Withdrawn.";
    this.#show();
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

/** @param {Feedback} feedback */
function opinion({ rating, role, user_id: user, reason, comment, rated_ms: ms }) {
  const who = role === "user" ? "User" : "Reviewer";
  const line = h("p", {}, icon(SHAPES[rating ?? "up"]), h("b", {}, ` ${rating === "up" ? "Good" : "Bad"}`), ` · ${who} `, said(user), " · ", shortly(ms));
  if (reason) line.append(" · ", said(reason.replaceAll("-", " ")));
  return h("li", { class: `thumb-${rating} by-${role}` }, line, comment ? passage(comment) : null);
}
