/** A result on a canvas: boxes, keypoints, masks, label maps, classes and restored images. */

import { rgb } from "./layers.js";

const LEFT = "#ff8c28";
const RIGHT = "#32aaff";
const MIDDLE = "#6ee16e";
const OUTLINE = "#1e1e1e";
const FONT = "system-ui, sans-serif";

/**
 * Draw a scene.
 *
 * `scene`: `image` (null: there is none), `size` [height, width] of the source, `facts` of the model, `colours`, what
 * there is of `objects`, `points` (visibility from which a keypoint is drawn), `map`, `classes` and `restored`, and
 * `settings`: `opacity`, `labels`, `split`; `marked`: the object that stands out, or null.
 * `scale`: pixels of the canvas for one of the source. `unit`: pixels of the canvas for one of the screen.
 */
export function paint(context, scene, scale, unit) {
  const { width, height } = context.canvas;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.imageSmoothingEnabled = scale < 3;
  context.imageSmoothingQuality = "high";
  context.clearRect(0, 0, width, height);
  if (scene.image) context.drawImage(scene.image, 0, 0, width, height);
  if (scene.restored) paintRestored(context, scene, unit);
  if (scene.map) paintLayers(context, scene.map, scene.settings.opacity, scale);
  const order = scene.objects.map((_, i) => i).reverse(); // the best on top
  for (const i of order) {
    const { layers } = scene.objects[i];
    if (layers) paintLayers(context, layers, opacityOf(scene, i), scale);
  }
  for (const i of order) paintObject(context, scene, i, scale, unit);
  if (scene.settings.labels) {
    const taken = [];
    for (const i of order.reverse()) paintLabel(context, scene, i, scale, unit, taken);
    if (scene.classes.length) paintClasses(context, scene, unit);
  }
}

const opacityOf = (scene, i) => (scene.marked === null || scene.marked === i ? scene.settings.opacity : scene.settings.opacity / 3);

/** Return black or white, whichever can be read on a colour better. */
export function ink(colour) {
  const [red, green, blue] = rgb(colour).map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

function paintLayers(context, { x, y, surface, border }, opacity, scale) {
  const place = [x * scale, y * scale, surface.width * scale, surface.height * scale];
  context.globalAlpha = opacity;
  context.drawImage(surface, ...place);
  context.globalAlpha = Math.min(1, 2 * opacity);
  context.drawImage(border, ...place);
  context.globalAlpha = 1;
}

/** Draw the restored image; left of the split, what it was made of. */
function paintRestored(context, { restored, settings }, unit) {
  const { width, height } = context.canvas;
  const at = Math.round(settings.split * width);
  context.save();
  context.beginPath();
  context.rect(at, 0, width - at, height);
  context.clip();
  context.drawImage(restored, 0, 0, width, height);
  context.restore();
  if (at > 0 && at < width) {
    line(context, [[at, 0], [at, height]], "#fff", 3 * unit);
    line(context, [[at, 0], [at, height]], "#000", unit);
  }
}

/** Return the corners of an object in source pixels. */
export function cornersOf({ box, rotated }) {
  if (!rotated) {
    const [x1, y1, x2, y2] = box;
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
  }
  const [cx, cy, w, h, angle] = rotated;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return [[1, 1], [-1, 1], [-1, -1], [1, -1]].map(([a, b]) => [
    cx + (a * w * cos - b * h * sin) / 2,
    cy + (a * w * sin + b * h * cos) / 2,
  ]);
}

/** Return the area of a convex polygon if a point is in it, else 0. */
export function areaAround(corners, x, y) {
  const turns = corners.map(([x1, y1], i) => {
    const [x2, y2] = corners[(i + 1) % corners.length];
    return [(x2 - x1) * (y - y1) - (y2 - y1) * (x - x1), x1 * y2 - x2 * y1];
  });
  const inside = turns.every(([side]) => side >= 0) || turns.every(([side]) => side <= 0);
  return inside ? Math.abs(turns.reduce((sum, [, part]) => sum + part, 0)) / 2 : 0;
}

function paintObject(context, scene, i, scale, unit) {
  const found = scene.objects[i];
  const colour = scene.colours[found.label % scene.colours.length];
  const marked = scene.marked === i;
  context.globalAlpha = scene.marked === null || marked ? 1 : 0.35;
  const corners = cornersOf(found).map((point) => point.map((v) => v * scale));
  const thick = (marked ? 3 : 2) * unit;
  line(context, corners, ink(colour) === "#000" ? "#0009" : "#fff9", thick + 2 * unit, true);
  line(context, corners, colour, thick, true);
  if (found.keypoints) paintKeypoints(context, scene, found, scale, unit);
  context.globalAlpha = 1;
}

function paintKeypoints(context, { facts, points }, { box, keypoints }, scale, unit) {
  const side = (scale * Math.min(box[2] - box[0], box[3] - box[1])) / unit;
  const radius = Math.max(1, Math.min(4, side / 24)) * unit;
  const sides = new Map(facts.flip_pairs.flatMap(([left, right]) => [[left, LEFT], [right, RIGHT]]));
  const shown = keypoints.map(([, , seen]) => seen >= points);
  const places = keypoints.map(([x, y]) => [x * scale, y * scale]);
  const limbs = facts.limbs.filter(([a, b]) => shown[a] && shown[b]);
  const width = Math.max(1, Math.min(3, side / 30)) * unit;
  for (const [a, b] of limbs) line(context, [places[a], places[b]], OUTLINE, width + 2 * unit);
  for (const [a, b] of limbs) {
    const colour = sides.has(a) && sides.get(a) === sides.get(b) ? sides.get(a) : MIDDLE;
    line(context, [places[a], places[b]], colour, width);
  }
  keypoints.forEach(([, , seen], k) => {
    if (!shown[k]) return;
    const colour = sides.get(k) ?? MIDDLE;
    disc(context, places[k], radius + unit, OUTLINE);
    disc(context, places[k], radius, colour);
    if (seen < (1 + points) / 2 && radius >= 2 * unit) disc(context, places[k], radius / 2, OUTLINE); // less certain
  });
}

function line(context, points, colour, width, closed = false) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (closed) context.closePath();
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineJoin = context.lineCap = "round";
  context.stroke();
}

function disc(context, [x, y], radius, colour) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
}

/** Draw the name and the score of an object above it, below it, or within; nowhere if better ones have all the room. */
function paintLabel(context, scene, i, scale, unit, taken) {
  if (scene.marked !== null && scene.marked !== i) return;
  const found = scene.objects[i];
  const colour = scene.colours[found.label % scene.colours.length];
  context.font = `${12 * unit}px ${FONT}`;
  const text = `${found.name} ${found.score.toFixed(2)}`;
  const [wide, high] = [context.measureText(text).width + 8 * unit, 17 * unit];
  const { width, height } = context.canvas;
  const ends = cornersOf(found).map(([, y]) => y * scale);
  const [top, bottom] = [Math.min(...ends), Math.max(...ends)];
  const x = Math.max(0, Math.min(found.box[0] * scale - unit, width - wide));
  const clash = (y) => taken.some((other) => Math.abs(other.y - y) < high && other.x < x + wide && x < other.x + other.wide);
  const places = [top - high, bottom, top, bottom - high].filter((y) => y >= 0 && y + high <= height);
  const y = places.find((each) => !clash(each));
  if (y === undefined) return;
  taken.push({ x, y, wide });
  context.fillStyle = colour;
  context.fillRect(x, y, wide, high);
  context.fillStyle = ink(colour);
  context.textBaseline = "middle";
  context.fillText(text, x + 4 * unit, y + high / 2);
}

/** Draw the best classes at the top left, with bars of their probabilities. */
function paintClasses(context, { classes }, unit) {
  context.font = `${14 * unit}px ${FONT}`;
  context.textBaseline = "middle";
  const texts = classes.map(({ name, score }) => `${name} ${score.toFixed(3)}`);
  const most = context.canvas.width - 16 * unit;
  const wide = Math.min(most, Math.max(120 * unit, ...texts.map((text) => context.measureText(text).width)) + 16 * unit);
  const high = 24 * unit;
  context.fillStyle = "#000b";
  context.fillRect(8 * unit, 8 * unit, wide, classes.length * high + 8 * unit);
  classes.forEach(({ score }, i) => {
    const y = 12 * unit + i * high;
    context.fillStyle = "#8fb8ff";
    context.fillRect(16 * unit, y + high - 5 * unit, Math.max(unit, score * (wide - 16 * unit)), 3 * unit);
    context.fillStyle = "#fff";
    context.fillText(texts[i], 16 * unit, y + high / 2 - 2 * unit, wide - 16 * unit);
  });
}
