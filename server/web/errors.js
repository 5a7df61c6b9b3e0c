/** Which errors of the server a person hears of, and in what words. */

import { isOfRating } from "./ratings.js";

/** @import { WireError } from "./realtime.js" */

const EXPECTED = new Set([
  "response_cancel_not_active", // it ended by itself while our cancel was under way: what was wanted has happened
  "item_create_duplicate_item_id", // sent again because its acknowledgement was lost
  "session_expired", // the client connects again by itself
]);

/** Whether nobody need hear of it, or it is told where it belongs. @param {WireError} error */
export function isExpected({ code, event_id: eventId }) {
  return EXPECTED.has(code ?? "") || isOfRating(eventId);
}

/** @param {WireError} error */
export function inWords({ message, code }) {
  return message || code || "The server reported a problem.";
}
