/** A camera as a source of single images. */

import { Failure } from "./server.js";

const LONGEST = 1280; // pixels of a side
const QUALITY = 0.9; // of the JPEG that is sent

const REASONS = {
  NotAllowedError: "This page may not use the camera. Allow it in the browser, then try again.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera is in use by another program.",
};

export class Camera {
  #stream = null;
  #video = document.createElement("video");

  get on() {
    return this.#stream !== null;
  }

  /** Open the camera that looks away from the user, if there are several. */
  async start() {
    if (!navigator.mediaDevices) {
      throw new Failure("Browsers give a camera to secure pages alone: open this one over https, or as http://127.0.0.1 on the server's machine.");
    }
    try {
      const wanted = { facingMode: "environment", width: { ideal: LONGEST } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
      this.#video.muted = this.#video.playsInline = true;
      this.#video.srcObject = this.#stream;
      await this.#video.play();
    } catch (error) {
      this.stop();
      throw new Failure(REASONS[error.name] ?? `The camera cannot be used: ${error.message}`);
    }
  }

  /** Return the image of this moment as a canvas and as a file; null where the camera has ended. */
  async frame() {
    const { videoWidth, videoHeight } = this.#video;
    if (!this.on || !this.#stream.active || !videoWidth) return null;
    const scale = Math.min(1, LONGEST / Math.max(videoWidth, videoHeight));
    const canvas = new OffscreenCanvas(Math.round(videoWidth * scale), Math.round(videoHeight * scale));
    canvas.getContext("2d").drawImage(this.#video, 0, 0, canvas.width, canvas.height);
    return { canvas, blob: await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY }) };
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = this.#video.srcObject = null;
  }
}
