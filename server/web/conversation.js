/**
 * What was asked and what is being answered, over one `RealtimeClient`: turns, interruptions, and the pace of each answer.
 * Knows the protocol's events and a clock; knows nothing of the page.
 *
 * @typedef {"waiting" | "streaming" | "completed" | "cancelled" | "incomplete" | "failed" | "interrupted"} Status
 *   `interrupted` is ours: the connection ended before the answer did.
 *
 * @typedef {object} Answer
 * @property {string} question
 * @property {string} sessionId
 * @property {string} requestId      our event_id of the `response.create`
 * @property {string} responseId     empty until `response.created`
 * @property {Status} status
 * @property {string} detail         the server's reason or message, when there is one
 * @property {boolean} isStopping    a cancel is on its way
 * @property {boolean} isSuperseded  it was stopped because the person spoke again
 * @property {number} askedAtMs
 * @property {number} firstTokenAtMs 0 until the first delta
 * @property {number} lastTokenAtMs
 * @property {number} numDeltas
 * @property {number} numTokens      as the server counted them; 0 until it has
 *
 * @typedef {{ firstTokenMs: number | null, tokensPerS: number | null, numTokens: number }} Pace
 *
 * @typedef {object} Listeners
 * @property {(text: string) => void} asked
 * @property {(answer: Answer) => void} began
 * @property {(answer: Answer, delta: string) => void} streamed
 * @property {(answer: Answer) => void} ended
 * @property {(message: string) => void} noticed
 * @property {() => void} restarted   a new, empty dialogue has replaced one that had turns
 */

/** @typedef {import("./realtime.js").RealtimeClient} RealtimeClient */
/** @typedef {import("./realtime.js").ServerEvent} ServerEvent */
/** @typedef {import("./realtime.js").WireError} WireError */
/** @typedef {import("./realtime.js").WireResponse} WireResponse */

export const MAX_MESSAGE_BYTES = 64 * 1024;

const encoder = new TextEncoder();
let numEvents = 0;
const nextEventId = () => `page_${(numEvents += 1)}`;

/** @param {string} text */
function userMessage(text) {
  return {
    type: "conversation.item.create",
    event_id: nextEventId(),
    item: { type: "message", role: "user", content: [{ type: "input_text", text }] },
  };
}

/** Bytes that `text` takes on the wire as one message, envelope and escapes included. @param {string} text */
export function messageBytes(text) {
  return encoder.encode(JSON.stringify(userMessage(text))).length;
}

/** Time to first token and tokens per second after it, as a reader of the stream sees them. @param {Answer} answer @returns {Pace} */
export function pace(answer) {
  // A cancelled answer's count includes tokens that never left the server; what arrived is the honest number.
  const numTokens = answer.status === "cancelled" ? answer.numDeltas : answer.numTokens || answer.numDeltas;
  const streamedS = (answer.lastTokenAtMs - answer.firstTokenAtMs) / 1000;
  return {
    firstTokenMs: answer.firstTokenAtMs ? answer.firstTokenAtMs - answer.askedAtMs : null,
    tokensPerS: numTokens > 1 && streamedS > 0 ? (numTokens - 1) / streamedS : null,
    numTokens,
  };
}

export class Conversation {
  #client;
  #on;
  #now;
  /** @type {Answer | null} */ #answer = null;
  /** @type {string[]} */ #unsent = [];
  #sessionId = "";
  #numTurns = 0;

  /** @param {RealtimeClient} client @param {Listeners} listeners @param {() => number} now milliseconds */
  constructor(client, listeners, now = () => performance.now()) {
    this.#client = client;
    this.#on = listeners;
    this.#now = now;
    client.on("event", (event) => this.#receive(event));
    client.on("connection", ({ state }) => {
      if (state !== "connected") this.#disconnected();
    });
  }

  /** The answer being waited for or streamed, if any. */
  get answer() {
    return this.#answer;
  }

  /** Says `text`; an answer still streaming is stopped first, and asked for once it has ended. @param {string} text */
  say(text) {
    this.#on.asked(text);
    this.#unsent.push(text);
    if (!this.#answer) this.#sendUnsent();
    else this.#cancel({ isSuperseded: true });
  }

  /** Stops the current answer. */
  stop() {
    if (this.#answer) this.#cancel({ isSuperseded: false });
  }

  /** Asks again for an answer that failed or was cut off. @param {Answer} answer */
  retry(answer) {
    if (this.#answer) return;
    if (answer.sessionId === this.#sessionId && answer.requestId) this.#respond(answer.question);
    else this.say(answer.question);
  }

  /** @param {{ isSuperseded: boolean }} why */
  #cancel({ isSuperseded }) {
    const answer = this.#answer;
    if (!answer) return;
    answer.isSuperseded ||= isSuperseded;
    if (answer.isStopping) return;
    answer.isStopping = true;
    const target = answer.responseId ? { response_id: answer.responseId } : {};
    this.#client.send({ type: "response.cancel", event_id: nextEventId(), ...target });
  }

  #sendUnsent() {
    const texts = this.#unsent.splice(0);
    if (texts.length === 0) return;
    for (const text of texts) this.#client.send(userMessage(text));
    this.#respond(texts.join("\n\n"));
  }

  /** @param {string} question */
  #respond(question) {
    const answer = this.#begin(question);
    answer.requestId = nextEventId();
    this.#client.send({ type: "response.create", event_id: answer.requestId });
  }

  /** @param {string} question @returns {Answer} */
  #begin(question) {
    this.#numTurns += 1;
    this.#answer = {
      question,
      sessionId: this.#sessionId,
      requestId: "",
      responseId: "",
      status: "waiting",
      detail: "",
      isStopping: false,
      isSuperseded: false,
      askedAtMs: this.#now(),
      firstTokenAtMs: 0,
      lastTokenAtMs: 0,
      numDeltas: 0,
      numTokens: 0,
    };
    this.#on.began(this.#answer);
    return this.#answer;
  }

  /** @param {Status} status @param {string} detail */
  #end(status, detail = "") {
    const answer = this.#answer;
    if (!answer) return;
    this.#answer = null;
    answer.status = status;
    answer.detail = detail;
    this.#on.ended(answer);
  }

  /** @param {ServerEvent} event */
  #receive(event) {
    switch (event.type) {
      case "session.created":
        return this.#started(event.session.id);
      case "response.created":
        if (this.#answer && !this.#answer.responseId) this.#answer.responseId = event.response.id;
        return;
      case "response.output_text.delta":
        return this.#streamed(event.response_id, event.delta);
      case "response.done":
        return this.#done(event.response);
      case "error":
        return this.#refused(event.error);
    }
  }

  /** @param {string} sessionId */
  #started(sessionId) {
    this.#client.send({
      type: "session.update",
      event_id: nextEventId(),
      session: { type: "realtime", output_modalities: ["text"] },
    });
    if (this.#numTurns > 0 && sessionId !== this.#sessionId) {
      this.#numTurns = 0;
      this.#on.restarted();
    }
    this.#sessionId = sessionId;
  }

  /** @param {string} responseId @param {string} delta */
  #streamed(responseId, delta) {
    const answer = this.#answer;
    if (!answer || answer.responseId !== responseId) return;
    answer.lastTokenAtMs = this.#now();
    answer.firstTokenAtMs ||= answer.lastTokenAtMs;
    answer.numDeltas += 1;
    answer.status = "streaming";
    this.#on.streamed(answer, delta);
  }

  /** @param {WireResponse} response */
  #done({ id, status, status_details: details, usage }) {
    if (!this.#answer || this.#answer.responseId !== id || status === "in_progress") return;
    this.#answer.numTokens = usage?.output_tokens ?? 0;
    this.#end(status, details?.error?.message || details?.error?.code || details?.reason || "");
    this.#sendUnsent();
  }

  /** @param {WireError} error */
  #refused(error) {
    const message = error.message || error.code || "The server reported a problem.";
    if (this.#answer && error.event_id === this.#answer.requestId) {
      this.#end("failed", message);
      this.#sendUnsent();
      return;
    }
    // The answer ended by itself while our cancel was under way: what was wanted has happened.
    if (error.code === "response_cancel_not_active") return;
    this.#on.noticed(message);
  }

  #disconnected() {
    if (this.#answer) this.#end("interrupted", "connection_lost");
    if (this.#unsent.length === 0) return;
    this.#begin(this.#unsent.splice(0).join("\n\n"));
    this.#end("interrupted", "never_sent");
  }
}
