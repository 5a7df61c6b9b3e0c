/**
 * When to connect again, and whether to: what each close code asks for, and how long to wait. Opens nothing itself.
 *
 * @typedef {"retry" | "new_token" | "new_conversation" | "taken" | "stop"} Remedy
 * @typedef {{ remedy: Remedy, reason: string, isBusy: boolean }} Verdict   isBusy: the server asked not to come back at once
 * @typedef {{ message?: string, param?: string | null }} Refusal   the error that a server sends before it closes
 */

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 10_000;

/** Going away, no code, cut off, crashed, restarting, overloaded, TLS: what the SDKs retry too. */
const PASSING = new Set([1001, 1005, 1006, 1011, 1012, 1013, 1015]);
const BUSY = 1013;

/** Invalid key, and a token that expired or was revoked during the session. */
const TOKEN_REFUSED = new Set([3000, 4401]);

const BAD_REQUEST = 4000;
const SUPERSEDED = 4001;

const REASONS = new Map([
  [1000, "The server ended this connection."],
  [1003, "The server refused what this page sent."],
  [1007, "The server refused what this page sent."],
  [1008, "The server refused this connection."],
  [1009, "The server refused a message that was too large."],
  [BAD_REQUEST, "The server does not offer this model."],
]);

/** What a close asks for. @param {number} code @param {Refusal | null} refusal @returns {Verdict} */
export function judge(code, refusal) {
  const reason = refusal?.message || REASONS.get(code) || `The server ended this connection (${code}).`;
  return { remedy: remedy(code, refusal), reason, isBusy: code === BUSY };
}

/** @param {number} code @param {Refusal | null} refusal @returns {Remedy} */
function remedy(code, refusal) {
  if (PASSING.has(code)) return "retry";
  if (TOKEN_REFUSED.has(code)) return "new_token";
  if (code === SUPERSEDED) return "taken";
  const isUnknown = refusal?.param === "conversation_id" || refusal?.param === "starting_after";
  return code === BAD_REQUEST && isUnknown ? "new_conversation" : "stop";
}

/** The waits between tries: none before the first, then 0.5 s, 1 s, 2 s … 10 s. */
export class Backoff {
  #attempt = 0;

  /** How many waits were handed out since the last `reset`. */
  get attempt() {
    return this.#attempt;
  }

  reset() {
    this.#attempt = 0;
  }

  /** Skips the try that is not waited for. */
  hesitate() {
    this.#attempt = Math.max(this.#attempt, 1);
  }

  /** Milliseconds until the next try. */
  next() {
    const attempt = this.#attempt++;
    if (attempt === 0) return 0;
    const ceiling = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (attempt - 1));
    // Half fixed, half random: a restarted server must not meet all its clients in the same instant.
    return Math.round(ceiling * (0.5 + Math.random() / 2));
  }
}
