/** The settings: what a model can be asked for, and how its results are shown. */

import { element } from "./report.js";

const NAMES = {
  conf: "Confidence",
  iou: "Overlap (IoU)",
  max_det: "Most objects",
  classes: "Classes",
  agnostic: "Suppress across classes",
  multi_label: "Several classes per object",
  top: "Classes to list",
  tile: "Size of tiles",
  overlap: "Overlap of tiles",
};
const FIRST = ["conf", "iou", "top"]; // the others are folded away
const MASKED = ["instances", "segment"];

/** What is asked for and shown; `changed` is called with true where the server may have to be asked again. */
export class Controls {
  constructor(form, changed) {
    this.form = form;
    this.changed = changed;
    this.facts = null;
    this.settings = { opacity: 0.5, labels: true, points: 0.5, split: 0 };
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Show the settings of a model, at their defaults. */
  show(facts) {
    this.facts = facts;
    this.fields = new Map();
    this.settings.points = facts.keypoint_threshold;
    this.settings.split = 0;
    const names = Object.keys(facts.options);
    const parts = names.filter((name) => FIRST.includes(name)).map((name) => this.#option(name));
    if (facts.keypoints.length) parts.push(this.#view("points", "Keypoints from a visibility of"));
    if (MASKED.includes(facts.task)) parts.push(this.#view("opacity", "Opacity of the classes' colours"));
    if (facts.task === "restore") parts.push(this.#view("split", "Show the original up to"));
    const more = names.filter((name) => !FIRST.includes(name)).map((name) => this.#option(name));
    if (more.length) parts.push(element("details", {}, element("summary", {}, "More settings"), ...more));
    if (parts.length) {
      const reset = element("button", { type: "button" }, "Reset");
      reset.addEventListener("click", () => {
        this.show(facts);
        this.form.querySelector("button").focus();
        this.changed(true);
      });
      parts.push(element("div", {}, reset));
    } else {
      parts.push(element("p", { class: "quiet" }, "This model has no settings."));
    }
    this.form.replaceChildren(...parts);
  }

  /** The options that differ from the model's own, as the server takes them. */
  get options() {
    const found = {};
    for (const [name, { field, standard }] of this.fields) {
      const value = field.type === "checkbox" ? `${field.checked}` : field.value.trim();
      if (value !== "" && value !== standard) found[name] = value;
    }
    return found;
  }

  /** The confidence that is chosen; null where the model has none. */
  get confidence() {
    const found = this.fields?.get("conf");
    return found ? Number(found.field.value) : null;
  }

  #option(name) {
    const facts = this.facts.options[name];
    const range = facts.type === "number" && facts.maximum !== undefined;
    const kind = range ? "range" : { boolean: "checkbox", integer: "number", number: "number" }[facts.type] ?? "text";
    const limits = range ? { min: Math.max(facts.minimum, 0.01), max: facts.maximum, step: 0.01 } : { min: facts.minimum, max: facts.maximum };
    const field = this.#field(`option-${name}`, kind, limits, facts.default);
    const standard = kind === "checkbox" ? `${field.checked}` : facts.default === null ? "" : field.value;
    this.fields.set(name, { field, standard });
    field.addEventListener(range ? "input" : "change", () => this.changed(true));
    return this.#row(field, NAMES[name] ?? name, facts.description);
  }

  #view(name, text) {
    const field = this.#field(`view-${name}`, "range", { min: 0, max: 1, step: 0.01 }, this.settings[name]);
    field.addEventListener("input", () => {
      this.settings[name] = Number(field.value);
      this.changed(false);
    });
    return this.#row(field, text);
  }

  #field(id, kind, limits, value) {
    const given = Object.fromEntries(Object.entries(limits).filter(([, limit]) => limit !== undefined && kind !== "text" && kind !== "checkbox"));
    const field = element("input", { id, type: kind, autocomplete: "off", spellcheck: kind === "text" ? "false" : null, ...given });
    if (kind === "checkbox") field.checked = Boolean(value);
    else if (value !== null) field.value = value;
    else field.placeholder = "default";
    return field;
  }

  #row(field, text, description = "") {
    const parts = [element("label", { for: field.id }, text)];
    if (field.type === "range") {
      const shown = element("output", { for: field.id }, Number(field.value).toFixed(2));
      field.addEventListener("input", () => shown.replaceChildren(Number(field.value).toFixed(2)));
      parts.push(shown);
    }
    parts.push(field);
    if (description) {
      field.setAttribute("aria-describedby", `${field.id}-says`);
      parts.push(element("span", { class: "quiet", id: `${field.id}-says` }, description));
    }
    return element("div", { class: "option" }, ...parts);
  }
}
