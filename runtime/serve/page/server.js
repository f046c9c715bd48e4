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

/** Return the names of the server's streams. */
export async function askStreams() {
  return (await (await ask("v1/stream", {})).json()).streams;
}

/** Yield the images of a stream with a model's results, as the server draws them, until it ends. */
export async function* imagesOf(stream, model, { signal }) {
  const query = new URLSearchParams({ model: model.name, format: "mjpeg" });
  const { body } = await ask(`v1/stream/${encodeURIComponent(stream)}?${query}`, { signal });
  let bytes = new Uint8Array();
  for (const reader = body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const both = new Uint8Array(bytes.length + value.length);
    both.set(bytes);
    both.set(value, bytes.length);
    bytes = both;
    for (let part; (part = firstPart(bytes)); bytes = bytes.subarray(part.end)) {
      yield new Blob([bytes.subarray(part.start, part.end)], { type: "image/jpeg" });
    }
  }
}

/** Return where the first image of a part lies; null where it is not whole yet. */
function firstPart(bytes) {
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 500));
  const start = head.indexOf("\r\n\r\n") + 4;
  const length = /content-length: (\d+)/i.exec(head.slice(0, start));
  if (start < 4 || !length) return null;
  const end = start + Number(length[1]);
  return bytes.length >= end ? { start, end } : null;
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
