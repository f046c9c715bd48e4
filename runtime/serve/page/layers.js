/** Masks and label maps of a result as canvases, which are laid over the image. */

/** Return an image without colour management, so that its values are those of the file. */
export function exactBitmap(blob) {
  return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/** Return the bytes of a Base64 text as a PNG file. */
export function pngOf(text) {
  return new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], { type: "image/png" });
}

/** Return how many bits a PNG file has in each channel. */
export async function bitsOf(png) {
  return new Uint8Array(await png.slice(24, 25).arrayBuffer())[0];
}

/**
 * Return the part of a mask in which it is: `{x, y, width, height, bits}`, row by row; null where it is empty.
 *
 * `lengths` are runs of background and object in turn, column by column.
 */
export function maskOf({ size, counts }) {
  const height = size[0];
  let [x1, y1, x2, y2] = [Infinity, Infinity, 0, 0];
  for (const [start, end] of runs(counts)) {
    const [first, last] = [Math.floor(start / height), Math.floor((end - 1) / height)];
    x1 = Math.min(x1, first);
    x2 = last + 1;
    y1 = Math.min(y1, first === last ? start % height : 0);
    y2 = Math.max(y2, first === last ? ((end - 1) % height) + 1 : height);
  }
  if (!x2) return null;
  const mask = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  mask.bits = new Uint8Array(mask.width * mask.height);
  for (const [start, end] of runs(counts)) {
    for (let k = start, x = Math.floor(k / height), y = k % height; k < end; k++) {
      mask.bits[(y - y1) * mask.width + x - x1] = 1;
      if (++y === height) [x, y] = [x + 1, 0];
    }
  }
  return mask;
}

function* runs(counts) {
  for (let i = 0, place = 0; i < counts.length; place += counts[i++]) {
    if (i % 2 && counts[i]) yield [place, place + counts[i]];
  }
}

/** Return the layers of a mask: its surface and its border, and where they lie in the image; null where it is empty. */
export function maskLayers(lengths, colour) {
  const mask = maskOf(lengths);
  if (mask === null) return null;
  const { x, y, width, height, bits } = mask;
  const value = packed(...rgb(colour));
  const surface = painted(width, height, (i) => (bits[i] ? value : 0));
  const border = painted(width, height, (i, column, row) => {
    if (!bits[i]) return 0;
    const edge = !column || !row || column === width - 1 || row === height - 1;
    return edge || !(bits[i - 1] && bits[i + 1] && bits[i - width] && bits[i + width]) ? value : 0;
  });
  return { x, y, surface, border };
}

/** Return a label map from its PNG of 8 bits: `{labels, width, height}`. */
export function readMap(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const labels = new Uint8Array(width * height);
  for (let i = 0; i < labels.length; i++) labels[i] = data[4 * i];
  return { labels, width, height };
}

/**
 * Return the layers of a label map: its surface, and the borders between classes.
 *
 * `bare`: a class that is not painted, or -1; `only`: the one class that is painted, or null.
 */
export function mapLayers({ labels, width, height }, colours, bare, only = null) {
  const shown = (label) => label !== bare && (only === null || label === only);
  const values = Array.from({ length: 256 }, (_, label) => rgb(colours[label % colours.length]));
  const fills = values.map((colour, label) => (shown(label) ? packed(...colour) : 0));
  const lights = values.map((colour, label) => (shown(label) ? packed(...colour.map((c) => (c >> 1) + 127)) : 0));
  const surface = painted(width, height, (i) => fills[labels[i]]);
  const border = painted(width, height, (i, column, row) => {
    const right = column + 1 < width && labels[i + 1] !== labels[i];
    return right || (row + 1 < height && labels[i + width] !== labels[i]) ? lights[labels[i]] : 0;
  });
  return { x: 0, y: 0, surface, border };
}

/** Return red, green and blue of a colour such as #1edc6e. */
export const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** Return an opaque colour as the four bytes of a pixel. */
const packed = (red, green, blue) => new Uint32Array(new Uint8Array([red, green, blue, 255]).buffer)[0];

function painted(width, height, valueAt) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) pixels[i] = valueAt(i, column, row);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
