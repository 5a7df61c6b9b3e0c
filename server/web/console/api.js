/**
 * The server's API as the console uses it: JSON over fetch with the token in a header, every refusal as one kind of error.
 *
 * @typedef {Record<string, string | number | null | undefined>} Query   empty values are left out
 */

/** The server said no, or could not be reached (`status` 0). */
export class Refusal extends Error {
  /** @param {string} message @param {number} status @param {string} code @param {string} id to be quoted to an operator */
  constructor(message, status, code = "", id = "") {
    super(message);
    this.status = status;
    this.code = code;
    this.id = id;
  }
}

/** @param {string} path @param {Query} query */
export function address(path, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined && value !== "") search.set(name, String(value));
  return search.size > 0 ? `${path}?${search}` : path;
}

export class Api {
  #token;
  #onSignedOut;

  /** @param {string} token @param {(why: string) => void} onSignedOut once the server no longer takes the token */
  constructor(token, onSignedOut) {
    this.#token = token;
    this.#onSignedOut = onSignedOut;
  }

  get token() {
    return this.#token;
  }

  /** @param {string} path @param {Query} query @param {AbortSignal} [signal] @returns {Promise<any>} */
  async get(path, query = {}, signal) {
    return (await this.#ask(address(path, query), signal ? { signal } : {})).json();
  }

  /** @param {string} path @param {unknown} body @returns {Promise<any>} */
  async post(path, body) {
    const headers = { "content-type": "application/json" };
    return (await this.#ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
  }

  /** @param {string} path */
  async delete(path) {
    await this.#ask(path, { method: "DELETE" });
  }

  /** A file as it comes. @param {string} path */
  async file(path) {
    return (await this.#ask(path, {})).blob();
  }

  /** @param {string} path @param {RequestInit} options */
  async #ask(path, options) {
    let reply;
    try {
      reply = await fetch(path, {
        ...options,
        cache: "no-store",
        credentials: "omit",
        headers: { ...options.headers, authorization: `Bearer ${this.#token}` },
      });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Refusal("The server cannot be reached.", 0);
    }
    if (reply.ok) return reply;
    const refusal = await refused(reply);
    if (reply.status === 401) this.#onSignedOut("Your access has ended, or the server does not know this token. Sign in again to go on.");
    throw refusal;
  }
}

/** @param {Response} reply */
async function refused(reply) {
  const body = await reply.json().catch(() => null);
  const { message, code, id } = body?.error ?? {};
  return new Refusal(message || `The server answered ${reply.status}.`, reply.status, code ?? "", reply.status >= 500 ? (id ?? "") : "");
}
