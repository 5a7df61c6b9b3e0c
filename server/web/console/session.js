/**
 * A session's page: the player, and beside it what is known of each answer, what people thought, and notes.
 *
 * @import { Summary } from "./find.js"
 * @import { Part } from "./waterfall.js"
 *
 * @typedef {{ first_sequence: number, last_sequence: number, first_ms: number, last_ms: number, num_events: number, is_live: boolean,
 *   holes: Array<{ first: number, last: number, reason: string }> }} Extent
 * @typedef {{ turn_id: string, number: number, item_id: string, text: string, created_ms: number }} Turn
 * @typedef {object} AnswerFacts
 * @property {string} response_id
 * @property {string | null} turn_id
 * @property {string} model
 * @property {string | null} model_version
 * @property {string | null} prompt_version
 * @property {string | null} persona
 * @property {string} status
 * @property {string | null} status_reason
 * @property {string | null} error
 * @property {string | null} text
 * @property {Array<{ id: string, type: string }> | null} output
 * @property {number | null} input_tokens
 * @property {number | null} output_tokens
 * @property {number | null} cached_tokens
 * @property {number} created_ms
 * @property {number | null} first_token_ms
 * @property {number | null} done_ms
 * @property {number | null} sent_chars
 * @property {string | null} heard_text
 * @property {number | null} heard_chars
 * @property {string | null} prompt   null too where it does not come along
 * @property {number | null} [prompt_chars]   how long the kept prompt is
 * @property {"text" | "messages"} prompt_format
 * @property {Record<string, unknown> | null} sampling
 * @property {Part[]} waterfall
 *
 * @typedef {{ feedback_id: string, session_id: string, item_id: string, user_id: string, role: "user" | "support" | "admin",
 *   rating: "up" | "down" | null, reason: string | null, comment: string | null, start?: number | null, end?: number | null,
 *   rated_ms: number }} Feedback   `start` and `end`: the piece of the answer's text that is meant
 * @typedef {{ note_id: string, author_id: string, text: string, position_ms: number | null, created_ms: number }} Note
 * @typedef {{ session: Summary, extent: Extent | null, turns: Turn[], answers: AnswerFacts[], feedback: Feedback[], notes: Note[],
 *   warnings?: string[], masked?: true }} Detail   `extent` null: the recording cannot be asked now
 */

import { address } from "./api.js";
import { AnswerSheet } from "./answers.js";
import { arrange, h, icon } from "./dom.js";
import { Head } from "./head.js";
import { Lookout } from "./lookout.js";
import { extentOf, momentsOf } from "./moments.js";
import { Notes } from "./notes.js";
import { Player } from "./player.js";
import { SHAPES } from "./signs.js";
import { failure, waiting } from "./states.js";
import { clock, plain, said } from "./text.js";

/** @typedef {import("./app.js").House} House */

const LONGEST_TITLE = 80;

/** @param {House} house @param {string} sessionId @param {URL} url @returns {import("./app.js").Page} */
export function sessionPage(house, sessionId, url) {
  const node = h("div", { class: "session-page" });
  const view = new SessionView(house, sessionId, Number(url.searchParams.get("at")) || null, node);
  void view.load();
  return { title: "Session", node, leave: () => view.close() };
}

class SessionView {
  #house;
  #sessionId;
  #atMs;
  #node;
  #abort = new AbortController();
  /** @type {Detail | null} */ #detail = null;
  /** @type {Player | null} */ #player = null;
  /** @type {Notes | null} */ #notes = null;
  /** By the ids of their responses. @type {Map<string, AnswerSheet>} */ #held = new Map();
  /** The same, in order. @type {AnswerSheet[]} */ #sheets = [];
  /** The replay is in it. @type {AnswerSheet | null} */ #current = null;
  #lastMs = -1;
  #namedMs = -1;
  /** Answers that have ended and were not stored by then. @type {Set<string>} */ #late = new Set();
  #lookout = new Lookout(() => this.#lookAgain());
  #nothing = h("p", { class: "fine" }, "Nothing was answered, or it is not stored yet.");
  #answers = h("section", { class: "panel" });
  #answersHeading = h("h2", {}, "Answers");
  #moments = h("ol", { class: "moments" });
  /** Those that are shown, by what they say. @type {Map<string, HTMLElement>} */ #entries = new Map();
  #heading = h("h1", { tabindex: -1, id: "session-title" }, "Session");
  /** @type {Head | null} */ #head = null;

  /** @param {House} house @param {string} sessionId @param {number | null} atMs @param {HTMLElement} node */
  constructor(house, sessionId, atMs, node) {
    this.#house = house;
    this.#sessionId = sessionId;
    this.#atMs = atMs;
    this.#node = node;
  }

  get #path() {
    return `/v1/sessions/${encodeURIComponent(this.#sessionId)}`;
  }

  async load() {
    this.#node.replaceChildren(this.#heading, waiting("Opening the session"));
    try {
      this.#detail = await this.#house.api.get(this.#path, {}, this.#abort.signal);
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      const isGone = error instanceof Error && "status" in error && error.status === 404;
      const text = isGone ? h("p", {}, "There is no such session, or it is not for you to see. ", h("a", { href: "/console" }, "Find another")) : failure(error, () => void this.load());
      this.#heading.textContent = isGone ? "No such session" : "Session";
      this.#node.replaceChildren(this.#heading, text);
      return;
    }
    if (this.#detail && !this.#abort.signal.aborted) this.#begin(this.#detail);
  }

  close() {
    this.#abort.abort();
    this.#lookout.close();
    this.#player?.close();
  }

  /** @param {Detail} detail */
  #begin(detail) {
    const { session } = detail;
    const extent = extentOf(detail);
    // A session that is over is there to be read at once, and played from wherever one likes; a live one is watched.
    const lengthMs = Math.max(0, extent.last_ms - extent.first_ms);
    const start = { position: Math.min(this.#atMs ?? lengthMs, lengthMs), paused: !extent.is_live || this.#atMs !== null, lengthMs };
    this.#player = new Player(this.#sessionId, this.#house.api.token, start, {
      say: this.#house.say,
      onPosition: (ms) => this.#moved(ms),
      onEvent: (event) => this.#happened(event),
    });
    this.#notes = new Notes(detail, this.#house, this.#player, () => this.#annotate());
    this.#head = new Head(detail, this.#house);
    this.#heading.replaceChildren(said((session.first_text ?? "").slice(0, LONGEST_TITLE) || "A session without words"));
    this.#house.entitle(plain(session.first_text ?? session.session_id));
    const player = this.#player;
    // It moves, and what moves loses the focus.
    const wasRead = document.activeElement === this.#heading;
    const left = h("section", { class: "watch", "aria-labelledby": "session-title", onkeydown: (/** @type {KeyboardEvent} */ event) => player.key(event) });
    left.append(h("div", { class: "session-title" }, this.#heading, this.#head.node), player.node, this.#aside());
    this.#node.replaceChildren(left, h("div", { class: "beside" }, this.#answers, this.#notes.node));
    if (wasRead) this.#heading.focus({ preventScroll: true });
    this.#show(detail);
    for (const [index, sheet] of this.#sheets.entries()) if (index === 0 || sheet.hasDraft) sheet.open();
    if (!this.#isAllThere) this.#lookout.warn();
  }

  /** What is known by now: sheets that are there stay as they are, with whatever is being typed into them. @param {Detail} detail */
  #show(detail) {
    const tools = { house: this.#house, playFrom: (/** @type {number} */ ms) => this.#player?.playFrom(ms), onReviewed: () => this.#annotate() };
    for (const facts of detail.answers) {
      const sheet = this.#held.get(facts.response_id);
      if (sheet) sheet.update(facts);
      else this.#held.set(facts.response_id, new AnswerSheet(facts, detail, tools));
    }
    this.#sheets = [...this.#held.values()].sort((one, other) => one.startMs - other.startMs);
    const sheets = this.#sheets.length > 0 ? this.#sheets.map(({ node }) => node) : [this.#nothing];
    arrange(this.#answers, [this.#answersHeading, this.#lookout.node, ...sheets]);
    this.#head?.show(detail);
    this.#annotate();
  }

  /** Marks, and the list that says the same. */
  #annotate() {
    const [detail, player] = [this.#detail, this.#player];
    if (!detail || !player) return;
    player.annotate(detail);
    const before = this.#entries;
    this.#entries = new Map();
    for (const moment of momentsOf(detail)) {
      const name = JSON.stringify(moment);
      this.#entries.set(name, before.get(name) ?? this.#entry(moment));
    }
    arrange(this.#moments, [...this.#entries.values()]);
  }

  /** @param {import("./moments.js").Moment} moment */
  #entry({ kind, atMs, label, text }) {
    const words = [h("span", { class: "at" }, clock(atMs)), icon(SHAPES[kind]), h("span", {}, h("b", {}, label), " ", said(text))];
    return h("li", {}, h("button", { type: "button", class: `moment mark-${kind}`, onclick: () => this.#player?.visit(atMs) }, ...words));
  }

  #aside() {
    const keys = [["Space or K", "play or pause"], ["← →", "5 seconds"], ["J L", "10 seconds"], [", .", "moment before, next moment"], ["< >", "slower, faster"], ["0–9", "tenths of the session"], ["Home End", "start, end"]];
    const list = h("dl", { class: "keys-list" }, ...keys.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what))));
    return h(
      "div",
      { class: "watch-foot" },
      h("details", {}, h("summary", {}, "Moments"), this.#moments),
      h("details", {}, h("summary", {}, "Keys"), h("p", { class: "fine" }, "They work while the focus is in the player."), list),
    );
  }

  get #isAllThere() {
    return !this.#detail?.warnings?.includes("not_stored_yet") && [...this.#late].every((id) => this.#held.has(id));
  }

  /** @param {import("../realtime.js").ServerEvent & Record<string, any>} event */
  #happened(event) {
    if (event.type !== "response.done") return;
    const { id } = event.response;
    if (this.#held.has(id) || this.#late.has(id)) return;
    this.#late.add(id);
    this.#lookout.wake();
  }

  /** Whether all is there by now. */
  async #lookAgain() {
    /** @type {Detail} */ const fresh = await this.#house.api.get(this.#path, {}, this.#abort.signal);
    const detail = this.#detail;
    if (!detail || this.#abort.signal.aborted) return true;
    // What was written here is known before the tables tell of it.
    const feedback = newest(detail.feedback, fresh.feedback, (rating) => rating.feedback_id, (rating) => rating.rated_ms);
    const notes = newest(detail.notes, fresh.notes, (note) => note.note_id, () => 0);
    this.#show(Object.assign(detail, fresh, { feedback, notes }));
    this.#notes?.show();
    return this.#isAllThere;
  }

  /** @param {number} ms */
  #moved(ms) {
    if (this.#notes) this.#notes.positionMs = ms;
    const current = this.#sheets.findLast(({ startMs }) => startMs <= ms + 1) ?? null;
    if (current !== this.#current) {
      if (this.#current) this.#current.isCurrent = false;
      if (current) current.isCurrent = true;
      this.#current = current;
    }
    this.#nameMoment(Math.round(ms));
  }

  /** Where it rests is in the address, so that a moment can be sent to someone. @param {number} ms */
  #nameMoment(ms) {
    const isAtRest = ms === this.#lastMs && this.#player?.isPaused === true;
    this.#lastMs = ms;
    if (!isAtRest || ms === this.#namedMs) return;
    this.#namedMs = ms;
    const isAtEnd = ms >= Math.floor(this.#player?.durationMs ?? 0);
    this.#house.rename(address(`/console/sessions/${encodeURIComponent(this.#sessionId)}`, isAtEnd ? {} : { at: ms }));
  }
}

/**
 * Of both, by name, and of the same name the later one.
 * @template T
 * @param {T[]} held @param {T[]} fresh @param {(one: T) => string} nameOf @param {(one: T) => number} timeOf
 */
function newest(held, fresh, nameOf, timeOf) {
  const kept = new Map(fresh.map((one) => [nameOf(one), one]));
  for (const one of held) {
    const other = kept.get(nameOf(one));
    if (other === undefined || timeOf(other) <= timeOf(one)) kept.set(nameOf(one), one);
  }
  return [...kept.values()];
}
