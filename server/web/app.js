/**
 * The conversation page: wires the protocol client, the conversation, the face and the transcript to what is in index.html.
 * Holds no protocol knowledge and draws nothing itself.
 */

import { pace } from "./answer.js";
import { Conversation } from "./conversation.js";
import { Face } from "./face.js";
import { FeedbackPost } from "./feedback.js";
import { Journey } from "./journey.js";
import { Outbox, messageBytes } from "./outbox.js";
import { Ratings } from "./ratings.js";
import { RealtimeClient } from "./realtime.js";
import { TabMemory } from "./tab.js";
import { Thumbs } from "./thumbs.js";
import { TokenSource } from "./tokens.js";
import { Transcript, formatMs, formatRate } from "./transcript.js";

/** @import { Answer } from "./answer.js" */
/** @import { Mood } from "./face.js" */
/** @import { Connection } from "./realtime.js" */

const MAX_MESSAGE_BYTES = 64 * 1024;
const LIVE_PACE_EVERY_MS = 250;
// Past this many failed tries the page says "offline": "reconnecting" would promise too much.
const TRIES_BEFORE_OFFLINE = 6;

/** @type {Record<Mood, string>} */
const MOOD_IN_WORDS = { away: "Asleep", idle: "Ready", listening: "Listening", thinking: "Thinking", speaking: "Speaking" };

/** @template {HTMLElement} T @param {string} id @param {new () => T} kind @returns {T} */
function find(id, kind) {
  const node = document.getElementById(id);
  if (!(node instanceof kind)) throw new TypeError(`#${id} is missing from the page`);
  return node;
}

const message = find("message", HTMLTextAreaElement);
const composer = find("composer", HTMLFormElement);
const stop = find("stop", HTMLButtonElement);
const signIn = find("sign-in", HTMLFormElement);
const notice = find("notice", HTMLElement);
const dismiss = find("dismiss", HTMLButtonElement);
const reconnect = find("reconnect", HTMLButtonElement);
const firstToken = find("first-token", HTMLElement);
const speed = find("speed", HTMLElement);

const tab = new TabMemory();
const tokens = new TokenSource();
const client = new RealtimeClient({ origin: location.origin, tokens, journey: new Journey(tab) });
const face = new Face(find("face", HTMLElement));
const transcript = new Transcript(find("transcript", HTMLElement), find("latest", HTMLElement), askAgain);
const conversation = new Conversation(client, new Outbox(client, tab), {
  asked(id, text, isPending) {
    greetNoMore();
    transcript.ask(id, text, isPending);
  },
  began(answer) {
    greetNoMore();
    transcript.begin(answer);
    firstToken.textContent = speed.textContent = "…";
    refresh();
  },
  streamed(answer, delta) {
    transcript.stream(answer, delta);
    const foot = transcript.foot(answer);
    if (foot) thumbs.show(answer, foot);
    if (client.connection.state === "connected") face.say(delta);
    if (answer.numDeltas === 1) refresh();
  },
  ended(answer) {
    transcript.end(answer, pace(answer));
    showPace(answer);
    refresh();
  },
  withdrawn: (answer) => transcript.withdraw(answer),
  cut: (answer, numUnits) => transcript.cut(answer, numUnits),
  noticed: notify,
  returned(text) {
    message.value = message.value || text;
    fitMessage();
  },
  rebuilt() {
    thumbs.leave(find("transcript", HTMLElement));
    transcript.rebuild();
  },
  restarted() {
    if (transcript.isEmpty) notify("Your earlier conversation is over. This is a new one.");
    else transcript.divide();
  },
});
const post = new FeedbackPost({ origin: location.origin, tokens });
const ratings = new Ratings(client, post, tab, showRating);
const thumbs = new Thumbs(ratings, (text) => (find("rated", HTMLElement).textContent = text));

function greetNoMore() {
  document.getElementById("welcome")?.remove();
  delete document.body.dataset["empty"];
}

/** @param {string} text */
function notify(text) {
  notice.textContent = text;
  dismiss.hidden = !text;
}

/** @param {string} itemId */
function showRating(itemId) {
  // Given before the page was loaded again, to an answer that is no longer here.
  if (!thumbs.refresh(itemId) && ratings.complaint(itemId)) notify(`A rating was not saved. ${ratings.complaint(itemId)}`);
}

/** @param {Answer} answer */
function showPace(answer) {
  const { firstTokenMs, tokensPerS } = pace(answer);
  const waiting = answer.status === "waiting" ? "…" : "–";
  firstToken.textContent = firstTokenMs === null ? waiting : formatMs(firstTokenMs);
  speed.textContent = tokensPerS === null ? (answer.status === "streaming" ? "…" : waiting) : formatRate(tokensPerS);
}

/** @returns {Mood} */
function moodNow() {
  if (client.connection.state !== "connected") return "away";
  const answer = conversation.answer;
  if (answer) return answer.status === "waiting" || answer.isStopping ? "thinking" : "speaking";
  return message.value ? "listening" : "idle";
}

function refresh() {
  const mood = moodNow();
  face.mood = mood;
  document.body.dataset["mood"] = mood;
  const isWaking = client.connection.state === "connecting";
  find("mood", HTMLElement).textContent = isWaking ? "Waking up" : MOOD_IN_WORDS[mood];
  const canStop = conversation.answer?.isStopping === false && client.connection.state !== "taken";
  if (!canStop && document.activeElement === stop) message.focus();
  stop.hidden = !canStop;
}

/** @param {Connection} connection */
function connectionInWords({ state, attempt, reason }) {
  switch (state) {
    case "connected":
      return "Connected";
    case "connecting":
      return "Connecting";
    case "signed_out":
      return "Signed out";
    case "taken":
      return "Open in another tab";
    case "stopped":
      return `Disconnected. ${reason}`;
    case "idle":
      return "Disconnected";
    case "reconnecting":
      return isOffline(attempt) ? "Offline" : "Reconnecting";
  }
}

/** @param {number} attempt */
function isOffline(attempt) {
  return !navigator.onLine || attempt > TRIES_BEFORE_OFFLINE;
}

/** @param {Connection} connection */
function showConnection(connection) {
  const { state, attempt, reason } = connection;
  const words = connectionInWords(connection);
  const line = find("connection", HTMLElement);
  // Written only when it changes: each write to a status is read aloud.
  if (line.textContent !== words) line.textContent = words;
  document.body.dataset["connection"] = state === "reconnecting" && isOffline(attempt) ? "offline" : state;
  reconnect.hidden = !(state === "stopped" || state === "taken" || (state === "reconnecting" && attempt > 1));
  reconnect.textContent = state === "taken" ? "Take it back" : "Try now";
  if (state === "connected") transcript.isBusy = false;
  showSignIn(state === "signed_out", reason);
  refresh();
}

/** @param {boolean} isNeeded @param {string} complaint */
function showSignIn(isNeeded, complaint) {
  if (isNeeded === !signIn.hidden) return;
  signIn.hidden = !isNeeded;
  composer.hidden = find("keys", HTMLElement).hidden = isNeeded;
  find("sign-in-error", HTMLElement).textContent = complaint;
  (isNeeded ? find("token", HTMLInputElement) : message).focus();
}

/** @param {Answer} answer */
function askAgain(answer) {
  message.focus();
  if (client.connection.state === "connected") conversation.retry(answer);
  else notify("Not connected at the moment. Ask again once the connection is back.");
}

/** True if the text was accepted. @param {string} text */
function say(text) {
  const words = text.toWellFormed().trim();
  if (!words) return false;
  const bytes = messageBytes(words);
  if (bytes > MAX_MESSAGE_BYTES) {
    const [is, most] = [Math.ceil(bytes / 1024), MAX_MESSAGE_BYTES / 1024];
    notify(`This message is too long to send: ${is} KiB, and the limit is ${most} KiB. Please shorten it.`);
    return false;
  }
  const { state } = client.connection;
  if (state === "taken" || state === "stopped") {
    notify(state === "taken" ? "This conversation is open in another tab. Take it back to go on here." : "Not connected. Your message stays here.");
    return false;
  }
  notify("");
  thumbs.close();
  conversation.say(words);
  return true;
}

function fitMessage() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (say(message.value)) {
    message.value = "";
    fitMessage();
    refresh();
  }
  message.focus();
});

message.addEventListener("keydown", (event) => {
  // While an input method composes, Enter picks a candidate.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

message.addEventListener("input", () => {
  fitMessage();
  refresh();
});

function hush() {
  conversation.stop();
  refresh();
}

stop.addEventListener("click", hush);

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || !conversation.answer) return;
  event.preventDefault();
  hush();
});

for (const opener of document.querySelectorAll(".openers button")) {
  opener.addEventListener("click", () => {
    if (!say(opener.textContent ?? "")) message.value = opener.textContent ?? "";
    message.focus();
    refresh();
  });
}

dismiss.addEventListener("click", () => {
  notify("");
  message.focus();
});

signIn.addEventListener("submit", (event) => {
  event.preventDefault();
  const token = find("token", HTMLInputElement);
  tokens.paste(token.value, find("model", HTMLInputElement).value);
  token.value = "";
  client.open();
});

reconnect.addEventListener("click", () => {
  client.open();
  message.focus();
});

client.on("connection", showConnection);
client.on("event", ({ type }) => {
  if (type === "session.created") transcript.isBusy = true;
});
client.on("connection", async ({ state }) => {
  if (state === "connected") thumbs.reasons = (await post.reasons()) ?? thumbs.reasons;
});
addEventListener("online", () => {
  if (client.connection.state === "reconnecting") client.open();
});
addEventListener("offline", () => showConnection(client.connection));
setInterval(() => {
  if (conversation.answer) showPace(conversation.answer);
}, LIVE_PACE_EVERY_MS);

client.open();
// On a touch screen focus would raise the keyboard over the greeting.
if (matchMedia("(pointer: fine)").matches) message.focus();
