/**
 * Ratings over plain HTTP, for answers whose conversation no socket leads to any more, or does not know of them. One request a call;
 * retries nothing, keeps nothing.
 *
 * @typedef {object} WireFeedback
 * @property {string} id
 * @property {string} item_id
 * @property {"up" | "down" | null} rating  null: withdrawn
 * @property {string | null} [reason]
 * @property {string | null} [comment]
 * @property {number} [rated_at_ms]
 *
 * @typedef {{ status: "kept", feedback: WireFeedback | null } | { status: "refused", message: string } | { status: "failed" }} Reply
 *   `kept`: this holds now; `failed`: it may be tried again
 */

/** @import { Tokens } from "./realtime.js" */

const UNKNOWN = 404;
// Not our mistake, and perhaps over soon: signed out, too slow, too many.
const PASSING = new Set([401, 408, 425, 429]);
const LONGEST_WAIT_MS = 15_000;

export class FeedbackPost {
  #origin;
  #tokens;

  /** @param {{ origin: string, tokens: Tokens }} options */
  constructor({ origin, tokens }) {
    this.#origin = origin;
    this.#tokens = tokens;
  }

  /** @param {string} sessionId @param {string} itemId @param {object} feedback @returns {Promise<Reply>} */
  save(sessionId, itemId, feedback) {
    return this.#ask("POST", "/v1/feedback", { session_id: sessionId, item_id: itemId, feedback });
  }

  /** @param {string} sessionId @param {string} itemId @param {string} feedbackId @param {number} atMs @returns {Promise<Reply>} */
  async withdraw(sessionId, itemId, feedbackId, atMs) {
    const query = new URLSearchParams({ session_id: sessionId, item_id: itemId, rated_at_ms: String(atMs) });
    const reply = await this.#ask("DELETE", `/v1/feedback/${encodeURIComponent(feedbackId)}?${query}`);
    // Nothing to withdraw: what was wanted is so.
    return reply.status === "refused" && reply.isUnknown ? { status: "kept", feedback: null } : reply;
  }

  /** The reasons that a rating may give; null if the server does not say. @returns {Promise<string[] | null>} */
  async reasons() {
    try {
      const answer = await this.#fetch("GET", "/v1/me");
      return answer.ok ? ((await answer.json()).feedback_reasons ?? null) : null;
    } catch {
      return null;
    }
  }

  /** @param {string} method @param {string} path @param {object} [body] @returns {Promise<Reply & { isUnknown?: boolean }>} */
  async #ask(method, path, body) {
    try {
      const answer = await this.#fetch(method, path, body);
      if (answer.ok) return { status: "kept", feedback: (await answer.json()).feedback };
      if (answer.status >= 500 || PASSING.has(answer.status)) return { status: "failed" };
      return { status: "refused", message: await complaint(answer), isUnknown: answer.status === UNKNOWN };
    } catch {
      return { status: "failed" };
    }
  }

  /** @param {string} method @param {string} path @param {object} [body] */
  async #fetch(method, path, body) {
    const { value } = await this.#tokens.get();
    return fetch(new URL(path, this.#origin), {
      method,
      headers: { Authorization: `Bearer ${value}`, "Content-Type": "application/json" },
      signal: AbortSignal.timeout(LONGEST_WAIT_MS),
      cache: "no-store",
      ...(body && { body: JSON.stringify(body) }),
    });
  }
}

/** What a refusal says for itself. @param {Response} answer */
async function complaint(answer) {
  if (answer.status === UNKNOWN) return "The server no longer knows this answer.";
  const body = await answer.json().catch(() => null);
  return String(body?.error?.message || `The server refused it (${answer.status}).`);
}
