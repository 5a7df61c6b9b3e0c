/**
 * The player: a replay on the stage, the timeline, and what plays, pauses, seeks and speeds. Its keys work while the focus is in it, as
 * those of video players do.
 *
 * @import { Detail } from "./session.js"
 */

import { h, icon } from "./dom.js";
import { holeInWords, momentsOf, opinionsOf, spansOf } from "./moments.js";
import { Replay } from "./replay.js";
import { Stage } from "./stage.js";
import { clock, clockInWords } from "./text.js";
import { Timeline } from "./timeline.js";

const SPEEDS = [0.5, 1, 1.5, 2, 4, 8, 16];
const MAX_SILENCE_MS = 1000;
const SKIP_MS = 5000;
// What happened at a moment is in the journal a little later: who goes there wants to see it.
const LANDING_MS = 150;
const REFRESH_EVERY_MS = 200;
const PLAY = "M7 4.5v15l13-7.5Z";
const PAUSE = "M8 5v14M16 5v14";
const BACK = "M11 6 5 12l6 6M19 6l-6 6 6 6";
const ON = "M5 6l6 6-6 6M13 6l6 6-6 6";
const TYPING = "input:not([type=range], [type=checkbox], [type=radio]), textarea, select";

export class Player {
  #replay;
  #stage;
  #timeline;
  #say;
  #onPosition;
  /** @type {number[]} */ #stops = [];
  /** @type {import("./moments.js").Opinion[]} */ #opinions = [];
  #play = h("button", { type: "button", class: "primary play", onclick: () => this.toggle() });
  #time = h("p", { class: "time" });
  #speed = h("select", { id: "speed-choice", onchange: () => this.#chooseSpeed(Number(this.#speed.value)) });
  #skipping = h("input", { type: "checkbox", id: "skip-silence", onchange: () => this.#skipSilences() });
  #live = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.#follow() }, "Go to now");
  #trouble = h("div", { class: "trouble", role: "alert" });
  /** @type {ReturnType<typeof setInterval>} */ #ticking;

  /** @param {string} sessionId @param {string} token
   * @param {{ position: number, paused: boolean, lengthMs: number }} start
   * @param {{ say: (text: string) => void, onPosition: (ms: number) => void, onEvent: (event: import("../realtime.js").ServerEvent) => void }} listeners */
  constructor(sessionId, token, start, { say, onPosition, onEvent }) {
    this.#say = say;
    this.#onPosition = onPosition;
    this.#replay = new Replay(sessionId, token, start);
    this.#stage = new Stage(() => this.#replay.positionMs);
    this.#timeline = new Timeline((ms) => this.seek(ms), (ms) => this.visit(ms));
    this.#speed.append(...SPEEDS.map((speed) => h("option", { value: speed, selected: speed === 1 }, `${speed}×`)));
    this.node = h("div", { class: "player" }, this.#stage.node, this.#trouble, this.#timeline.node, this.#controls());
    this.#listen(onEvent);
    this.#ticking = setInterval(() => this.#refresh(), REFRESH_EVERY_MS);
    this.#refresh();
    this.#replay.open();
  }

  get positionMs() {
    return this.#replay.positionMs;
  }

  get durationMs() {
    return this.#replay.durationMs;
  }

  get isPaused() {
    return this.#replay.isPaused;
  }

  get isLive() {
    return this.#replay.state?.is_live === true;
  }

  /** What the timeline shows beside the position. @param {Detail} detail */
  annotate(detail) {
    const moments = momentsOf(detail);
    this.#stops = moments.map(({ atMs }) => atMs);
    this.#opinions = opinionsOf(detail);
    this.#timeline.fill(moments, spansOf(detail));
  }

  toggle() {
    const isPaused = !this.#replay.isPaused;
    const isOver = this.#replay.isDone || (this.#replay.isPaused && !this.isLive && this.positionMs >= this.#replay.durationMs - 1);
    // From the end, play begins again.
    if (isOver) this.#replay.update({ position: 0, paused: false });
    else this.#replay.update({ paused: isPaused });
    this.#refresh();
  }

  /** @param {number} ms */
  seek(ms) {
    const position = this.#within(ms);
    this.#replay.update({ position });
    this.#refresh();
    this.#timeline.tell(position);
  }

  /** To where that moment has just happened. @param {number} ms */
  visit(ms) {
    this.seek(ms + LANDING_MS);
  }

  /** @param {number} ms */
  playFrom(ms) {
    this.#replay.update({ position: this.#within(ms), paused: false });
    this.#refresh();
  }

  /** @param {number} ms */
  #within(ms) {
    const longestMs = this.#replay.state ? this.#replay.durationMs : Infinity;
    return Math.max(0, Math.min(ms, longestMs));
  }

  close() {
    clearInterval(this.#ticking);
    this.#replay.close();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = event.target instanceof Element ? event.target : null;
    if (event.ctrlKey || event.metaKey || event.altKey || target?.matches(TYPING)) return;
    if (event.key === " " && target?.matches("button, a, summary, input")) return;
    const isDone = this.#act(event.key);
    if (isDone) event.preventDefault();
  }

  /** @param {string} key */
  #act(key) {
    const here = this.positionMs;
    if (/^[0-9]$/.test(key)) return this.seek((this.#replay.durationMs * Number(key)) / 10), true;
    switch (key) {
      case " ":
      case "k":
        return this.toggle(), true;
      case "ArrowLeft":
        return this.seek(here - SKIP_MS), true;
      case "ArrowRight":
        return this.seek(here + SKIP_MS), true;
      case "j":
        return this.seek(here - 2 * SKIP_MS), true;
      case "l":
        return this.seek(here + 2 * SKIP_MS), true;
      case ",":
        return this.#step(-1), true;
      case ".":
        return this.#step(1), true;
      case "<":
        return this.#shift(-1), true;
      case ">":
        return this.#shift(1), true;
      case "Home":
        return this.seek(0), true;
      case "End":
        return this.seek(this.#replay.durationMs), true;
      default:
        return false;
    }
  }

  /** To the moment before or after. @param {-1 | 1} direction */
  #step(direction) {
    const here = this.positionMs;
    const next = direction > 0 ? this.#stops.find((ms) => ms > here + 1) : this.#stops.findLast((ms) => ms < here - 500);
    if (next === undefined) this.seek(direction > 0 ? this.#replay.durationMs : 0);
    else this.visit(next);
    this.#say(clockInWords(this.positionMs));
  }

  /** @param {-1 | 1} direction */
  #shift(direction) {
    const now = SPEEDS.indexOf(this.#replay.speed);
    const speed = SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, now + direction))] ?? 1;
    this.#speed.value = String(speed);
    this.#chooseSpeed(speed);
    this.#say(`Speed ${speed}`);
  }

  /** @param {number} speed */
  #chooseSpeed(speed) {
    this.#replay.update({ speed });
  }

  #skipSilences() {
    this.#replay.update({ max_silence_ms: this.#skipping.checked ? MAX_SILENCE_MS : null });
  }

  #follow() {
    this.#replay.update({ position: this.#replay.durationMs, speed: 1, paused: false });
    this.#speed.value = "1";
  }

  #controls() {
    const before = h("button", { type: "button", class: "quiet step", onclick: () => this.#step(-1), title: "Moment before (,)" }, icon(BACK), h("span", { class: "unseen" }, "Moment before"));
    const after = h("button", { type: "button", class: "quiet step", onclick: () => this.#step(1), title: "Next moment (.)" }, icon(ON), h("span", { class: "unseen" }, "Next moment"));
    return h(
      "div",
      { class: "controls" },
      before,
      this.#play,
      after,
      this.#time,
      this.#live,
      h("div", { class: "pacing" }, h("label", { for: "speed-choice" }, "Speed"), this.#speed, h("label", { class: "check", for: "skip-silence" }, this.#skipping, "Skip silences")),
    );
  }

  /** @param {(event: import("../realtime.js").ServerEvent) => void} onEvent */
  #listen(onEvent) {
    const [replay, stage] = [this.#replay, this.#stage];
    replay.on("state", (state) => {
      if (state.restarted) stage.restart();
      this.#refresh();
    });
    replay.on("event", (event) => {
      stage.show(event);
      onEvent(event);
    });
    replay.on("gap", ({ first_sequence_number: first, last_sequence_number: last, reason }) => {
      stage.tear(`${holeInWords(last - first + 1, reason)}. What follows is as it was.`);
    });
    replay.on("done", () => this.#refresh());
    replay.on("link", (text) => (this.#trouble.textContent = text));
    replay.on("refused", ({ message }) => (this.#trouble.textContent = message ?? "The server refused this."));
  }

  #refresh() {
    const [position, duration, isOn] = [this.#replay.positionMs, this.#replay.durationMs, !this.#replay.isPaused && !this.#replay.isDone];
    this.#stage.isPlaying = this.#replay.isRunning;
    this.#stage.showOpinions(this.#opinions, position);
    this.#timeline.move(position, duration);
    this.#time.textContent = `${clock(position)} / ${clock(duration)}`;
    this.node.classList.toggle("is-live", this.isLive);
    this.#live.hidden = !this.isLive || (isOn && duration - position < 2000);
    this.#onPosition(position);
    const label = isOn ? "Pause" : "Play";
    if (this.#play.dataset["does"] === label) return;
    this.#play.dataset["does"] = label;
    this.#play.replaceChildren(icon(isOn ? PAUSE : PLAY, isOn ? "icon" : "icon filled"), label);
  }
}
