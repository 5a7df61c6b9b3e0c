/**
 * The digital human's face: an SVG drawn here, that blinks, looks, thinks and speaks. It is told a mood and the words as they
 * arrive; it knows nothing of the connection. Moves nothing but the mouth's resting shape when reduced motion is asked for.
 *
 * @typedef {"away" | "idle" | "listening" | "thinking" | "speaking"} Mood
 * @typedef {{ lids: number, brows: number, tilt: number, smile: number, gazeX: number, gazeY: number, open: number, wide: number }} Pose
 *   lids: 0 shut to 1 open; gaze in units of the eye; open and wide: the mouth, 0 to 1.
 */

const SVG = "http://www.w3.org/2000/svg";
const EYES = /** @type {const} */ ([129, 191]);
const EYE_Y = 158;
const EYE_HALF_WIDTH = 15.5;
const EYE_HALF_HEIGHT = 12.5;
const MOUTH_X = 160;
const MOUTH_Y = 211;

/** @type {Record<Mood, Partial<Pose>>} */
const MOODS = {
  away: { lids: 0.02, brows: -0.2, smile: 0.35, gazeY: 0.3 },
  idle: { lids: 1, smile: 0.75 },
  listening: { lids: 1, brows: 0.35, smile: 0.6, gazeY: 0.45, tilt: 2.2 },
  thinking: { lids: 0.82, brows: 0.55, smile: 0.25, gazeX: 0.55, gazeY: -0.75, tilt: -2.4 },
  speaking: { lids: 1, brows: 0.15, smile: 0.6 },
};
/** @type {Pose} */
const REST = { lids: 1, brows: 0, tilt: 0, smile: 0.6, gazeX: 0, gazeY: 0, open: 0, wide: 0.5 };

/** Mouth shapes by letter, the coarse visemes a viewer reads: how open, how wide. @type {Array<[RegExp, number, number]>} */
const VISEMES = [
  [/[aáàäâ]/i, 0.95, 0.6],
  [/[eéèêiyíæ]/i, 0.5, 0.95],
  [/[oóöôuúüwœ]/i, 0.7, 0.1],
  [/[mbp]/i, 0, 0.5],
  [/[fv]/i, 0.15, 0.55],
  [/[.,;:!?\n]/, 0, 0.5],
];
const FACE = "M94 150 C92 98 120 76 160 76 C200 76 228 98 226 150 C226 204 196 248 160 248 C124 248 94 204 94 150Z";
const HAIR_BEHIND =
  "M162 50 C100 48 72 96 74 152 C75 186 66 206 74 232 C84 252 116 250 124 232 H196 C204 250 236 252 246 232 " +
  "C254 206 245 186 246 152 C248 96 224 52 162 50Z";
const FRINGE =
  "M86 172 C76 104 108 54 166 54 C216 54 244 104 234 172 C234 142 224 116 204 94 C186 114 150 128 108 126 C96 138 88 152 86 172Z";
const VISEME_MS = 75;
// The mouth follows the text as it arrives; a burst is skimmed, not queued, so that it never speaks after the words ended.
const MOST_WAITING_VISEMES = 10;
const BLINK_MS = 150;

/** @param {string} tag @param {Record<string, string | number>} attributes @param {Element[]} children */
function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/** @param {string} d @param {string} className */
const path = (d, className) => draw("path", { d, class: className });

/** The mouth as an outline around its opening. @param {Pose} pose */
function mouthShape({ open, wide, smile }) {
  const half = 14 + wide * 9 + smile * 6 - open * 2;
  const corner = MOUTH_Y - smile * 7;
  const upper = MOUTH_Y + smile * 4 - open * 7;
  const lower = MOUTH_Y + smile * 6 + open * 21;
  const [left, right] = [MOUTH_X - half, MOUTH_X + half];
  const bend = half * 0.5;
  return (
    `M${left} ${corner} C${left + bend} ${upper} ${right - bend} ${upper} ${right} ${corner} ` +
    `C${right - bend} ${lower} ${left + bend} ${lower} ${left} ${corner}Z`
  );
}

/** The upper lid's line: an arch when open, a lash line that smiles when shut. @param {number} x @param {number} lids */
function lidShape(x, lids) {
  const rise = EYE_HALF_HEIGHT * (lids * 2.9 - 0.9);
  return `M${x - EYE_HALF_WIDTH - 1} ${EYE_Y} Q${x} ${EYE_Y - rise} ${x + EYE_HALF_WIDTH + 1} ${EYE_Y}`;
}

/** What shows of the eyeball: flat below, arched by the lid above. @param {number} x @param {number} lids */
function apertureShape(x, lids) {
  const top = EYE_Y - EYE_HALF_HEIGHT * (lids * 2.9 - 0.9);
  const bottom = EYE_Y + EYE_HALF_HEIGHT * 1.55 * Math.min(1, 0.6 + lids * 0.4);
  const [left, right] = [x - EYE_HALF_WIDTH, x + EYE_HALF_WIDTH];
  return `M${left} ${EYE_Y} Q${x} ${Math.min(top, bottom)} ${right} ${EYE_Y} Q${x} ${bottom} ${left} ${EYE_Y}Z`;
}

/** @param {number} x */
function drawEye(x) {
  const clipId = `eye-${x}`;
  const aperture = path("", "");
  const iris = draw(
    "g",
    {},
    draw("circle", { cx: x, cy: EYE_Y, r: 9.6, class: "iris" }),
    draw("circle", { cx: x, cy: EYE_Y, r: 4.8, class: "pupil" }),
    draw("circle", { cx: x + 3.4, cy: EYE_Y - 3.6, r: 2.6, class: "glint" }),
  );
  const white = draw("rect", { x: x - 20, y: EYE_Y - 24, width: 40, height: 48, class: "white" });
  const lid = path("", "lid");
  const node = draw(
    "g",
    {},
    draw("clipPath", { id: clipId }, aperture),
    draw("g", { "clip-path": `url(#${clipId})` }, white, iris),
    lid,
  );
  return { x, node, aperture, iris, lid };
}

export class Face {
  #pose = { ...REST };
  /** @type {Mood} */ #mood = "away";
  /** @type {Array<[open: number, wide: number]>} */ #visemes = [];
  #visemeUntil = 0;
  #blinkedAt = -Infinity;
  #pointer = { x: 0, y: 0 };
  #frame = 0;
  #eyes = EYES.map(drawEye);
  #brows = EYES.map((x) => path(`M${x - 15} 134 Q${x} 125 ${x + 15} 134`, "brow"));
  #mouth = path("", "mouth");
  #tongue = draw("ellipse", { cx: MOUTH_X, cy: MOUTH_Y + 17, rx: 13, ry: 8, class: "tongue", "clip-path": "url(#mouth)" });
  #mouthClip = path("", "");
  #head;
  #reduced = matchMedia("(prefers-reduced-motion: reduce)");

  /** @param {HTMLElement} host */
  constructor(host) {
    this.#head = draw(
      "g",
      {},
      path(HAIR_BEHIND, "hair"),
      path("M135 214 H185 V262 C185 282 135 282 135 262Z", "skin"),
      path("M136 232 C146 254 174 254 184 232 V252 C170 268 150 268 136 252Z", "shade"),
      path(FACE, "skin"),
      draw("clipPath", { id: "cheeks" }, path(FACE, "")),
      draw(
        "g",
        { "clip-path": "url(#cheeks)" },
        draw("circle", { cx: 112, cy: 194, r: 17, class: "blush" }),
        draw("circle", { cx: 208, cy: 194, r: 17, class: "blush" }),
      ),
      path("M154 186 C157 190.5 163 190.5 166 186", "nose"),
      ...this.#eyes.map(({ node }) => node),
      ...this.#brows,
      draw("clipPath", { id: "mouth" }, this.#mouthClip),
      this.#mouth,
      this.#tongue,
      path(FRINGE, "hair"),
      path("M196 84 C176 100 150 110 116 114", "strand"),
    );
    host.append(
      draw(
        "svg",
        { viewBox: "0 0 320 320", class: "face", focusable: "false" },
        draw("clipPath", { id: "frame" }, draw("circle", { cx: 160, cy: 160, r: 148 })),
        draw("circle", { cx: 160, cy: 160, r: 148, class: "backdrop" }),
        draw(
          "g",
          { "clip-path": "url(#frame)" },
          draw("circle", { cx: 218, cy: 86, r: 96, class: "light" }),
          path("M36 330 C40 276 96 262 132 254 C146 272 174 272 188 254 C224 262 280 276 284 330Z", "cloth"),
          path("M132 254 C146 276 174 276 188 254 L196 257 C180 290 140 290 124 257Z", "collar"),
          this.#head,
        ),
        draw("circle", { cx: 160, cy: 160, r: 154, class: "ring", pathLength: 100 }),
      ),
    );
    addEventListener("pointermove", (event) => this.#look(host, event), { passive: true });
    document.addEventListener("visibilitychange", () => this.#wake());
    this.#reduced.addEventListener("change", () => this.#wake());
    this.#scheduleBlink();
    Object.assign(this.#pose, this.#target());
    this.#render();
  }

  /** @param {Mood} mood */
  set mood(mood) {
    if (mood === this.#mood) return;
    this.#mood = mood;
    if (mood !== "speaking") this.#visemes.length = 0;
    this.#wake();
  }

  /** Moves the mouth to words as they arrive. @param {string} text */
  say(text) {
    if (this.#reduced.matches) return;
    for (const letter of text) {
      const viseme = VISEMES.find(([letters]) => letters.test(letter));
      if (viseme) this.#visemes.push([viseme[1], viseme[2]]);
    }
    this.#visemes.splice(0, this.#visemes.length - MOST_WAITING_VISEMES);
    this.#wake();
  }

  /** @param {HTMLElement} host @param {PointerEvent} event */
  #look(host, event) {
    if (this.#reduced.matches || event.pointerType === "touch") return;
    const box = host.getBoundingClientRect();
    const reach = Math.max(innerWidth, innerHeight) / 2;
    this.#pointer.x = clamp((event.clientX - box.x - box.width / 2) / reach);
    this.#pointer.y = clamp((event.clientY - box.y - box.height / 2) / reach);
    this.#wake();
  }

  #scheduleBlink() {
    setTimeout(() => {
      if (this.#mood !== "away" && !this.#reduced.matches && !document.hidden) {
        this.#blinkedAt = performance.now();
        this.#wake();
      }
      this.#scheduleBlink();
    }, 2200 + Math.random() * 3800);
  }

  /** The pose that the mood and the moment ask for. @returns {Pose} */
  #target(now = performance.now()) {
    const pose = { ...REST, ...MOODS[this.#mood] };
    if (this.#reduced.matches) return { ...pose, tilt: 0, open: this.#mood === "speaking" ? 0.3 : 0 };
    if (this.#mood === "idle" || this.#mood === "speaking") {
      pose.gazeX += this.#pointer.x * 0.8;
      pose.gazeY += this.#pointer.y * 0.6;
      pose.tilt += this.#pointer.x * 1.5;
    }
    if (this.#visemes.length > 0 && now > this.#visemeUntil) {
      [pose.open, pose.wide] = this.#visemes.shift() ?? [0, 0.5];
      this.#visemeUntil = now + VISEME_MS;
    } else if (now <= this.#visemeUntil) {
      [pose.open, pose.wide] = this.#spoken;
    }
    this.#spoken = [pose.open, pose.wide];
    return pose;
  }
  /** @type {[open: number, wide: number]} */ #spoken = [0, 0.5];

  #wake() {
    this.#frame ||= requestAnimationFrame((now) => this.#step(now));
  }

  /** One frame: ease towards the target, draw, and sleep once nothing moves. @param {number} now */
  #step(now) {
    this.#frame = 0;
    const target = this.#target(now);
    let furthest = 0;
    for (const key of /** @type {Array<keyof Pose>} */ (Object.keys(target))) {
      const speed = this.#reduced.matches ? 1 : key === "open" || key === "wide" ? 0.38 : 0.14;
      const gap = target[key] - this.#pose[key];
      this.#pose[key] += gap * speed;
      furthest = Math.max(furthest, Math.abs(gap));
    }
    const isBlinking = now - this.#blinkedAt < BLINK_MS;
    this.#render(isBlinking ? Math.abs(Math.cos((Math.PI * (now - this.#blinkedAt)) / BLINK_MS)) : 1);
    if (furthest > 0.004 || isBlinking || this.#visemes.length > 0 || now <= this.#visemeUntil) this.#wake();
  }

  #render(blink = 1) {
    const pose = this.#pose;
    const lids = Math.max(0, pose.lids * blink);
    for (const { x, aperture, iris, lid } of this.#eyes) {
      aperture.setAttribute("d", apertureShape(x, lids));
      lid.setAttribute("d", lidShape(x, lids));
      iris.setAttribute("transform", `translate(${pose.gazeX * 5} ${pose.gazeY * 4 - 1})`);
    }
    for (const brow of this.#brows) brow.setAttribute("transform", `translate(0 ${-pose.brows * 6})`);
    this.#mouth.setAttribute("d", mouthShape(pose));
    this.#mouthClip.setAttribute("d", mouthShape(pose));
    this.#tongue.setAttribute("opacity", String(clamp(pose.open * 2)));
    const shift = `translate(${pose.gazeX * 3} ${pose.gazeY * 2})`;
    this.#head.setAttribute("transform", `${shift} rotate(${pose.tilt} 160 250)`);
  }
}

/** @param {number} value */
function clamp(value) {
  return Math.max(-1, Math.min(1, value));
}
