/** What the server is asked, and its failures as sentences. */

const KEPT = "deploykit token";
const BUSY = 5; // how often a request is sent again when the server says when to come back

/** A failure that is told to the user; `status` is that of HTTP, 0 where there was no answer. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let token = sessionStorage.getItem(KEPT) ?? "";

/** Send this token with every further request; it is kept until the tab is closed. */
export function useToken(text) {
  token = text.trim();
  sessionStorage.setItem(KEPT, token);
}

/** Whether a token was given. */
export const hasToken = () => token !== "";

/** Return what the server says of its models: `{models, ready, colours}`. */
export async function askModels() {
  return (await ask("v1/models", {})).json();
}

/** Return the address of a prediction. `format`: json, or that of a drawn image. */
export function addressOf(model, options, format = "json") {
  const query = new URLSearchParams({ model: model.name, version: model.version, ...options });
  if (format === "json") query.set("pixels", "1");
  else query.set("format", format);
  return `v1/predict?${query}`;
}

/**
 * Predict on an image.
 *
 * Returns the JSON of the answer and the milliseconds from here and back. `waiting` is called with the seconds until
 * the next try while the server is busy.
 */
export async function predict(image, name, model, options, { signal, waiting }) {
  const start = performance.now();
  const answer = await ask(addressOf(model, options), { method: "POST", body: form(image, name), signal }, waiting);
  const result = await answer.json();
  return { result, ms: performance.now() - start };
}

/** Return the image with its result as the server draws it. */
export async function drawn(image, name, model, options, { signal }) {
  const init = { method: "POST", body: form(image, name), signal };
  return (await ask(addressOf(model, options, "png"), init)).blob();
}

function form(image, name) {
  const body = new FormData();
  body.set("file", image, name);
  return body;
}

async function ask(address, init, waiting = () => {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  for (let left = BUSY; ; left--) {
    let answer;
    try {
      answer = await fetch(address, { ...init, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server does not answer. See whether it still runs and whether you are connected to it.");
    }
    if (answer.ok) return answer;
    const seconds = Number(answer.headers.get("retry-after"));
    if (answer.status !== 503 || !seconds || !left) throw new Failure(await said(answer), answer.status);
    waiting(seconds);
    await pause(seconds, init.signal);
  }
}

async function said(answer) {
  try {
    const { message } = await answer.json();
    if (message) return `The server says: ${message}`;
  } catch {
    // whatever stands before the server answers in its own way
  }
  return `The server answered with the status ${answer.status}.`;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
