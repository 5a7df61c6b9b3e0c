/**
 * What is known of each answer: what it was asked with, what became of it, and where its time went. An answer's facts are drawn once it is
 * opened, since a session may have hundreds.
 *
 * @import { AnswerFacts, Detail } from "./session.js"
 */

import { arrange, h } from "./dom.js";
import { extentOf, itemOf } from "./moments.js";
import { Review, placeOf, ratingsOf } from "./reviews.js";
import { badge, thumbs } from "./signs.js";
import { clock, count, duration, number, passage, plain, said, write } from "./text.js";
import { waterfall } from "./waterfall.js";

const SLOW_MS = 1000;
const LONG = 16;

/** @typedef {{ house: import("./app.js").House, playFrom: (ms: number) => void, onReviewed: () => void }} Tools */

/** One answer, closed or open. */
export class AnswerSheet {
  #facts;
  #detail;
  #tools;
  #summary = h("summary");
  #body = h("div", { class: "facts" });
  #play = h("button", { type: "button", class: "quiet", onclick: () => this.#tools.playFrom(this.startMs) });
  /** Once it was opened. @type {{ prompt: HTMLElement, review: Review } | null} */ #drawn = null;

  /** @param {AnswerFacts} facts @param {Detail} detail @param {Tools} tools */
  constructor(facts, detail, tools) {
    this.#facts = facts;
    this.#detail = detail;
    this.#tools = tools;
    this.node = h("details", { class: "answer-sheet", ontoggle: () => this.node.open && this.#draw() }, this.#summary, this.#body);
    this.#headline();
  }

  get startMs() {
    return this.#facts.created_ms - extentOf(this.#detail).first_ms;
  }

  /** Something was typed into it and not saved. */
  get hasDraft() {
    return this.#tools.house.drafts.has(placeOf(this.#detail, itemOf(this.#facts)));
  }

  /** The replay is here now. @param {boolean} isCurrent */
  set isCurrent(isCurrent) {
    if (isCurrent) this.node.setAttribute("aria-current", "true");
    else this.node.removeAttribute("aria-current");
  }

  open() {
    this.node.open = true;
    this.#draw();
  }

  /** What is known by now; what is being read or typed stays. @param {AnswerFacts} facts */
  update(facts) {
    const before = this.#facts;
    this.#facts = facts;
    this.#headline();
    if (!this.#drawn) return;
    const isPromptNew = facts.prompt !== before.prompt || facts.prompt_chars !== before.prompt_chars;
    if (isPromptNew) this.#drawn.prompt = this.#prompt();
    if (JSON.stringify(facts) !== JSON.stringify(before)) this.#arrange(this.#drawn);
    this.#drawn.review.show();
  }

  #headline() {
    const { status, created_ms: createdMs, first_token_ms: firstMs, turn_id: turnId } = this.#facts;
    const question = this.#detail.turns.find((turn) => turn.turn_id === turnId)?.text ?? "";
    const signs = [badge(status, status === "failed" ? "bad" : status === "completed" ? "plain" : "busy")];
    if (firstMs !== null) signs.push(badge(`first token ${duration(firstMs - createdMs)}`, firstMs - createdMs >= SLOW_MS ? "slow" : "plain"));
    for (const { rating } of ratingsOf(this.#detail, itemOf(this.#facts))) if (rating) signs.push(thumbs(rating, 1));
    const title = h("h3", { class: "asked" }, h("span", { class: "at" }, clock(this.startMs)), question ? said(question) : h("i", {}, "Not asked by a message"));
    this.#summary.replaceChildren(title, h("span", { class: "signs" }, ...signs));
  }

  #draw() {
    if (this.#drawn) return;
    const { text } = this.#facts;
    const review = new Review(this.#detail, { itemId: itemOf(this.#facts), text: text ?? "" }, this.#tools);
    this.#drawn = { prompt: this.#prompt(), review };
    this.#arrange(this.#drawn);
  }

  /** @param {{ prompt: HTMLElement, review: Review }} drawn */
  #arrange({ prompt, review }) {
    const facts = this.#facts;
    this.#play.textContent = `Play from ${clock(this.startMs)}`;
    arrange(this.#body, [this.#play, ...wording(facts), ...trouble(facts), waterfall(facts.waterfall), figures(facts), prompt, review.node]);
  }

  /** The prompt, or the place where it appears: those of a long session do not come along with it. */
  #prompt() {
    const facts = this.#facts;
    if (facts.prompt || !facts.prompt_chars) return prompt(facts);
    const place = h("p", { class: "fine", role: "status" }, `The exact prompt of ${count(facts.prompt_chars, "character")} is on its way.`);
    void this.#fetchPrompt(place);
    return place;
  }

  /** @param {HTMLElement} place */
  async #fetchPrompt(place) {
    const session = encodeURIComponent(this.#detail.session.session_id);
    try {
      const found = await this.#tools.house.api.get(`/v1/sessions/${session}/prompts/${encodeURIComponent(this.#facts.response_id)}`);
      const shown = prompt({ ...this.#facts, ...found });
      if (this.#drawn?.prompt === place) this.#drawn.prompt = shown;
      place.replaceWith(shown);
    } catch {
      place.textContent = "The exact prompt cannot be had now. Open the session again to try once more.";
    }
  }
}

/** What was generated, sent and heard: one text with what the listener missed set apart. @param {AnswerFacts} facts @returns {HTMLElement[]} */
function wording({ text, sent_chars: sentChars, heard_chars: heardChars }) {
  if (!text) return [h("p", { class: "fine" }, "No text was generated.")];
  const sent = Math.min(sentChars ?? text.length, text.length);
  const heard = Math.min(heardChars ?? sent, sent);
  if (heard === text.length) return [passage(text, "passage words-heard")];
  const node = h("p", { class: "passage", dir: "auto" });
  write(node.appendChild(h("span", { class: "words-heard" })), text.slice(0, heard));
  const pieces = /** @type {const} */ ([["words-sent", "sent, not heard", heard, sent], ["words-kept", "generated, not sent", sent, text.length]]);
  for (const [className, meaning, from, to] of pieces) {
    if (to <= from) continue;
    node.append(h("span", { class: "unseen" }, ` [${meaning}: `));
    write(node.appendChild(h("span", { class: className, title: meaning })), text.slice(from, to));
    node.append(h("span", { class: "unseen" }, "] "));
  }
  const legend = h("p", { class: "fine legend" }, `Generated ${count(text.length, "character")}: `, h("span", {}, `heard ${number(heard)}`), ", ");
  legend.append(h("span", { class: "words-sent" }, `sent, not heard ${number(sent - heard)}`), ", ", h("span", { class: "words-kept" }, `not sent ${number(text.length - sent)}`));
  return [node, legend];
}

/** @param {AnswerFacts} facts */
function trouble({ error, status_reason: reason, status }) {
  if (error) return [h("p", { class: "error-line" }, h("b", {}, "Error: "), said(error))];
  return reason ? [h("p", { class: "fine" }, `${status}: `, said(reason.replaceAll("_", " ")))] : [];
}

/** @param {AnswerFacts} facts */
function figures(facts) {
  const { input_tokens: input, output_tokens: output, cached_tokens: cached, sampling } = facts;
  const tokens = [input === null ? "" : `${number(input)} in${cached ? ` (${number(cached)} cached)` : ""}`, output === null ? "" : `${number(output)} out`];
  /** @type {Array<[string, string | null]>} */
  const rows = [
    ["Tokens", tokens.filter(Boolean).join(", ")],
    ["Model", facts.model],
    ["Model version", facts.model_version],
    ["Prompt version", facts.prompt_version],
    ["Persona", facts.persona],
    ...Object.entries(sampling ?? {}).filter(([, value]) => value !== null).map(([name, value]) => /** @type {[string, string]} */ ([name, typeof value === "string" ? value : JSON.stringify(value)])),
    ["Response", facts.response_id],
  ];
  const known = rows.filter(([, value]) => value);
  return h("dl", { class: "figures" }, ...known.map(([name, value]) => h("div", { class: (value ?? "").length > LONG ? "long" : null }, h("dt", {}, plain(name)), h("dd", {}, said(value)))));
}

/** The very text that the model was given. @param {AnswerFacts} facts */
function prompt({ prompt: text, prompt_format: format }) {
  if (!text) return h("p", { class: "fine" }, "The exact prompt was not kept.");
  const readable = format === "messages" ? indented(text) : text;
  const told = h("p", { class: "fine", role: "status" });
  const copy = h("button", { type: "button", class: "quiet", onclick: () => void copied(text, told) }, "Copy");
  const note = `${format === "messages" ? "As messages; the endpoint renders them. " : ""}${count(text.length, "character")}`;
  const shown = write(h("pre", { class: "prompt", tabindex: 0, role: "region", "aria-label": "Exact prompt", dir: "auto" }), readable);
  return h("details", { class: "prompt-box" }, h("summary", {}, "Exact prompt"), h("div", { class: "prompt-head" }, h("p", { class: "fine" }, note), copy, told), shown);
}

/** @param {string} text */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {string} text @param {HTMLElement} told */
async function copied(text, told) {
  const isCopied = await navigator.clipboard.writeText(text).then(
    () => true,
    () => false,
  );
  told.textContent = isCopied ? "Copied, unchanged." : "The browser does not allow copying.";
}
