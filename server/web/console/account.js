/**
 * Who sits here: the token, in this tab's session storage and nowhere else, and what the server says of its bearer.
 *
 * @typedef {{ subject: string, role: "user" | "support" | "admin", client_id: string, scopes: string[], expires_at: number,
 *   feedback_reasons: string[] }} Me
 */

import { Api, Refusal } from "./api.js";

const KEY = "flueman.console.token";

export class Account {
  #onChange;
  /** @type {Api | null} */ #api = null;
  /** @type {Me | null} */ #me = null;
  #why = "";

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get api() {
    return this.#api;
  }

  get me() {
    return this.#me;
  }

  /** Why one has to sign in, when that needs saying. */
  get why() {
    return this.#why;
  }

  /** Signs in with the token that this tab has kept, if there is one. */
  async resume() {
    const token = remembered();
    if (token) await this.signIn(token).catch(() => undefined);
  }

  /** @param {string} token */
  async signIn(token) {
    try {
      // What a header and a subprotocol can hold (RFC 9110, token); what does not fit is none.
      if (!/^[\w!#$%&'*+.^`|~-]+$/.test(token)) throw new Refusal("This is not a token: it holds characters that no token has.", 401);
      // What was asked with a token before this one may be refused late.
      const api = new Api(token, (why) => this.#api === api && this.signOut(why));
      this.#me = await api.get("/v1/me");
      this.#api = api;
      this.#why = "";
      remember(token);
    } catch (error) {
      this.#why = error instanceof Refusal && error.status !== 401 ? error.message : "The server did not accept this token. Check it and try again.";
      throw error;
    } finally {
      this.#onChange();
    }
  }

  /** A token for support, which only a server in development gives, to its own machine. */
  async signInForDevelopment() {
    const reply = await fetch("/dev/token", {
      method: "POST",
      cache: "no-store",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ role: "support" }),
    }).catch(() => null);
    if (!reply?.ok) {
      this.#why = reply?.status === 404 ? "This server gives no development tokens." : "The server gave no development token.";
      this.#onChange();
      return;
    }
    await this.signIn((await reply.json()).value).catch(() => undefined);
  }

  signOut(why = "") {
    this.#why = why;
    if (this.#me === null) return;
    this.#api = this.#me = null;
    remember("");
    this.#onChange();
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} token */
function remember(token) {
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Storage is forbidden: the token lives as long as the page.
  }
}
