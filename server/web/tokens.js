/**
 * Where the page's access token comes from: the development endpoint if the server has one, otherwise the person.
 * A token lives in this object only; it is never stored and never put in a URL.
 */

import { SignInNeeded } from "./realtime.js";

/** @typedef {import("./realtime.js").Token} Token */

const DEFAULT_MODEL = "demo";
// A token closer to its end than this may not live as long as the handshake takes.
const FRESH_FOR_MS = 60_000;

export class TokenSource {
  #pasted = "";
  #model = DEFAULT_MODEL;
  #trusted = false;
  #complaint = "";
  /** @type {Token | null} */ #given = null;
  #givenUntilMs = 0;

  /** A token for one connection: the last one while it is good for long enough. @returns {Promise<Token>} */
  async get() {
    if (this.#pasted) return { value: this.#pasted, model: this.#model };
    if (this.#given && Date.now() < this.#givenUntilMs - FRESH_FOR_MS) return this.#given;
    const reply = await fetch("/dev/token", { method: "POST", cache: "no-store" });
    // 403: a server in development gives tokens to its own machine only, and this may be a phone.
    if ([403, 404, 405].includes(reply.status)) throw new SignInNeeded(this.#complaint);
    if (!reply.ok) throw new Error(`no token: HTTP ${reply.status}`);
    const { value, model, expires_at: expiresAtS } = await reply.json();
    this.#given = { value, model: model || DEFAULT_MODEL };
    this.#givenUntilMs = (expiresAtS || 0) * 1000;
    return this.#given;
  }

  /** @param {string} token @param {string} model */
  paste(token, model) {
    this.#pasted = token.trim();
    this.#model = model.trim() || DEFAULT_MODEL;
    this.#trusted = false;
    this.#complaint = "";
  }

  /** @param {import("./realtime.js").Outcome} result */
  outcome(result) {
    if (result === "accepted") this.#trusted = true;
    // A clock that is wrong, or a server whose keys are new: whatever the token says of itself, it is no good.
    if (result === "refused") this.#given = null;
    // A browser cannot tell a refused handshake from a dead server, so a token that never worked is doubted first.
    const isDoubtful = result === "refused" || (result === "unreachable" && !this.#trusted);
    if (!this.#pasted || !isDoubtful) return;
    this.#pasted = "";
    this.#complaint = this.#trusted
      ? "Your access has ended. Paste a new token to go on."
      : "The server did not accept this token. Check it and try again.";
  }
}
