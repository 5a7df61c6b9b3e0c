/**
 * One answer from being asked for to its end, and its pace. Data and arithmetic only.
 *
 * @typedef {{ id: string, text: string, isAdded: boolean }} Said   a message of the person's, under an id made here;
 *   `isAdded` once the server has shown it in the conversation
 *
 * @typedef {"waiting" | "streaming" | "completed" | "cancelled" | "incomplete" | "failed" | "interrupted"} Status
 *   `interrupted` is ours: the conversation was lost before the answer ended.
 *
 * @typedef {object} Answer
 * @property {string} question
 * @property {Said[]} items          what it was asked with
 * @property {string} sessionId
 * @property {string} requestId      our event_id of the `response.create`, which the response carries as metadata
 * @property {boolean} isSent        the request went out on the connection there is now
 * @property {string} responseId     empty until `response.created`
 * @property {Status} status
 * @property {string} detail         the server's reason or message, when there is one
 * @property {boolean} isStopping    the person stopped it: nothing more is shown
 * @property {boolean} isSuperseded  it was stopped because the person spoke again
 * @property {boolean} hasUnheard    text came that is not shown, since it was stopped
 * @property {string} itemId         the message that is being written
 * @property {number} itemStart      where in the answer's text that message begins
 * @property {number} numShown       UTF-16 units of that message that are shown
 * @property {string} cutItemId      the message that the server was told to cut to what is shown
 * @property {boolean} isTimed       whether all of it came as it was written, and not in a lump after a reconnect
 * @property {number} askedAtMs      0 when nobody here asked
 * @property {number} firstTokenAtMs 0 until the first delta
 * @property {number} lastTokenAtMs
 * @property {number} numDeltas
 * @property {number} numTokens      as the server counted them; 0 until it has
 *
 * @typedef {{ firstTokenMs: number | null, tokensPerS: number | null, numTokens: number }} Pace
 */

/** @param {Partial<Answer>} known @returns {Answer} */
export function newAnswer(known) {
  return {
    question: "",
    items: [],
    sessionId: "",
    requestId: "",
    isSent: false,
    responseId: "",
    status: "waiting",
    detail: "",
    isStopping: false,
    isSuperseded: false,
    hasUnheard: false,
    itemId: "",
    itemStart: 0,
    numShown: 0,
    cutItemId: "",
    isTimed: true,
    askedAtMs: 0,
    firstTokenAtMs: 0,
    lastTokenAtMs: 0,
    numDeltas: 0,
    numTokens: 0,
    ...known,
  };
}

/** Another message of the answer begins. @param {Answer} answer @param {string} itemId */
export function startItem(answer, itemId) {
  answer.itemStart += answer.numShown;
  answer.numShown = 0;
  answer.itemId = itemId;
}

/** Shows `text` more of the message `itemId`. @param {Answer} answer @param {string} text @param {number} nowMs */
export function lengthen(answer, text, nowMs) {
  answer.status = "streaming";
  answer.numShown += text.length;
  answer.numDeltas += 1;
  answer.lastTokenAtMs = nowMs;
  answer.firstTokenAtMs ||= nowMs;
}

/** Time to first token and tokens per second after it, as a reader of the stream sees them. @param {Answer} answer @returns {Pace} */
export function pace(answer) {
  // A cancelled answer's count includes tokens that never left the server; what arrived is the honest number.
  const numTokens = answer.status === "cancelled" ? answer.numDeltas : answer.numTokens || answer.numDeltas;
  const streamedS = (answer.lastTokenAtMs - answer.firstTokenAtMs) / 1000;
  const isFirstTimed = answer.firstTokenAtMs > 0 && answer.askedAtMs > 0;
  return {
    firstTokenMs: isFirstTimed ? answer.firstTokenAtMs - answer.askedAtMs : null,
    tokensPerS: answer.isTimed && numTokens > 1 && streamedS > 0 ? (numTokens - 1) / streamedS : null,
    numTokens,
  };
}
