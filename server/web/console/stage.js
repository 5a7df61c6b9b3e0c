/**
 * What the user saw, shown again: the conversation page's own Conversation, Transcript and Face, fed with the events of a replay. Each
 * restart begins with an empty transcript. Nothing here is sent to anyone.
 *
 * @import { RealtimeClient, ServerEvent, Connection } from "../realtime.js"
 * @import { Answer } from "../answer.js"
 * @import { Mood } from "../face.js"
 * @import { Opinion } from "./moments.js"
 */

import { pace } from "../answer.js";
import { Conversation } from "../conversation.js";
import { Face } from "../face.js";
import { Outbox } from "../outbox.js";
import { Transcript } from "../transcript.js";
import { h, icon } from "./dom.js";
import { SHAPES } from "./signs.js";
import { passage, piece } from "./text.js";

const NOTHING_KEPT = { recall: () => undefined, keep: () => undefined };
// All up to a position comes at once; events further apart than this are played.
const BURST_PAUSE_MS = 60;
const LONGEST_BURST_MS = 600;

/** The one face of the page, with its host: a face listens to the whole window for as long as it lives. @type {{ host: HTMLElement, face: Face } | null} */
let portrait = null;

/** Takes the part of the connection for one restart. */
class Wire {
  /** @type {Connection} */ connection = { state: "reconnecting", attempt: 0, retryInMs: 0, reason: "" };
  /** @type {Array<[topic: string, listener: (value: any) => void]>} */ #listeners = [];

  /** @param {string} topic @param {(value: any) => void} listener */
  on(topic, listener) {
    this.#listeners.push([topic, listener]);
  }

  send() {
    return true;
  }

  /** @param {string} topic @param {unknown} value */
  tell(topic, value) {
    for (const [kind, listener] of this.#listeners) if (kind === topic) listener(value);
  }

  /** What came in a lump has come. */
  catchUp() {
    this.connection = { ...this.connection, state: "connected" };
    this.tell("connection", this.connection);
  }
}

export class Stage {
  #portrait;
  #frame;
  #now;
  #wire = new Wire();
  /** @type {Conversation | null} */ #conversation = null;
  /** @type {Transcript | null} */ #transcript = null;
  #isBehind = true;
  #isPlaying = false;
  #restartedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #settling;
  /** What has come of each text. @type {Map<string, string>} */ #given = new Map();
  /** @type {Map<string, Answer>} */ #answers = new Map();
  /** Those of `Opinion`s that are shown. @type {Set<Opinion>} */ #shown = new Set();
  /** Came in a lump, so that its deltas say nothing of its tokens. @type {WeakSet<Answer>} */ #lumps = new WeakSet();
  /** Items whose text came whole, however late. @type {Set<string>} */ #whole = new Set();

  /** @param {() => number} now where the replay is, in milliseconds */
  constructor(now) {
    this.#now = now;
    if (!portrait) {
      const host = h("div", { class: "portrait", "aria-hidden": "true" });
      portrait = { host, face: new Face(host) };
    }
    this.#portrait = portrait;
    this.#frame = h("div", { class: "screen-log" });
    this.node = h("div", { class: "screen" }, portrait.host, this.#frame);
    this.restart();
  }

  /** @param {boolean} isPlaying */
  set isPlaying(isPlaying) {
    this.#isPlaying = isPlaying;
    this.#refresh();
  }

  /** Forgets all that was shown. */
  restart() {
    const hadFocus = this.#frame.contains(document.activeElement);
    const log = h("div", { class: "transcript", role: "log", "aria-live": "off", "aria-label": "Conversation", "aria-busy": "true", tabindex: 0 });
    const latest = h("button", { type: "button", class: "latest", hidden: true }, "Latest ", h("span", { "aria-hidden": "true" }, "↓"));
    this.#frame.replaceChildren(log, latest);
    if (hadFocus) log.focus({ preventScroll: true });
    this.#given.clear();
    this.#whole.clear();
    this.#answers.clear();
    this.#shown.clear();
    this.#isBehind = true;
    this.#restartedAt = performance.now();
    const transcript = new Transcript(log, latest, () => undefined);
    this.#transcript = transcript;
    this.#wire = new Wire();
    const client = /** @type {RealtimeClient} */ (/** @type {unknown} */ (this.#wire));
    this.#conversation = new Conversation(client, new Outbox(client, NOTHING_KEPT), this.#listeners(transcript), this.#now);
    this.#settle();
    this.#refresh();
  }

  /** @param {ServerEvent & Record<string, any>} event */
  show(event) {
    this.#complete(event);
    this.#wire.tell("event", event);
    if (event.type === "avatar.feedback.created") this.#rated(event.feedback.item_id, event.feedback);
    if (event.type === "avatar.feedback.deleted") this.#rated(event.item_id, null);
    if (this.#isBehind) this.#settle();
  }

  /** Shows what was thought by then. @param {Opinion[]} opinions @param {number} positionMs */
  showOpinions(opinions, positionMs) {
    for (const opinion of opinions) {
      if (opinion.atMs > positionMs || this.#shown.has(opinion) || !this.#answers.has(opinion.itemId)) continue;
      this.#shown.add(opinion);
      this.#rated(opinion.itemId, opinion);
    }
  }

  /** Something cannot be shown here. @param {string} text */
  tear(text) {
    this.#log?.append(h("p", { class: "gap" }, text));
  }

  get #log() {
    return this.#frame.querySelector(".transcript");
  }

  /** @param {Transcript} transcript @returns {ConstructorParameters<typeof Conversation>[2]} */
  #listeners(transcript) {
    return {
      asked: (id, text) => transcript.ask(id, text, false),
      began: (answer) => {
        transcript.begin(answer);
        // Counted from when it was begun: when it was asked for, only the user's own page knows.
        if (!this.#isBehind) answer.askedAtMs ||= this.#now();
        this.#refresh();
      },
      streamed: (answer, delta) => {
        transcript.stream(answer, delta);
        this.#answers.set(answer.itemId, answer);
        if (this.#isBehind) this.#lumps.add(answer);
        if (this.#isBehind || !this.#isPlaying) return;
        this.#portrait.face.say(delta);
        if (answer.numDeltas === 1) this.#refresh();
      },
      ended: (answer) => {
        const isLump = this.#lumps.has(answer) || this.#whole.has(answer.itemId);
        const numTokens = answer.status === "completed" ? answer.numTokens : 0;
        transcript.end(answer, isLump ? { firstTokenMs: null, tokensPerS: null, numTokens } : pace(answer));
        this.#refresh();
      },
      withdrawn: (answer) => transcript.withdraw(answer),
      cut: (answer, numUnits) => transcript.cut(answer, numUnits),
      noticed: () => undefined,
      returned: () => undefined,
      rebuilt: () => transcript.rebuild(),
      restarted: () => transcript.divide(),
    };
  }

  /** A finished text comes without its deltas: what is missing of it is given as one. @param {ServerEvent & Record<string, any>} event */
  #complete(event) {
    const kind = /** @type {string} */ (event.type);
    if (kind === "response.output_text.delta") {
      const key = keyOf(event);
      this.#given.set(key, (this.#given.get(key) ?? "") + String(event["delta"]));
    } else if (kind === "response.output_text.done") {
      const text = String(event["text"] ?? "");
      const rest = text.slice((this.#given.get(keyOf(event)) ?? "").length);
      this.#given.set(keyOf(event), text);
      const { response_id, item_id } = /** @type {Record<string, any>} */ (event);
      if (rest && rest === text) this.#whole.add(item_id);
      if (rest) this.#wire.tell("event", { type: "response.output_text.delta", response_id, item_id, delta: rest });
    }
  }

  /** What the user thought of an answer, under it. @param {string} itemId @param {{ rating?: string | null, reason?: string | null, comment?: string | null,
   *   start?: number | null | undefined, end?: number | null | undefined } | null} opinion */
  #rated(itemId, opinion) {
    const answer = this.#answers.get(itemId);
    const foot = answer && this.#transcript?.foot(answer);
    if (!foot) return;
    const isFollowing = this.#frame.querySelector(".latest:not([hidden])") === null;
    foot.querySelector(".opinion")?.remove();
    const { rating, reason, comment, start, end } = opinion ?? {};
    if (rating !== "up" && rating !== "down") return;
    const what = h("p", {}, icon(SHAPES[rating]), ` Thumbs ${rating} from the user${reason ? `: ${reason}` : ""}`);
    const about = piece(this.#given.get(keyOf({ item_id: itemId })) ?? "", start, end);
    foot.append(h("div", { class: `opinion thumb-${rating}` }, what, about, comment ? passage(comment) : null));
    if (isFollowing) this.#transcript?.follow();
  }

  #settle() {
    clearTimeout(this.#settling);
    if (performance.now() - this.#restartedAt > LONGEST_BURST_MS) return this.#caughtUp();
    this.#settling = setTimeout(() => this.#caughtUp(), BURST_PAUSE_MS);
  }

  #caughtUp() {
    this.#isBehind = false;
    this.#wire.catchUp();
    this.#log?.setAttribute("aria-busy", "false");
    this.#refresh();
  }

  #refresh() {
    const mood = this.#mood();
    this.#portrait.face.mood = mood;
    this.node.dataset["mood"] = mood;
  }

  /** @returns {Mood} */
  #mood() {
    const answer = this.#conversation?.answer;
    if (!this.#isPlaying || !answer) return "idle";
    return answer.status === "waiting" ? "thinking" : "speaking";
  }
}

/** @param {Record<string, any>} event */
function keyOf({ item_id: itemId, content_index: index }) {
  return `${itemId}/${index ?? 0}`;
}
