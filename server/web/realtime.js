/**
 * The Realtime protocol's client: one WebSocket at a time, opened again when it drops, and said to be connected once all that
 * was missed has come. It owns the connection only: no page, and no idea of what a conversation is about.
 *
 * @typedef {{ value: string, model: string }} Token
 * @typedef {"accepted" | "refused" | "unreachable"} Outcome  What became of the last token.
 * @typedef {{ get(): Promise<Token>, outcome(result: Outcome): void }} Tokens
 *
 * @typedef {"idle" | "connecting" | "connected" | "reconnecting" | "taken" | "stopped" | "signed_out"} State
 *   `taken`: another tab has the conversation.
 * @typedef {{ state: State, attempt: number, retryInMs: number, reason: string }} Connection
 *
 * @typedef {{ type: string, code?: string | null, message?: string, param?: string | null, event_id?: string | null }} WireError
 * @typedef {object} WireSession
 * @property {string} id
 * @property {{ enabled?: boolean, resumed?: boolean, gap?: boolean }} [resumption]
 * @property {{ group_id?: string } | null} [tracing]
 * @typedef {{ id: string, type: string, role?: string, status?: string, content?: Array<{ text?: string }> }} WireItem
 * @typedef {object} WireResponse
 * @property {string} id
 * @property {"in_progress" | "completed" | "cancelled" | "incomplete" | "failed"} status
 * @property {string | null} [conversation_id]  null: apart from the conversation
 * @property {Record<string, string> | null} [metadata]
 * @property {{ reason?: string, error?: { code?: string | null, message?: string | null } | null } | null} [status_details]
 * @property {{ output_tokens?: number } | null} [usage]
 *
 * @typedef {{ sequence_number?: number } & (
 *     { type: "session.created" | "session.updated", session: WireSession }
 *   | { type: "error", error: WireError }
 *   | { type: "response.created" | "response.done", response: WireResponse }
 *   | { type: "response.output_text.delta", response_id: string, item_id: string, delta: string }
 *   | { type: "conversation.item.added", item: WireItem }
 *   | { type: "avatar.item.truncated", item_id: string, char_end: number }
 *   | { type: "avatar.feedback.created", feedback: import("./feedback.js").WireFeedback }
 *   | { type: "avatar.feedback.deleted", feedback_id: string, item_id: string })} ServerEvent
 *   The events the pages act on; any other `type` arrives too, and falls through a `switch`.
 *
 * @typedef {{ connection: Connection, event: ServerEvent, lost: null }} Topics
 *   `lost`: the server no longer knows the conversation; the next connection begins another.
 */

import { Backoff, judge } from "./reconnect.js";

/** @typedef {import("./journey.js").Journey} Journey */

const SUBPROTOCOL = "realtime";
const KEY_PREFIX = "openai-insecure-api-key.";
const LEFT_BY_CHOICE = 1000;

// Every event that is sent is answered by one. A link that died without a word is noticed by this silence only.
const LONGEST_SILENCE_MS = 15_000;
// A server that accepts and drops at once must not be called in a tight loop: only a connection this old resets the backoff.
const STABLE_AFTER_MS = 5_000;

/** Thrown by `Tokens.get` when only a person can supply the next token. */
export class SignInNeeded extends Error {}

/** The path of a realtime endpoint as a WebSocket address on `origin` (`https:` → `wss:`).
 * @param {string} origin @param {Record<string, string>} query */
export function realtimeURL(origin, query) {
  const url = new URL("/v1/realtime", origin);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = new URLSearchParams(query).toString();
  return url;
}

export class RealtimeClient {
  #origin;
  #tokens;
  #journey;
  #backoff = new Backoff();
  /** @type {Connection} */ #connection = { state: "idle", attempt: 0, retryInMs: 0, reason: "" };
  /** @type {{ [K in keyof Topics]: Set<(value: Topics[K]) => void> }} */
  #listeners = { connection: new Set(), event: new Set(), lost: new Set() };
  /** @type {WebSocket | null} */ #socket = null;
  #everConnected = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retry;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #silence;
  // Whatever a superseded attempt still reports is ignored by comparing this number.
  #generation = 0;

  /** @param {{ origin: string, tokens: Tokens, journey: Journey }} options */
  constructor({ origin, tokens, journey }) {
    this.#origin = origin;
    this.#tokens = tokens;
    this.#journey = journey;
  }

  get connection() {
    return this.#connection;
  }

  /** @template {keyof Topics} K @param {K} topic @param {(value: Topics[K]) => void} listener */
  on(topic, listener) {
    this.#listeners[topic].add(listener);
  }

  /** Connects, or tries again at once when a retry is waiting. Does nothing while connected or connecting. */
  open() {
    if (this.#socket) return;
    this.#backoff.reset();
    void this.#connect();
  }

  /** Ends the conversation's connection for good, until the next `open`. */
  close() {
    this.#socket?.close(LEFT_BY_CHOICE);
    this.#drop();
    this.#announce({ state: "idle" });
  }

  /** True if the event was handed to the socket. @param {{ type: string, [field: string]: unknown }} event */
  send(event) {
    if (this.#connection.state !== "connected" || this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(event));
    this.#silence ??= setTimeout(() => this.#giveUp(), LONGEST_SILENCE_MS);
    return true;
  }

  async #connect() {
    this.#drop();
    const generation = this.#generation;
    const isCurrent = () => generation === this.#generation;
    this.#announce({ state: this.#everConnected || this.#backoff.attempt > 0 ? "reconnecting" : "connecting" });
    let token;
    try {
      token = await this.#tokens.get();
    } catch (error) {
      if (!isCurrent()) return;
      if (error instanceof SignInNeeded) this.#announce({ state: "signed_out", reason: error.message });
      else this.#retryLater();
      return;
    }
    if (isCurrent()) this.#openSocket(token, isCurrent);
  }

  /** @param {Token} token @param {() => boolean} isCurrent */
  #openSocket({ value, model }, isCurrent) {
    let socket;
    try {
      socket = new WebSocket(realtimeURL(this.#origin, { model, ...this.#journey.depart() }), [SUBPROTOCOL, KEY_PREFIX + value]);
    } catch {
      // The only argument that varies is the token: it holds a character that no subprotocol may hold.
      this.#tokens.outcome("refused");
      this.#retryLater();
      return;
    }
    this.#socket = socket;
    let acceptedAt = 0;
    /** @type {WireError | null} */ let refusal = null;
    this.#silence = setTimeout(() => this.#giveUp(), LONGEST_SILENCE_MS);

    socket.addEventListener("message", (message) => {
      if (!isCurrent()) return;
      this.#heard();
      const event = parse(message.data);
      if (!event) return;
      if (!acceptedAt && event.type === "session.created") {
        acceptedAt = performance.now();
        this.#tokens.outcome("accepted");
        socket.send(JSON.stringify(this.#journey.hello()));
      }
      // An error before the session exists says why the close that follows will happen.
      if (acceptedAt) this.#received(event);
      else if (event.type === "error") refusal = event.error;
    });

    socket.addEventListener("close", ({ code }) => {
      if (!isCurrent()) return;
      if (acceptedAt && performance.now() - acceptedAt > STABLE_AFTER_MS) this.#backoff.reset();
      if (!acceptedAt && !refusal) this.#tokens.outcome("unreachable");
      this.#drop();
      this.#closed(code, refusal);
    });
  }

  /** @param {ServerEvent} event */
  #received(event) {
    const isNew = this.#journey.accept(event);
    if (this.#journey.arrives(event)) {
      this.#everConnected = true;
      // Before it is told: whoever then sends what has waited is to be answered in time.
      clearTimeout(this.#silence);
      this.#silence = undefined;
      this.#announce({ state: "connected" });
    }
    if (isNew) this.#emit("event", event);
  }

  /** @param {number} code @param {WireError | null} refusal */
  #closed(code, refusal) {
    const { remedy, reason, isBusy } = judge(code, refusal);
    if (isBusy) this.#backoff.hesitate();
    switch (remedy) {
      case "taken":
        return this.#announce({ state: "taken", reason });
      case "stop":
        return this.#announce({ state: "stopped", reason });
      case "new_token":
        this.#tokens.outcome("refused");
        return this.#retryLater();
      case "new_conversation":
        this.#journey.forget();
        this.#backoff.reset(); // it answers, and what it refused is not asked for again
        this.#emit("lost", null);
        return this.#retryLater();
      case "retry":
        return this.#retryLater();
    }
  }

  #retryLater() {
    const retryInMs = this.#backoff.next();
    this.#announce({ state: "reconnecting", retryInMs });
    this.#retry = setTimeout(() => void this.#connect(), retryInMs);
  }

  /** Something came. Until all has come, silence is limited; then only after something was sent. */
  #heard() {
    clearTimeout(this.#silence);
    this.#silence = undefined;
    if (this.#connection.state !== "connected") this.#silence = setTimeout(() => this.#giveUp(), LONGEST_SILENCE_MS);
  }

  /** The link is silent: a dead one would take minutes to say so. */
  #giveUp() {
    this.#drop();
    this.#retryLater();
  }

  /** Lets go of the socket. Without a code: one that says "normal" would end the conversation. */
  #drop() {
    this.#generation += 1;
    clearTimeout(this.#retry);
    clearTimeout(this.#silence);
    this.#silence = undefined;
    this.#socket?.close();
    this.#socket = null;
  }

  /** @param {Pick<Connection, "state"> & Partial<Connection>} change */
  #announce(change) {
    this.#connection = { retryInMs: 0, reason: "", ...change, attempt: this.#backoff.attempt };
    this.#emit("connection", this.#connection);
  }

  /** @template {keyof Topics} K @param {K} topic @param {Topics[K]} value */
  #emit(topic, value) {
    for (const listener of this.#listeners[topic]) listener(value);
  }
}

/** @param {unknown} data @returns {ServerEvent | null} */
function parse(data) {
  if (typeof data !== "string") return null;
  try {
    const event = JSON.parse(data);
    return typeof event?.type === "string" ? event : null;
  } catch {
    return null;
  }
}
