// All the work, off the main thread: one request at a time.

import { Network } from "./network.js";
import { BitmapSource, MemorySource, prepareInput } from "./pixels.js";
import { PngWriter } from "./png.js";
import { render } from "./render.js";

const PREVIEW_SIDE = 900; // pixels on the longer side
const MAX_BYTES = 250e6;

const images = new Map(); // by number: { file, map, preview }
let network;

const requests = {
  async load(_, tell) {
    network = await Network.load(tell);
    return { place: network.place, files: network.files };
  },

  /** Compute an image's map; only the map and a small copy stay in memory. */
  async open({ image, file }) {
    const source = await decode(file, { colorSpaceConversion: "none" }); // as predict.py sees it
    const { width, height } = source;
    let input, preview;
    try {
      input = prepareInput(source, network.about);
      preview = makePreview(source);
    } finally {
      source.close();
    }
    if (await hasProfile(file)) {
      const coloured = await decode(file);
      preview = makePreview(coloured);
      coloured.close();
    }
    const map = await network.run(input);
    images.set(image, { file, map, preview });
    return { width, height, moving: await isMoving(file), milliseconds: Math.round(map.milliseconds) };
  },

  /** A small result for viewing, as ImageData. */
  async preview({ image, style }) {
    const { map, preview } = images.get(image);
    const out = new ImageData(preview.width, preview.height);
    let at = 0;
    await render(preview, map, style, (rows, channels) => {
      for (let i = 0; i < rows.length; i += channels, at += 4) {
        for (let c = 0; c < 3; c++) out.data[at + c] = rows[channels === 1 ? i : i + c];
        out.data[at + 3] = channels === 4 ? rows[i + 3] : 255;
      }
    });
    return out;
  },

  /** The full-size result, as a PNG file. */
  async save({ image, style }, tell) {
    const { file, map } = images.get(image);
    const source = await decode(file);
    try {
      let png;
      const emit = (rows, channels) => {
        png ??= new PngWriter(source.width, source.height, channels);
        return png.write(rows);
      };
      await render(source, map, style, emit, tell);
      return await png.finish();
    } finally {
      source.close();
    }
  },

  async forget({ image }) {
    images.delete(image);
  },
};

/** Decode an image; browsers turn it upright themselves. */
async function decode(file, options) {
  if (file.size > MAX_BYTES) throw new Error(`more than ${MAX_BYTES / 1e6} MB; shrink it`);
  if (!file.size) throw new Error("the file is empty");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw new Error(await explain(file));
  }
  return new BitmapSource(bitmap);
}

/** Why a file cannot be decoded. */
async function explain(file) {
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (/^....ftyp(hei|hev|mif|msf)/s.test(text)) {
    return "HEIC is not supported by this browser; save it as JPEG";
  }
  if (/^(II\*\0|MM\0\*)/.test(text)) return "TIFF is not supported by this browser; save it as PNG";
  if (/^(\xff\xd8|\x89PNG|RIFF....WEBP|GIF8|BM|....ftypavi)/s.test(text)) {
    return "cannot be read: damaged, incomplete or too large for this browser's memory";
  }
  return "not an image in a format that this browser supports";
}

/** Whether a file may have a colour profile, which browsers apply. */
async function hasProfile(file) {
  return /ICC_PROFILE|iCCP|ICCP|colr/.test(await readText(file.slice(0, 1 << 18)));
}

/** Whether a file has more images than the first, the only one that browsers decode. */
async function isMoving(file) {
  const head = await readText(file.slice(0, 1 << 18));
  if (head.startsWith("GIF8")) return hasTwo(new Uint8Array(await file.arrayBuffer()));
  if (/^RIFF....WEBPVP8X/s.test(head)) return Boolean(head.charCodeAt(20) & 2);
  return /^....ftypavis|^.PNG.*acTL(?!\0\0\0\x01)/s.test(head.split("IDAT")[0]);
}

/** Whether a GIF has a second image, by walking its blocks. */
function hasTwo(bytes) {
  const table = (flags) => (flags & 128 ? 6 << (flags & 7) : 0); // bytes of a colour table
  let images = 0;
  for (let at = 13 + table(bytes[10]); bytes[at] === 0x21 || bytes[at] === 0x2c; at++) {
    if (bytes[at] === 0x2c && images++) return true;
    at += bytes[at] === 0x2c ? 11 + table(bytes[at + 9]) : 2;
    while (bytes[at]) at += bytes[at] + 1;
  }
  return false;
}

const readText = async (part) => new TextDecoder("latin1").decode(await part.arrayBuffer());

function makePreview({ bitmap, width, height }) {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(width, height));
  const [w, h] = [width, height].map((n) => Math.max(1, Math.round(n * scale)));
  const context = new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, w, h);
  return new MemorySource(context.getImageData(0, 0, w, h).data, w, h);
}

let last = Promise.resolve();
self.onmessage = ({ data: { id, kind, ...rest } }) => {
  const tell = (done) => self.postMessage({ id, done });
  last = last.then(async () => {
    try {
      self.postMessage({ id, result: await requests[kind](rest, tell) });
    } catch (error) {
      self.postMessage({ id, error: error?.message || String(error) });
    }
  });
};
