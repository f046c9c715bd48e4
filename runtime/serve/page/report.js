/** A result in words: a sentence, tables and JSON. */

const ROWS = 100; // of a table; the JSON has all
const STAGES = {
  queue: "waiting for the model",
  read: "reading the image",
  letterbox: "fitting the image to the network",
  prepare: "preparing the image",
  inference: "the network",
  postprocess: "decoding",
};

/** Return an element. `attributes` are set as they are, `children` are elements and texts. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const counted = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
const percent = (share) => (share >= 0.001 || share === 0 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %");

/** Return what was found as a sentence, which is spoken too. */
export function sentenceOf(result, name) {
  if (result.detections) {
    const counts = new Map();
    for (const found of result.detections) counts.set(found.name, (counts.get(found.name) ?? 0) + 1);
    if (!counts.size) return `Nothing found in ${name}.`;
    const parts = [...counts].sort((a, b) => b[1] - a[1]);
    const told = parts.slice(0, 8).map(([each, count]) => `${each} ${count}`).join(", ");
    const rest = parts.length > 8 ? `, and ${counted(parts.length - 8, "more class", "more classes")}` : "";
    const more = result.truncated ? " There were more candidates than are looked at." : "";
    return `${counted(result.detections.length, "object")} in ${name}: ${told}${rest}.${more}`;
  }
  if (result.classes) {
    const [best] = result.classes;
    return `${name} is most likely ${best.name}, with a probability of ${percent(best.score)}.`;
  }
  if (result.shares) {
    const parts = Object.entries(result.shares);
    const told = parts.slice(0, 6).map(([each, share]) => `${each} ${percent(share)}`).join(", ");
    return `${name}: ${told}${parts.length > 6 ? `, and ${parts.length - 6} more` : ""}.`;
  }
  if (result.restored) return `${name} was restored; it has ${result.restored[1]} x ${result.restored[0]} pixels.`;
  if (result.features) {
    return `${name} has ${counted(result.features.length, "feature")}, of length ${Math.hypot(...result.features).toPrecision(4)}.`;
  }
  return `${name} was computed; the JSON has the result.`;
}

/**
 * Return the table of a result, or a paragraph.
 *
 * `colours`: of the classes. `points`: the visibility from which a keypoint counts. `marked`: the row that stands out,
 * or null; `mark` is called with another.
 */
export function tableOf(result, facts, colours, points, marked, mark) {
  if (result.detections) return objectTable(result, colours, points, marked, mark);
  if (result.classes) {
    const rows = result.classes.map(({ name, score }, i) => [`${i + 1}`, name, number(score.toFixed(4)), bar(score)]);
    return table("The classes of the image", ["Rank", "Class", "Probability", ""], rows, [2]);
  }
  if (result.shares) {
    const rows = Object.entries(result.shares).map(([name, share]) => {
      const label = labelOf(name, facts);
      const cell = named(name, colours[label % colours.length]);
      return [picker(label, label, name, marked, mark), cell, number(percent(share)), bar(share)];
    });
    return table("Shares of the image", ["Show", "Class", "Share", ""], rows, [2], (i) => labelOf(Object.keys(result.shares)[i], facts) === marked);
  }
  return element("p", { class: "quiet" }, "This kind of result has no table; the JSON has all of it.");
}

/** Return the number of a class of a label map by its name. */
export function labelOf(name, facts) {
  const label = facts.classes.indexOf(name);
  return label < 0 ? Number(name) || 0 : label;
}

function objectTable(result, colours, points, marked, mark) {
  const { detections } = result;
  if (!detections.length) return element("p", { class: "quiet" }, "Nothing was found. A lower confidence may show more.");
  const [first] = detections;
  const heads = ["No.", "Class", "Score", first.rotated ? "x, y, w, h, angle" : "x1, y1, x2, y2"];
  if (first.keypoints) heads.push("Keypoints");
  if (first.mask) heads.push("Pixels");
  const rows = detections.slice(0, ROWS).map((found, i) => {
    const { name, score, box, rotated, keypoints, mask } = found;
    const place = rotated
      ? `${rotated.slice(0, 4).map(Math.round).join(", ")}, ${Math.round((180 * rotated[4]) / Math.PI)}°`
      : box.map(Math.round).join(", ");
    const cell = named(name, colours[found.label % colours.length]);
    const row = [picker(i, i + 1, `${name} ${i + 1}`, marked, mark), cell, number(score.toFixed(3)), number(place)];
    if (first.keypoints) row.push(number(`${keypoints.filter(([, , seen]) => seen >= points).length} of ${keypoints.length}`));
    if (first.mask) row.push(number(`${mask.counts.reduce((sum, count, k) => sum + (k % 2 ? count : 0), 0)}`));
    return row;
  });
  const left = detections.length - rows.length;
  const caption = `${counted(detections.length, "object")}, in pixels of the image${left ? `; the first ${ROWS}, the JSON has all` : ""}`;
  return table(caption, heads, rows, [2, 3, 4, 5], (i) => i === marked);
}

/** Return the name of a class behind its colour. */
function named(name, colour) {
  const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.backgroundColor = colour;
  return element("span", { class: "class" }, swatch, name);
}

const number = (text) => element("span", {}, text);

function bar(share) {
  const inner = element("span");
  inner.style.width = `${100 * Math.min(1, share)}%`;
  return element("div", { class: "share", "aria-hidden": "true" }, inner);
}

/** Return the button that lets one object, or one class, stand out in the image. */
function picker(key, text, name, marked, mark) {
  const pressed = key === marked;
  const made = element("button", { type: "button", class: "pick", "aria-pressed": `${pressed}`, "aria-label": `Show ${name} alone`, "data-key": `${key}` }, `${text}`);
  made.addEventListener("click", () => mark(pressed ? null : key));
  return made;
}

function table(caption, heads, rows, numbers, isMarked = () => false) {
  const right = (i) => (numbers.includes(i) ? "number" : null);
  const head = element("tr", {}, ...heads.map((text, i) => (text ? element("th", { scope: "col", class: right(i) }, text) : element("td"))));
  const body = rows.map((cells, i) => element("tr", { class: isMarked(i) ? "marked" : null }, ...cells.map((cell, k) => element("td", { class: right(k) }, cell))));
  return element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

/** Return the table of the stages of a request. `there`: milliseconds from the browser and back, `drawing`: of drawing. */
export function timesOf(timings, there, drawing) {
  const { total, ...stages } = timings;
  const rows = Object.entries(stages).map(([stage, ms]) => [STAGES[stage] ?? stage, ms]);
  rows.push(["way there and back", Math.max(0, there - total)], ["drawing here", drawing]);
  const sum = rows.reduce((all, [, ms]) => all + ms, 0);
  const shown = [...rows, ["altogether", there + drawing]];
  return table(
    "Milliseconds of each stage",
    ["Stage", "ms", ""],
    shown.map(([stage, ms], i) => [stage, number(ms.toFixed(1)), i < rows.length ? bar(sum ? ms / sum : 0) : ""]),
    [1],
  );
}

/** Return what a model is as entries of a list. */
export function aboutOf(facts) {
  const [height, width] = facts.input_size;
  const entries = [
    ["Task", facts.task],
    ["Network", [facts.source, facts.precision].filter(Boolean).join(", ")],
    ["Input", `${width} x ${height} pixels (width x height); ${facts.input}`],
    ["Classes", facts.classes.length ? `${facts.classes.length}: ${few(facts.classes)}` : ""],
    ["Keypoints", facts.keypoints.length ? `${facts.keypoints.length}: ${few(facts.keypoints)}` : ""],
    ["Runs on", facts.providers.join(", ")],
    ...facts.notes.map((note) => ["Note", note]),
  ];
  return entries.filter(([, text]) => text).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]);
}

const few = (names) => names.slice(0, 12).join(", ") + (names.length > 12 ? ", ..." : "");

/** Return JSON with one line for each member and each object of a list. `short`: long texts are cut. */
export function jsonOf(value, short = false) {
  const cut = (key, each) => (short && typeof each === "string" && each.length > 400 ? `${each.slice(0, 60)}... (${each.length} characters)` : each);
  const members = Object.entries(value).map(([name, each]) => {
    const list = Array.isArray(each) && each.length && typeof each[0] === "object";
    const text = list ? `[\n    ${each.map((item) => JSON.stringify(item, cut)).join(",\n    ")}\n  ]` : JSON.stringify(each, cut);
    return `  ${JSON.stringify(name)}: ${text}`;
  });
  return `{\n${members.join(",\n")}\n}`;
}
