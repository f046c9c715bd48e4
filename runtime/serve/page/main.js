/** The page: an image from a file, the clipboard or a camera goes to the server, and its result is shown. */

import { Camera } from "./camera.js";
import { Controls } from "./controls.js";
import { areaAround, cornersOf, paint } from "./draw.js";
import { bitsOf, exactBitmap, mapLayers, maskLayers, pngOf, readMap } from "./layers.js";
import { aboutOf, element, jsonOf, labelOf, sentenceOf, tableOf, timesOf } from "./report.js";
import { Failure, addressOf, askModels, askStreams, drawn, hasToken, imagesOf, predict, useToken } from "./server.js";

const REST = 250; // milliseconds without a change, after which the server is asked again
const SOON = 400; // milliseconds until a sentence is spoken, unless another one takes its place
const QUIET = 4000; // milliseconds between two sentences that are spoken, of a camera
const BACKGROUND = ["background", "_background_", "none"];
const MOST = 8192; // pixels of a canvas's side

const ids = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
const context = ids.canvas.getContext("2d");
const camera = new Camera();
const controls = new Controls(ids.options, changed);
const state = { models: [], colours: [], facts: null, source: null, answer: null, marked: null, asking: null, timer: 0, speaking: 0, spoken: 0 };

async function start() {
  try {
    const { models, ready, colours } = await askModels();
    Object.assign(state, { models, colours });
    ids.entry.hidden = true;
    failed(null);
    if (!ready) {
      say("The server is opening its models.");
      return setTimeout(start, 1000);
    }
  } catch (error) {
    if (error.status !== 401) return failed(error);
    document.querySelector("nav").hidden = true; // these pages want the token too, which a link cannot bring
    ids.entry.hidden = false;
    ids.token.focus();
    return failed(hasToken() ? new Failure("The server does not know this token.") : null);
  }
  const several = new Set(state.models.map(({ name }) => name)).size < state.models.length;
  ids.model.replaceChildren(
    ...state.models.map(({ name, version, task }, i) => new Option(`${name}${several ? `, version ${version}` : ""} (${task})`, i)),
  );
  const streams = await askStreams().catch(() => []);
  ids["stream-part"].hidden = !streams.length;
  ids.stream.replaceChildren(new Option("none", ""), ...streams.map((name) => new Option(name, name)));
  if (state.models.length) chooseModel(0);
}

function chooseModel(i) {
  state.facts = state.models[i];
  clearAnswer();
  controls.show(state.facts);
  ids.about.replaceChildren(...aboutOf(state.facts));
  if (ids.stream.value) watch();
  else ask();
}

/** Show the stream that is chosen, as the server draws it. */
async function watch() {
  const stream = ids.stream.value;
  stopCamera();
  state.asking?.abort();
  clearAnswer();
  failed(null);
  if (!stream) return;
  const { signal } = (state.asking = new AbortController());
  try {
    for await (const blob of imagesOf(stream, state.facts, { signal })) {
      const bitmap = await createImageBitmap(blob);
      if (signal.aborted) return;
      state.source = { blob, bitmap, name: `${stream}.jpg` };
      showSource();
      say(`The stream ${stream}, as the server draws it.`);
    }
    say(`The stream ${stream} has ended.`);
  } catch (error) {
    if (!signal.aborted) failed(error);
  }
}

/** Take an image that the user gives. */
function take(file) {
  stopCamera();
  ids.stream.value = "";
  if (file.type.startsWith("video/")) return failed(new Failure("This page shows images. A video is read by the command deploykit predict."));
  state.source = { blob: file, name: file.name || "image" };
  clearAnswer();
  ask();
}

function clearAnswer() {
  Object.assign(state, { answer: null, marked: null });
  ids.table.replaceChildren(element("p", { class: "quiet" }, "There is none yet."));
  ids.sentence.replaceChildren();
  ids["times-part"].hidden = ids["json-part"].hidden = ids.view.hidden = true;
}

/** Ask the server about the image as it is set; return whether there was an answer. */
async function ask() {
  const { source, facts } = state;
  state.asking?.abort();
  if (!source || !facts) return false;
  const asking = (state.asking = new AbortController());
  const { signal } = asking;
  clearTimeout(state.timer);
  ids.stage.classList.add("busy");
  ids.stage.setAttribute("aria-busy", "true");
  try {
    if (source.bitmap === undefined) source.bitmap = await createImageBitmap(source.blob).catch(() => null);
    if (signal.aborted) return false;
    if (!state.answer) showSource();
    const [options, confidence] = [controls.options, controls.confidence];
    const waiting = (seconds) => say(`The server is busy; the next try is in ${seconds} s.`);
    const { result, ms } = await predict(source.blob, source.name, facts, options, { signal, waiting });
    const pixels = await pixelsOf(result, source, facts, options, signal);
    if (signal.aborted) return false;
    state.answer = { result, ms, options, confidence, ...pixels, layers: new Map() };
    failed(null);
    show();
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    clearAnswer();
    showSource();
    failed(error);
    return false;
  } finally {
    if (state.asking === asking) {
      ids.stage.classList.remove("busy");
      ids.stage.removeAttribute("aria-busy");
    }
  }
}

/** Return what is to be drawn of the pixels in a result; what the browser cannot show, the server draws. */
async function pixelsOf(result, source, facts, options, signal) {
  const png = result.png && pngOf(result.png);
  const map = png && result.shares;
  if ((source.bitmap === null && !result.restored) || (map && (await bitsOf(png)) > 8)) {
    return { served: await createImageBitmap(await drawn(source.blob, source.name, facts, options, { signal })) };
  }
  if (map) return { map: readMap(await exactBitmap(png)) };
  return png ? { restored: await createImageBitmap(png) } : {};
}

/** The settings have changed: show the result anew, and ask for another one where this one does not do. */
function changed(server) {
  if (server && !enough()) {
    clearTimeout(state.timer);
    if (!camera.on) state.timer = setTimeout(ask, REST);
  }
  if (state.answer) show();
}

/** Whether the result holds what is asked for now: the same, or a part of it. */
function enough() {
  const { answer, facts } = state;
  if (!answer) return false;
  const { conf: before, ...others } = answer.options;
  const { conf: now, ...wanted } = controls.options;
  if (JSON.stringify(others) !== JSON.stringify(wanted)) return false;
  return before === now || (facts.options.conf.filter && controls.confidence >= answer.confidence);
}

/** Return the result without what the confidence leaves out. */
function filtered() {
  const { result, confidence } = state.answer;
  const least = controls.confidence;
  if (!result.detections || !state.facts.options.conf?.filter || least <= confidence) return result;
  return { ...result, detections: result.detections.filter(({ score }) => Math.fround(score) > Math.fround(least)) };
}

function showSource() {
  const { bitmap } = state.source;
  ids.hint.hidden = Boolean(bitmap);
  ids.canvas.hidden = !bitmap;
  ids.stage.classList.toggle("empty", !bitmap);
  ids.hint.textContent = bitmap === null ? "This browser cannot show this file. Drop, paste or choose another one." : "";
  if (bitmap) draw();
}

function show() {
  const { answer, source, facts, colours } = state;
  const result = filtered();
  if (result.detections && state.marked >= result.detections.length) state.marked = null;
  ids.canvas.hidden = ids["times-part"].hidden = ids["json-part"].hidden = ids.view.hidden = false;
  ids["labels-part"].hidden = !result.detections && !result.classes;
  ids.hint.hidden = true;
  ids.stage.classList.remove("empty");
  const before = performance.now();
  draw();
  const drawing = performance.now() - before;
  say(sentenceOf(result, source.name) + (answer.served ? " The server has drawn it." : ""));
  const held = ids.table.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  ids.table.replaceChildren(tableOf(result, facts, colours, controls.settings.points, state.marked, mark));
  if (held !== undefined) ids.table.querySelector(`[data-key="${held}"]`)?.focus();
  ids.times.replaceChildren(timesOf(result.timings, answer.ms, drawing));
  if (ids["json-open"].open) ids.json.textContent = jsonOf(result, true);
  ids.curl.textContent = command();
}

/** Draw the image, with its result where there is one, as large as there is room. */
function draw() {
  const [height, width] = sizeOf();
  const room = [ids.stage.clientWidth, Math.max(240, 0.75 * innerHeight)];
  const zoom = ids.full.checked && state.answer ? 1 : Math.min(room[0] / width, room[1] / height, 8);
  const shown = [width * zoom, height * zoom].map(Math.round);
  const density = Math.min(devicePixelRatio, MOST / Math.max(...shown));
  [ids.canvas.width, ids.canvas.height] = shown.map((side) => Math.max(1, Math.round(side * density)));
  [ids.canvas.style.width, ids.canvas.style.height] = shown.map((side) => `${side}px`);
  paint(context, scene(), ids.canvas.width / width, density);
}

function sizeOf() {
  const { answer, source } = state;
  if (answer) return answer.result.restored ?? answer.result.size;
  return [source.bitmap.height, source.bitmap.width];
}

function scene() {
  const { answer, source, facts, colours, marked } = state;
  const { settings } = controls;
  const base = { facts, colours, marked, settings, points: settings.points, image: source.bitmap, objects: [], classes: [] };
  if (!answer) return base;
  if (answer.served) return { ...base, image: answer.served };
  const result = filtered();
  const objects = (result.detections ?? []).map((found, i) => {
    if (found.mask && !answer.layers.has(i)) answer.layers.set(i, maskLayers(found.mask, colours[found.label % colours.length]));
    return { ...found, layers: answer.layers.get(i) };
  });
  const map = answer.map && layersOfMap(answer, facts, colours, marked);
  return { ...base, objects, classes: result.classes ?? [], map, restored: answer.restored };
}

function layersOfMap(answer, facts, colours, only) {
  if (answer.mapLayers?.only !== only) {
    const bare = BACKGROUND.includes(facts.classes[0]?.toLowerCase()) && only === null ? 0 : -1;
    answer.mapLayers = { only, ...mapLayers(answer.map, colours, bare, only) };
  }
  return answer.mapLayers;
}

/** Let one object, or one class of a label map, stand out; null: none. */
function mark(key) {
  state.marked = key;
  show();
}

function markAt(event) {
  const result = state.answer && filtered();
  if (!result) return;
  const [height, width] = sizeOf();
  const x = (event.offsetX / ids.canvas.clientWidth) * width;
  const y = (event.offsetY / ids.canvas.clientHeight) * height;
  if (result.detections) {
    const under = result.detections.map((found, i) => [areaAround(cornersOf(found), x, y), i]).filter(([area]) => area > 0);
    const [best] = under.sort(([a], [b]) => a - b);
    mark(best && best[1] !== state.marked ? best[1] : null);
  } else if (state.answer.map) {
    const label = state.answer.map.labels[Math.floor(y) * width + Math.floor(x)];
    const known = Object.keys(result.shares).some((name) => labelOf(name, state.facts) === label);
    mark(known && label !== state.marked ? label : null);
  }
}

/** Show a sentence, and have it spoken when no other one follows soon, or now and then if a camera gives many. */
function say(text) {
  if (ids.sentence.textContent === text) return;
  ids.sentence.textContent = text;
  ids.canvas.setAttribute("aria-label", text);
  const now = performance.now();
  if (camera.on && now - state.spoken < QUIET) return;
  state.spoken = now;
  clearTimeout(state.speaking);
  state.speaking = setTimeout(() => (ids.live.textContent = text), SOON);
}

function failed(error) {
  if (error && !(error instanceof Failure)) console.error(error);
  ids.error.textContent = error ? (error instanceof Failure ? error.message : `The page failed: ${error.message}`) : "";
  if (!error) return;
  clearTimeout(state.speaking);
  ids.sentence.textContent = ids.live.textContent = "";
}

function command() {
  const { facts, source } = state;
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const address = new URL(addressOf(facts, controls.options), location.href).href.replace(/&pixels=1$/, "");
  const head = hasToken() ? " -H 'Authorization: Bearer TOKEN'" : "";
  return `curl${head} -F ${quoted(`file=@${source.name}`)} ${quoted(address)}`;
}

async function toggleCamera() {
  if (camera.on) return stopCamera();
  ids.stream.value = "";
  state.asking?.abort();
  try {
    await camera.start();
  } catch (error) {
    return failed(error);
  }
  ids.camera.setAttribute("aria-pressed", "true");
  ids.camera.textContent = "Stop the camera";
  while (camera.on) {
    const frame = await camera.frame();
    if (!frame || !camera.on) break;
    state.source = { blob: frame.blob, bitmap: frame.canvas, name: "camera.jpg" };
    if (!(await ask()) && ids.error.textContent) break;
    await new Promise(requestAnimationFrame); // which waits while the page is hidden
  }
  stopCamera();
}

function stopCamera() {
  camera.stop();
  ids.camera.setAttribute("aria-pressed", "false");
  ids.camera.textContent = "Use the camera";
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => state.source.name.replace(/\.[^.]*$/, "") || "image";

async function saveDrawn() {
  const [height, width] = sizeOf();
  const scale = Math.min(1, MOST / Math.max(height, width));
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  paint(canvas.getContext("2d"), scene(), canvas.width / width, Math.max(1, Math.max(canvas.width, canvas.height) / 1200));
  save(await canvas.convertToBlob({ type: "image/png" }), `${stem()}-drawn.png`);
}

async function copy() {
  const text = jsonOf(filtered());
  try {
    await navigator.clipboard.writeText(text);
    ids.live.textContent = ids.copy.textContent = "Copied";
    setTimeout(() => (ids.copy.textContent = "Copy"), 2000);
  } catch {
    failed(new Failure("The browser does not let this page copy. Download the JSON instead."));
  }
}

ids.model.addEventListener("change", () => chooseModel(ids.model.selectedIndex));
ids.stream.addEventListener("change", watch);
ids.file.addEventListener("change", () => {
  if (ids.file.files.length) take(ids.file.files[0]);
  ids.file.value = ""; // so that the same file can be chosen again
});
ids.camera.addEventListener("click", toggleCamera);
ids.entry.addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(ids.token.value);
  start();
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData?.files.length) take(clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  ids.stage.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) ids.stage.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  ids.stage.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file);
  else failed(new Failure("Drop a file: what was dropped here is none."));
});
ids.canvas.addEventListener("click", markAt);
ids.full.addEventListener("change", draw);
ids.labels.addEventListener("change", () => {
  controls.settings.labels = ids.labels.checked;
  draw();
});
ids.save.addEventListener("click", saveDrawn);
ids.copy.addEventListener("click", copy);
ids.download.addEventListener("click", () => save(new Blob([jsonOf(filtered())], { type: "application/json" }), `${stem()}.json`));
ids["json-open"].addEventListener("toggle", () => {
  if (ids["json-open"].open) ids.json.textContent = jsonOf(filtered(), true);
});
new ResizeObserver(() => {
  if (!ids.canvas.hidden) draw();
}).observe(ids.stage);
start();
