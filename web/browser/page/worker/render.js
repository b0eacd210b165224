// Results from an image and its map, in strips of rows: as in src/pictures/render.py.

import { BoxShrink, Stretched, layOnWhite, strips } from "./pixels.js";
import {
  COLOUR_SIDE, RADII, REFINE_SIDE, boxMean, fuse, isMixed, localColours, placeBetween,
} from "./matting.js";

const REACH = 2; // pixels by which colours continue into transparent parts
const MARGIN = 2 * RADII.reduce((a, b) => a + b) + REACH;
const CHANNELS = { mask: 1, cutout: 4, background: 3 };

/**
 * Make a result from an image of any size, and pass its rows to `emit`.
 *
 * @param source a {@link BitmapSource} or {@link MemorySource}
 * @param map { values, size }: the network's square map from 0 to 1
 * @param style { mode, refine, background }: the background is "blur" or [red, green, blue]
 * @param emit called from top to bottom with rows (bytes) and the number of channels; may be async
 * @param tell called with the fraction done, from 0 to 1
 */
export async function render(source, map, style, emit, tell = () => {}) {
  const channels = CHANNELS[style.mode];
  const passes = 1 + style.refine + (style.mode !== "mask");
  let pass = 0;
  const each = async (margin, work) => {
    for (const strip of strips(source, margin)) {
      await work(strip);
      tell((pass + strip.bottom / source.height) / passes);
    }
    pass++;
  };
  const alphas = new Alphas(source, map);
  if (style.refine) await alphas.refine(source, each);
  if (style.mode === "mask") {
    await each(0, ({ top, bottom }) => {
      const rgba = style.refine ? layOnWhite(source.rows(top, bottom).slice()) : null;
      return emit(Uint8Array.from(alphas.rows(top, bottom, rgba), toBytes), channels);
    });
    return;
  }
  const small = await shrink(source, alphas, each);
  const backdrop = style.mode === "background" && makeBackdrop(style.background, small, source);
  await each(MARGIN, (strip) => {
    const cut = cutOut(source, alphas, small, strip);
    if (backdrop) return emit(compose(cut, backdrop, strip, source.width), channels);
    clearHidden(cut, source.width, strip);
    const start = 4 * (strip.top - strip.first) * source.width;
    return emit(cut.subarray(start, start + 4 * (strip.bottom - strip.top) * source.width), channels);
  });
}

const toBytes = (value) => Math.round(255 * value);

/** The map at full size, row by row. */
class Alphas {
  constructor({ width, height }, { values, size }) {
    this.width = width;
    this.coarse = new Stretched([values], size, size, { width, height });
  }

  /** Align edges with those in the image. */
  async refine(source, each) {
    const { width } = this;
    const small = new BoxShrink(source, REFINE_SIDE, 4);
    await each(0, ({ top, bottom }) => {
      const rgba = layOnWhite(source.rows(top, bottom).slice());
      const alpha = this.rows(top, bottom);
      for (let y = top; y < bottom; y++) {
        const start = (y - top) * width;
        for (let c = 0; c < 3; c++) small.add(c, y, (x) => rgba[4 * (start + x) + c] / 255);
        small.add(3, y, (x) => alpha[start + x]);
      }
    });
    const planes = small.finish();
    const colours = localColours(planes.slice(0, 3), planes[3], small.width, small.height);
    this.fine = colours && new Stretched(colours, small.width, small.height, source);
  }

  /** Floats from 0 to 1; to refine them, pass the same rows of the image on white as `rgba`. */
  rows(top, bottom, rgba) {
    const { width, coarse, fine } = this;
    const out = new Float32Array((bottom - top) * width);
    for (let y = top; y < bottom; y++) {
      const start = (y - top) * width;
      coarse.go(y);
      for (let x = 0; x < width; x++) out[start + x] = Math.min(1, coarse.at(0, x));
      if (!fine || !rgba) continue;
      fine.go(y);
      const band = fine.mixed[7];
      if (!band.some((value) => value >= 0.5)) continue;
      for (let x = 0; x < width; x++) {
        if (fine.at(7, x) < 0.5) continue;
        const i = 4 * (start + x);
        out[start + x] = placeBetween(
          [rgba[i] / 255, rgba[i + 1] / 255, rgba[i + 2] / 255],
          [fine.at(0, x), fine.at(1, x), fine.at(2, x)],
          [fine.at(3, x), fine.at(4, x), fine.at(5, x)],
          out[start + x],
          fine.at(6, x),
        );
      }
    }
    return out;
  }
}

/** A small image with its map, its own alpha, and the colours of object and background. */
async function shrink(source, alphas, each) {
  const { width } = source;
  const small = new BoxShrink(source, COLOUR_SIDE, 5);
  let transparent = false;
  await each(0, ({ top, bottom }) => {
    const rgba = source.rows(top, bottom);
    const alpha = alphas.rows(top, bottom, alphas.fine && layOnWhite(rgba.slice()));
    for (let y = top; y < bottom; y++) {
      const start = (y - top) * width;
      for (let c = 0; c < 3; c++) {
        small.add(c, y, (x) => rgba[4 * (start + x) + c] * rgba[4 * (start + x) + 3]);
      }
      small.add(3, y, (x) => rgba[4 * (start + x) + 3] / 255);
      small.add(4, y, (x) => alpha[start + x]);
    }
    for (let i = 3; i < rgba.length && !transparent; i += 4) transparent = rgba[i] < 255;
  });
  const [red, green, blue, own, alpha] = small.finish();
  const pixels = [red, green, blue].map((plane) => plane.map((v, i) => v / 255 ** 2 / (own[i] || 1)));
  const side = Math.max(small.width, small.height);
  const radii = [Math.floor(side / 11), Math.floor(side / 32)];
  const layers = { pixels, near: pixels, behind: pixels, alpha, own };
  const { near, behind } = fuse(layers, small.width, small.height, radii);
  const colours = new Stretched([...near, ...behind], small.width, small.height, source);
  return { width: small.width, height: small.height, pixels, own, alpha, colours, transparent };
}

/** RGBA of a strip with its margin: the object's own colours, with the map as alpha. */
function cutOut(source, alphas, small, { first, end }) {
  const { width } = source;
  const seen = source.rows(first, end);
  const alpha = alphas.rows(first, end, alphas.fine && layOnWhite(seen.slice()));
  const result = Uint8Array.from(seen);
  for (let i = 0; i < alpha.length; i++) {
    result[4 * i + 3] = Math.round(toBytes(alpha[i]) * (seen[4 * i + 3] / 255));
  }
  if (!alpha.some(isMixed)) return result;
  const plane = (value) => Float32Array.from(alpha, (_, i) => value(i));
  const pixels = [0, 1, 2].map((c) => plane((i) => seen[4 * i + c] / 255));
  const own = small.transparent ? plane((i) => seen[4 * i + 3] / 255) : null;
  const far = Array.from({ length: 6 }, () => new Float32Array(alpha.length));
  for (let y = first; y < end; y++) {
    small.colours.go(y);
    const start = (y - first) * width;
    far.forEach((out, c) => {
      for (let x = 0; x < width; x++) out[start + x] = small.colours.at(c, x);
    });
  }
  const layers = { pixels, near: far.slice(0, 3), behind: far.slice(3), alpha, own };
  const { near } = fuse(layers, width, end - first, RADII);
  for (let i = 0; i < alpha.length; i++) {
    if (isMixed(alpha[i])) for (let c = 0; c < 3; c++) result[4 * i + c] = toBytes(near[c][i]);
  }
  return result;
}

/**
 * Leave nothing of the removed background under transparent pixels: near visible pixels, continue
 * their colours; elsewhere, black.
 */
function clearHidden(rgba, width, { first, top, bottom, end }) {
  const before = rgba.slice();
  const height = end - first;
  const alpha = Float32Array.from({ length: height * width }, (_, i) => before[4 * i + 3]);
  const visible = boxMean(alpha, width, height, REACH);
  for (let y = top - first; y < bottom - first; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (alpha[i]) continue;
      const sums = [0, 0, 0, 0];
      const low = visible[i] > 0 ? -REACH : 1;
      for (let down = low; down <= REACH; down++) {
        for (let right = low; right <= REACH; right++) {
          const row = Math.min(height - 1, Math.max(0, y + down));
          const at = row * width + Math.min(width - 1, Math.max(0, x + right));
          for (let c = 0; c < 3; c++) sums[c] += before[4 * at + c] * alpha[at];
          sums[3] += alpha[at];
        }
      }
      for (let c = 0; c < 3; c++) rgba[4 * i + c] = visible[i] > 0 ? Math.round(sums[c] / Math.max(1e-3, sums[3])) : 0;
    }
  }
}

/** The new background: one colour, or the image's own background blurred. */
function makeBackdrop(background, small, source) {
  if (background !== "blur") return { go() {}, at: (c) => background[c] / 255 };
  const { width, height, alpha, own } = small;
  const sigma = Math.max(2, Math.max(source.width, source.height) / 40) * (width / source.width);
  const radius = Math.max(1, Math.round((Math.sqrt(4 * sigma * sigma + 1) - 1) / 2)); // three boxes
  const blur = (plane) => [1, 2, 3].reduce((blurred) => blurOnce(blurred, width, height, radius), plane);
  // Colours weighted by how much of them is background: the object must not bleed into the blur.
  let shown = alpha.map((value, i) => (1 - value) * own[i]);
  let known = blur(shown);
  if (!known.some((value) => value >= 32 / 255)) {
    shown = shown.fill(1);
    known = blur(shown);
  }
  const planes = small.pixels.map((plane) => {
    const blurred = blur(plane.map((value, i) => value * shown[i]));
    return blurred.map((value, i) => value / Math.max(1e-6, known[i]));
  });
  const sure = known.map((value) => (value >= 32 / 255 ? 1 : 0));
  return new Stretched(fillHidden(planes, sure, width, height), width, height, source);
}

/** Means over windows; beyond the border, its pixels are repeated. */
function blurOnce(plane, width, height, radius) {
  const [wide, high] = [width + 2 * radius, height + 2 * radius];
  const inside = (i, length) => Math.min(length - 1, Math.max(0, i - radius));
  const padded = Float32Array.from({ length: wide * high }, (_, i) => {
    return plane[inside(Math.floor(i / wide), height) * width + inside(i % wide, width)];
  });
  const means = boxMean(padded, wide, high, radius);
  return plane.map((_, i) => means[(Math.floor(i / width) + radius) * wide + (i % width) + radius]);
}

/** Planes, filled in smoothly where `known` is 0. */
function fillHidden(planes, known, width, height) {
  if (!known.includes(0) || Math.max(width, height) === 1) return planes;
  const half = new BoxShrink({ width, height }, Math.ceil(Math.max(width, height) / 2), planes.length + 1);
  const layers = [...planes.map((plane) => plane.map((value, i) => value * known[i])), known];
  for (let y = 0; y < height; y++) layers.forEach((layer, i) => half.add(i, y, (x) => layer[y * width + x]));
  const means = half.finish();
  const share = means.pop();
  const colours = means.map((plane) => plane.map((value, i) => value / (share[i] || 1)));
  const filled = fillHidden(colours, share.map((value) => (value > 0 ? 1 : 0)), half.width, half.height);
  const around = new Stretched(filled, half.width, half.height, { width, height });
  const result = planes.map((plane) => plane.slice());
  for (let y = 0; y < height; y++) {
    around.go(y);
    for (let x = 0, i = y * width; x < width; x++, i++) {
      if (!known[i]) result.forEach((plane, c) => (plane[i] = around.at(c, x)));
    }
  }
  return result;
}

/** RGB of a strip without its margin: the cut-out over its backdrop. */
function compose(cut, backdrop, { first, top, bottom }, width) {
  const out = new Uint8Array(3 * (bottom - top) * width);
  for (let y = top; y < bottom; y++) {
    backdrop.go(y);
    for (let x = 0; x < width; x++) {
      const from = 4 * ((y - first) * width + x), to = 3 * ((y - top) * width + x);
      const alpha = cut[from + 3] / 255;
      for (let c = 0; c < 3; c++) {
        const behind = alpha < 1 ? toBytes(backdrop.at(c, x)) : 0;
        out[to + c] = Math.round(alpha * cut[from + c] + (1 - alpha) * behind);
      }
    }
  }
  return out;
}
