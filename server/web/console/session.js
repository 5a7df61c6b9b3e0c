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
 *   rating: "up" | "down" | null, reason: string | null, comment: string | null, rated_ms: number }} Feedback
 * @typedef {{ note_id: string, author_id: string, text: string, position_ms: number | null, created_ms: number }} Note
 * @typedef {{ session: Summary, extent: Extent | null, turns: Turn[], answers: AnswerFacts[], feedback: Feedback[], notes: Note[],
 *   warnings?: string[], masked?: true }} Detail   `extent` null: the recording cannot be asked now
 */

import { address } from "./api.js";
import { AnswerSheet } from "./answers.js";
import { h, icon } from "./dom.js";
import { extentOf, holeInWords, momentsOf } from "./moments.js";
import { Notes } from "./notes.js";
import { Player } from "./player.js";
import { SHAPES, badge } from "./signs.js";
import { failure, waiting } from "./states.js";
import { clock, count, duration, plain, said, when } from "./text.js";

/** @typedef {import("./app.js").House} House */

// What the writer has not stored yet comes a little after the answer's last event.
const STORED_AFTER_MS = 2000;
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
  /** @type {AnswerSheet[]} */ #sheets = [];
  /** The replay is in it. @type {AnswerSheet | null} */ #current = null;
  #lastMs = -1;
  #namedMs = -1;
  #answers = h("section", { class: "panel" });
  #moments = h("ol", { class: "moments" });
  #heading = h("h1", { tabindex: -1, id: "session-title" }, "Session");
  #head = h("div", { class: "session-head" });
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #reloading;

  /** @param {House} house @param {string} sessionId @param {number | null} atMs @param {HTMLElement} node */
  constructor(house, sessionId, atMs, node) {
    this.#house = house;
    this.#sessionId = sessionId;
    this.#atMs = atMs;
    this.#node = node;
    node.append(this.#heading, waiting("Opening the session"));
  }

  get #path() {
    return `/v1/sessions/${encodeURIComponent(this.#sessionId)}`;
  }

  async load() {
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
    clearTimeout(this.#reloading);
    this.#player?.close();
  }

  /** @param {Detail} detail */
  #begin(detail) {
    const { session } = detail;
    const extent = extentOf(detail);
    // A session that is over is there to be read at once, and played from wherever one likes; a live one is watched.
    const lengthMs = Math.max(0, extent.last_ms - extent.first_ms);
    const start = { position: Math.min(this.#atMs ?? lengthMs, lengthMs), paused: !extent.is_live || this.#atMs !== null };
    this.#player = new Player(this.#sessionId, this.#house.api.token, start, {
      say: this.#house.say,
      onPosition: (ms) => this.#moved(ms),
      onEvent: (type) => type === "response.done" && this.#player?.isLive && this.#reloadSoon(),
    });
    this.#notes = new Notes(detail, this.#house, this.#player, () => this.#annotate());
    this.#heading.replaceChildren(said((session.first_text ?? "").slice(0, LONGEST_TITLE) || "A session without words"));
    this.#house.entitle(plain(session.first_text ?? session.session_id));
    const player = this.#player;
    // It moves, and what moves loses the focus.
    const wasRead = document.activeElement === this.#heading;
    const left = h("section", { class: "watch", "aria-labelledby": "session-title", onkeydown: (/** @type {KeyboardEvent} */ event) => player.key(event) });
    left.append(h("div", { class: "session-title" }, this.#heading, this.#head), player.node, this.#aside());
    this.#node.replaceChildren(left, h("div", { class: "beside" }, this.#answers, this.#notes.node));
    if (wasRead) this.#heading.focus({ preventScroll: true });
    this.#show(detail);
    this.#sheets[0]?.open();
  }

  /** @param {Detail} detail */
  #show(detail) {
    const tools = { house: this.#house, playFrom: (/** @type {number} */ ms) => this.#player?.playFrom(ms), onReviewed: () => this.#annotate() };
    this.#current = null;
    this.#sheets = detail.answers.map((facts) => new AnswerSheet(facts, detail, tools));
    const list = this.#sheets.length > 0 ? this.#sheets.map(({ node }) => node) : [h("p", { class: "fine" }, "Nothing was answered, or it is not stored yet.")];
    this.#answers.replaceChildren(h("h2", {}, "Answers"), ...list);
    this.#head.replaceChildren(...headOf(detail, this.#exportLink()));
    this.#annotate();
  }

  /** Marks, and the list that says the same. */
  #annotate() {
    const [detail, player] = [this.#detail, this.#player];
    if (!detail || !player) return;
    player.annotate(detail);
    const entries = momentsOf(detail).map(({ kind, atMs, label, text }) =>
      h("li", {}, h("button", { type: "button", class: `moment mark-${kind}`, onclick: () => player.visit(atMs) }, h("span", { class: "at" }, clock(atMs)), icon(SHAPES[kind]), h("span", {}, h("b", {}, label), " ", said(text)))),
    );
    this.#moments.replaceChildren(...entries);
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

  #exportLink() {
    const told = h("span", { class: "fine", role: "status" });
    const button = h("button", { type: "button", class: "quiet", onclick: () => void this.#export(told) }, "Export as JSON lines");
    return h("span", { class: "export" }, button, told);
  }

  /** @param {HTMLElement} told */
  async #export(told) {
    told.textContent = "Preparing…";
    try {
      const href = URL.createObjectURL(await this.#house.api.file(`${this.#path}/export`));
      h("a", { href, download: `${this.#sessionId}.jsonl` }).click();
      setTimeout(() => URL.revokeObjectURL(href), 60_000);
      told.textContent = "Exported.";
    } catch (error) {
      told.textContent = error instanceof Error ? error.message : "It could not be exported.";
    }
  }

  #reloadSoon() {
    this.#reloading ??= setTimeout(async () => {
      this.#reloading = undefined;
      const fresh = await this.#house.api.get(this.#path, {}, this.#abort.signal).catch(() => null);
      if (!fresh || !this.#detail) return;
      const openOnes = new Set(this.#sheets.flatMap(({ node }, index) => (node.open ? [index] : [])));
      Object.assign(this.#detail, fresh);
      this.#show(this.#detail);
      for (const index of openOnes) this.#sheets[index]?.open();
    }, STORED_AFTER_MS);
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

/** Whose session it was, and whether all of it is there. @param {Detail} detail @param {HTMLElement} exporting */
function headOf(detail, exporting) {
  const { session, warnings, masked } = detail;
  const extent = extentOf(detail);
  const { user_id: user, client_id: client, model, created_ms: createdMs, session_id: id } = session;
  const lengthMs = extent.last_ms - extent.first_ms;
  const facts = h("p", { class: "session-facts" }, when(createdMs), " · ", said(user), " with ", said(client), " · ", said(model), ` · ${duration(lengthMs)} · ${count(extent.num_events, "event")}`);
  const line = h("p", { class: "session-tools" }, extent.is_live ? badge("Live", "live") : null, h("code", {}, said(id)), exporting, h("a", { href: address("/console", { user }) }, "More of this user"));
  const nodes = [facts, line];
  if (masked) nodes.push(h("p", { class: "fine" }, "Personal data is covered with •. A sign-in with the scope personal_data shows it."));
  if (warnings?.includes("archive_unavailable")) nodes.push(h("p", { class: "damage" }, icon(SHAPES.hole), " The archive cannot be reached now: what is known of the session is shown, and the replay may have to wait."));
  if (warnings?.includes("not_stored_yet")) nodes.push(h("p", { class: "fine" }, "Not all of this session is stored yet; its answers appear here a little later."));
  if (extent.holes.length > 0) {
    const list = extent.holes.map(({ first, last, reason }) => holeInWords(last - first + 1, reason)).join("; ");
    nodes.push(h("p", { class: "damage" }, icon(SHAPES.hole), ` This recording is not whole: ${list}. The rest is shown as it was.`));
  }
  return nodes;
}
