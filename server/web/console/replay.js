/**
 * The client of a replay: one WebSocket that only listens, told where to be and how fast, and opened again where it was when it drops.
 * Between two words of the server it counts on by itself. Knows nothing of what the events mean.
 *
 * @import { ServerEvent, WireError } from "../realtime.js"
 *
 * @typedef {{ first_sequence_number: number, last_sequence_number: number, reason: string }} Hole
 * @typedef {object} ReplayState
 * @property {string} session_id
 * @property {number} speed
 * @property {boolean} paused
 * @property {number} position            milliseconds since the session's first event
 * @property {number} duration
 * @property {number | null} max_silence_ms
 * @property {number} first_sequence_number
 * @property {number} last_sequence_number
 * @property {boolean} is_live
 * @property {boolean} restarted          all that was given is to be forgotten, and is given anew
 * @property {Hole[]} holes
 *
 * @typedef {{ speed?: number, paused?: boolean, position?: number, max_silence_ms?: number | null }} Wish
 * @typedef {{ state: ReplayState, event: ServerEvent, gap: Hole, done: null, refused: WireError, link: string }} Topics
 *   `link`: what is wrong with the connection, for a person; empty when nothing is
 */

import { realtimeURL } from "../realtime.js";
import { Backoff, judge } from "../reconnect.js";

const SUBPROTOCOL = "realtime";
const KEY_PREFIX = "openai-insecure-api-key.";
const LEFT_BY_CHOICE = 1000;
const BAD_REQUEST = 4000;
const CUT_OFF = 1006;
// The server takes twenty a second; a finger on the scrubber makes more.
const UPDATE_EVERY_MS = 100;
// Where the replay is, after silences that were skipped, only the server knows; and how long a live session has become.
const ASK_EVERY_MS = 1000;
// Every update is answered by an event. A link that died without a word is noticed by this silence only.
const LONGEST_SILENCE_MS = 5_000;
// Before the first word the server looks the session up, and writes down who watches.
const OPEN_WITHIN_MS = 15_000;
// A server that accepts and drops at once must not be called in a tight loop: only a connection this old resets the backoff.
const STABLE_AFTER_MS = 5_000;

export class Replay {
  #sessionId;
  #token;
  /** @type {{ [K in keyof Topics]: Set<(value: Topics[K]) => void> }} */
  #listeners = { state: new Set(), event: new Set(), gap: new Set(), done: new Set(), refused: new Set(), link: new Set() };
  #backoff = new Backoff();
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {ReplayState | null} */ #state = null;
  #toldAt = 0;
  #isDone = false;
  /** Where the server was last told to be, until it is there. @type {number | undefined} */ #sent;
  /** The session ends before it was to begin: it begins at 0, and goes to the end once that is known. */ #isPastEnd = false;
  /** When this connection's first word came. */ #acceptedAt = 0;
  /** How long it seems, until the server says. */ #lengthMs;
  /** @type {Required<Omit<Wish, "max_silence_ms">> & { max_silence_ms: number | null }} */ #wanted;
  /** @type {Wish} */ #unsent = {};
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #sending;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retry;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #silence;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #asking;

  /** @param {string} sessionId @param {string} token @param {{ position: number, paused: boolean, lengthMs: number }} start */
  constructor(sessionId, token, { position, paused, lengthMs }) {
    this.#lengthMs = lengthMs;
    this.#sessionId = sessionId;
    this.#token = token;
    this.#wanted = { position, paused, speed: 1, max_silence_ms: null };
  }

  /** @template {keyof Topics} K @param {K} topic @param {(value: Topics[K]) => void} listener */
  on(topic, listener) {
    this.#listeners[topic].add(listener);
  }

  /** What the server last told. */
  get state() {
    return this.#state;
  }

  get isPaused() {
    return this.#wanted.paused;
  }

  get speed() {
    return this.#wanted.speed;
  }

  /** All there is has been played. */
  get isDone() {
    return this.#isDone;
  }

  /** Told to be elsewhere, and not there yet. */
  get #isSeeking() {
    return this.#sent !== undefined || this.#unsent.position !== undefined;
  }

  get isRunning() {
    return this.#socket !== null && this.#state?.paused === false && !this.#isDone && !this.#isSeeking;
  }

  get durationMs() {
    const { duration, is_live: isLive } = this.#state ?? { duration: this.#lengthMs, is_live: false };
    return isLive ? duration + (performance.now() - this.#toldAt) : duration;
  }

  /** Where it is now, or will be once the server has done what it was told. */
  get positionMs() {
    if (this.#isSeeking || !this.#state) return this.#wanted.position;
    const passed = this.isRunning ? (performance.now() - this.#toldAt) * this.#state.speed : 0;
    return Math.min(this.#state.position + passed, this.durationMs);
  }

  open() {
    clearTimeout(this.#retry);
    const { position, paused, speed, max_silence_ms: silence } = this.#wanted;
    this.#sent = whole(position);
    this.#unsent = {};
    this.#acceptedAt = 0;
    const query = { replay: this.#sessionId, speed: String(speed), paused: String(paused), position: String(this.#sent) };
    const url = realtimeURL(location.origin, silence === null ? query : { ...query, max_silence_ms: String(silence) });
    const socket = new WebSocket(url, [SUBPROTOCOL, KEY_PREFIX + this.#token]);
    this.#socket = socket;
    this.#silence = setTimeout(() => this.#giveUp(), OPEN_WITHIN_MS);
    /** @type {WireError | null} */ let refusal = null;
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      clearTimeout(this.#silence);
      this.#silence = undefined;
      const message = JSON.parse(data);
      if (message.type === "error") refusal = message.error;
      this.#receive(message);
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket === this.#socket) this.#closed(code, refusal);
    });
  }

  close() {
    clearTimeout(this.#retry);
    clearTimeout(this.#sending);
    this.#drop(LEFT_BY_CHOICE);
  }

  /** Where to be, how fast, whether at all. @param {Wish} wish */
  update(wish) {
    if (this.#isDone && wish.position !== undefined) wish = { paused: true, ...wish };
    Object.assign(this.#wanted, wish);
    Object.assign(this.#unsent, wish);
    this.#sending ??= setTimeout(() => this.#flush(), this.#socket ? 0 : UPDATE_EVERY_MS);
  }

  #flush() {
    this.#sending = undefined;
    const wish = this.#unsent;
    if (Object.keys(wish).length === 0 || !this.#socket || !this.#acceptedAt) return;
    this.#unsent = {};
    if (wish.position !== undefined) wish.position = this.#sent = whole(Math.min(wish.position, this.durationMs));
    this.#send(wish);
    this.#sending = setTimeout(() => this.#flush(), UPDATE_EVERY_MS);
  }

  /** @param {Wish} wish */
  #send(wish) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#socket.send(JSON.stringify({ type: "avatar.replay.update", ...wish }));
    this.#silence ??= setTimeout(() => this.#giveUp(), LONGEST_SILENCE_MS);
  }

  /** @param {any} message */
  #receive(message) {
    switch (message.type) {
      case "avatar.replay.updated":
        return this.#updated(message.replay);
      case "avatar.replay.gap":
        return this.#emit("gap", message);
      case "avatar.replay.done":
        this.#isDone = true;
        // Whoever goes back from the end wants to look, not to be played to at once.
        this.#wanted.paused = this.#unsent.paused ?? (this.#isSeeking ? this.#wanted.paused : true);
        if (this.#state) this.#state = { ...this.#state, position: message.position, duration: message.position, is_live: false };
        this.#toldAt = performance.now();
        return this.#emit("done", null);
      case "error":
        // Before the first word it says why the close that follows will happen.
        if (!this.#acceptedAt) return;
        this.#sent = undefined;
        return this.#emit("refused", message.error);
      default:
        return this.#emit("event", message);
    }
  }

  /** @param {ReplayState} state */
  #updated(state) {
    if (state.restarted) {
      this.#isDone = false;
      // Where it was told to be before that, it only passes by.
      if (state.position === this.#sent) this.#sent = undefined;
    }
    this.#state = state;
    this.#toldAt = performance.now();
    // What was asked before it was told to be elsewhere is answered by where it was.
    if (!this.#isSeeking) this.#wanted.position = state.position;
    if (!this.#acceptedAt) {
      this.#acceptedAt = performance.now();
      this.#asking = setInterval(() => this.isRunning && this.#send({}), ASK_EVERY_MS);
      this.#emit("link", "");
      if (this.#isPastEnd && this.#unsent.position === undefined) this.update({ position: state.duration });
      this.#isPastEnd = false;
      this.#sending ??= setTimeout(() => this.#flush(), UPDATE_EVERY_MS);
    }
    this.#emit("state", state);
  }

  /** @param {number} code @param {WireError | null} refusal */
  #closed(code, refusal) {
    this.#wanted.position = this.positionMs;
    this.#drop();
    if (this.#acceptedAt && performance.now() - this.#acceptedAt > STABLE_AFTER_MS) this.#backoff.reset();
    if (code === BAD_REQUEST && refusal?.param === "position" && this.#wanted.position > 0) return this.#beginAtStart();
    const { remedy, reason, isBusy } = judge(code, refusal);
    if (isBusy) this.#backoff.hesitate();
    if (remedy === "retry") {
      this.#emit("link", "The connection was lost. Connecting again.");
      this.#retry = setTimeout(() => this.open(), this.#backoff.next());
    } else {
      this.#emit("link", remedy === "new_token" ? "Your access has ended. Sign in again to go on." : reason);
    }
  }

  /** The session has no such position: it may have ended meanwhile. */
  #beginAtStart() {
    this.#isPastEnd = true;
    this.#wanted.position = 0;
    this.open();
  }

  /** The link is silent: a dead one would take minutes to say so. */
  #giveUp() {
    this.#closed(CUT_OFF, null);
  }

  /** Lets go of the socket. @param {number} [code] */
  #drop(code) {
    clearTimeout(this.#silence);
    clearInterval(this.#asking);
    this.#silence = undefined;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(code);
  }

  /** @template {keyof Topics} K @param {K} topic @param {Topics[K]} value */
  #emit(topic, value) {
    for (const listener of this.#listeners[topic]) listener(value);
  }
}

/** As the server takes positions; never beyond a live session's end, which is where it is now. @param {number} ms */
function whole(ms) {
  return Math.max(0, Math.floor(ms));
}
