/**
 * The Realtime protocol's client: one WebSocket at a time, opened with a fresh token, opened again with backoff when it
 * drops. It owns the connection only: no page, and no idea of what a conversation is.
 *
 * @typedef {{ value: string, model: string }} Token
 * @typedef {"accepted" | "refused" | "unreachable"} Outcome  What became of the last token.
 * @typedef {{ get(): Promise<Token>, outcome(result: Outcome): void }} Tokens
 *
 * @typedef {"idle" | "connecting" | "connected" | "reconnecting" | "stopped" | "signed_out"} State
 * @typedef {{ state: State, attempt: number, retryInMs: number, reason: string }} Connection
 *
 * @typedef {{ type: string, code?: string | null, message?: string, event_id?: string | null }} WireError
 * @typedef {object} WireResponse
 * @property {string} id
 * @property {"in_progress" | "completed" | "cancelled" | "incomplete" | "failed"} status
 * @property {{ reason?: string, error?: { code?: string | null, message?: string | null } | null } | null} [status_details]
 * @property {{ output_tokens?: number } | null} [usage]
 *
 * @typedef {{ type: "session.created", session: { id: string } }
 *   | { type: "error", error: WireError }
 *   | { type: "response.created" | "response.done", response: WireResponse }
 *   | { type: "response.output_text.delta", response_id: string, item_id: string, delta: string }
 *   | { type: "conversation.item.done", item: { id: string, role?: string } }} ServerEvent
 *   The events the pages act on; any other `type` arrives too, and falls through a `switch`.
 *
 * @typedef {{ connection: Connection, event: ServerEvent }} Topics
 */

const SUBPROTOCOL = "realtime";
const KEY_PREFIX = "openai-insecure-api-key.";

const HANDSHAKE_LIMIT_MS = 10_000;
const FIRST_DELAY_MS = 400;
const LONGEST_DELAY_MS = 15_000;
// A server that accepts and drops at once must not be called in a tight loop: only a connection this old resets the backoff.
const STABLE_AFTER_MS = 5_000;

/** Close codes after which a fresh token is the remedy: invalid key, expired mid-session. */
const TOKEN_REFUSED = new Set([3000, 4401]);

/** Close codes after which trying again by itself would only repeat the failure. */
const FINAL = new Map([
  [1003, "The server refused what this page sent."],
  [1007, "The server refused what this page sent."],
  [1008, "The server refused this connection."],
  [1009, "The server refused a message that was too large."],
  [4000, "The server does not offer this model."],
  [4001, "This conversation is open in another window."],
]);

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
  /** @type {(token: Token) => URL} */ #url;
  /** @type {Tokens} */ #tokens;
  /** @type {Connection} */ #connection = { state: "idle", attempt: 0, retryInMs: 0, reason: "" };
  /** @type {{ [K in keyof Topics]: Set<(value: Topics[K]) => void> }} */
  #listeners = { connection: new Set(), event: new Set() };
  /** @type {WebSocket | null} */ #socket = null;
  #attempt = 0;
  #everConnected = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  // Whatever a superseded attempt still reports is ignored by comparing this number.
  #generation = 0;

  /** @param {{ url: (token: Token) => URL, tokens: Tokens }} options */
  constructor({ url, tokens }) {
    this.#url = url;
    this.#tokens = tokens;
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
    if (this.#socket || this.#connection.state === "connected") return;
    this.#attempt = 0;
    void this.#connect();
  }

  /** Ends the connection for good, until the next `open`. */
  close() {
    this.#drop();
    this.#announce({ state: "idle" });
  }

  /** True if the event was handed to the socket. @param {{ type: string, [field: string]: unknown }} event */
  send(event) {
    if (this.#connection.state !== "connected" || this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(event));
    return true;
  }

  async #connect() {
    this.#drop();
    const generation = this.#generation;
    const isCurrent = () => generation === this.#generation;
    this.#announce({ state: this.#everConnected || this.#attempt > 0 ? "reconnecting" : "connecting" });
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
  #openSocket(token, isCurrent) {
    let socket;
    try {
      socket = new WebSocket(this.#url(token), [SUBPROTOCOL, KEY_PREFIX + token.value]);
    } catch {
      // The only argument that varies is the token: it holds a character that no subprotocol may hold.
      this.#tokens.outcome("refused");
      this.#retryLater();
      return;
    }
    this.#socket = socket;
    let connectedAt = 0;
    let refusal = "";
    const handshake = setTimeout(() => socket.close(), HANDSHAKE_LIMIT_MS);

    socket.addEventListener("message", (message) => {
      if (!isCurrent()) return;
      const event = parse(message.data);
      if (!event) return;
      if (event.type === "session.created") {
        clearTimeout(handshake);
        connectedAt = performance.now();
        this.#everConnected = true;
        this.#tokens.outcome("accepted");
        this.#announce({ state: "connected" });
      }
      // An error before the session exists says why the close that follows will happen.
      if (!connectedAt) refusal = event.type === "error" ? (event.error.message ?? "") : refusal;
      else this.#emit("event", event);
    });

    socket.addEventListener("close", ({ code }) => {
      clearTimeout(handshake);
      if (!isCurrent()) return;
      this.#socket = null;
      if (connectedAt && performance.now() - connectedAt > STABLE_AFTER_MS) this.#attempt = 0;
      if (TOKEN_REFUSED.has(code)) this.#tokens.outcome("refused");
      else if (!connectedAt) this.#tokens.outcome("unreachable");
      const reason = FINAL.get(code);
      if (reason) this.#announce({ state: "stopped", reason: refusal || reason });
      else this.#retryLater();
    });
  }

  #retryLater() {
    const ceiling = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt);
    // Half fixed, half random: a restarted server must not meet all its clients in the same instant.
    const retryInMs = Math.round(ceiling * (0.5 + Math.random() / 2));
    this.#attempt += 1;
    this.#announce({ state: "reconnecting", retryInMs });
    this.#timer = setTimeout(() => void this.#connect(), retryInMs);
  }

  #drop() {
    this.#generation += 1;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
  }

  /** @param {Pick<Connection, "state"> & Partial<Connection>} change */
  #announce(change) {
    this.#connection = { retryInMs: 0, reason: "", ...change, attempt: this.#attempt };
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
