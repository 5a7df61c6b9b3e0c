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
// The server takes twenty a second; a finger on the scrubber makes more.
const UPDATE_EVERY_MS = 100;
// Where the replay is, after silences that were skipped, only the server knows; and how long a live session has become.
const ASK_EVERY_MS = 1000;

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
  /** Told to be elsewhere, and not there yet. */ #isSeeking = false;
  /** @type {Required<Omit<Wish, "max_silence_ms">> & { max_silence_ms: number | null }} */ #wanted;
  /** @type {Wish} */ #unsent = {};
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #sending;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retry;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #asking;

  /** @param {string} sessionId @param {string} token @param {{ position: number, paused: boolean }} start */
  constructor(sessionId, token, { position, paused }) {
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

  get isRunning() {
    return this.#socket !== null && this.#state?.paused === false && !this.#isDone && !this.#isSeeking;
  }

  get durationMs() {
    const { duration, is_live: isLive } = this.#state ?? { duration: 0, is_live: false };
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
    const query = { replay: this.#sessionId, speed: String(speed), paused: String(paused), position: String(Math.round(position)) };
    const url = realtimeURL(location.origin, silence === null ? query : { ...query, max_silence_ms: String(silence) });
    const socket = new WebSocket(url, [SUBPROTOCOL, KEY_PREFIX + this.#token]);
    this.#socket = socket;
    /** @type {WireError | null} */ let refusal = null;
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
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
    clearInterval(this.#asking);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(LEFT_BY_CHOICE);
  }

  /** Where to be, how fast, whether at all. @param {Wish} wish */
  update(wish) {
    if (this.#isDone && wish.position !== undefined) wish = { paused: true, ...wish };
    Object.assign(this.#wanted, wish);
    Object.assign(this.#unsent, wish);
    this.#isSeeking ||= wish.position !== undefined;
    this.#sending ??= setTimeout(() => this.#flush(), this.#socket ? 0 : UPDATE_EVERY_MS);
  }

  #flush() {
    this.#sending = undefined;
    const wish = this.#unsent;
    if (Object.keys(wish).length === 0 || this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#unsent = {};
    this.#send(wish.position === undefined ? wish : { ...wish, position: Math.round(wish.position) });
    this.#sending = setTimeout(() => this.#flush(), UPDATE_EVERY_MS);
  }

  /** @param {Wish} wish */
  #send(wish) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type: "avatar.replay.update", ...wish }));
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
        this.#wanted.paused = this.#unsent.paused ?? true;
        if (this.#state) this.#state = { ...this.#state, position: message.position, duration: message.position, is_live: false };
        this.#toldAt = performance.now();
        return this.#emit("done", null);
      case "error":
        return this.#emit("refused", message.error);
      default:
        return this.#emit("event", message);
    }
  }

  /** @param {ReplayState} state */
  #updated(state) {
    if (state.restarted) {
      this.#isDone = false;
      this.#isSeeking = this.#unsent.position !== undefined;
    }
    this.#state = state;
    this.#toldAt = performance.now();
    // What was asked before it was told to be elsewhere is answered by where it was.
    if (!this.#isSeeking) this.#wanted.position = state.position;
    if (!this.#asking) {
      this.#backoff.reset();
      this.#asking = setInterval(() => this.isRunning && this.#send({}), ASK_EVERY_MS);
      this.#emit("link", "");
      this.#sending ??= setTimeout(() => this.#flush(), UPDATE_EVERY_MS);
    }
    this.#emit("state", state);
  }

  /** @param {number} code @param {WireError | null} refusal */
  #closed(code, refusal) {
    this.#wanted.position = this.positionMs;
    this.#socket = null;
    clearInterval(this.#asking);
    this.#asking = undefined;
    const { remedy, reason } = judge(code, refusal);
    if (remedy === "retry") {
      this.#emit("link", "The connection was lost. Connecting again.");
      this.#retry = setTimeout(() => this.open(), this.#backoff.next());
    } else {
      this.#emit("link", remedy === "new_token" ? "Your access has ended. Sign in again to go on." : reason);
    }
  }

  /** @template {keyof Topics} K @param {K} topic @param {Topics[K]} value */
  #emit(topic, value) {
    for (const listener of this.#listeners[topic]) listener(value);
  }
}
