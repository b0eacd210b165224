// Images in strips of rows, and antialiased resizing as in Pillow and torch.

export const MAX_PIXELS = 100e6; // 400 MB once decoded; phones fail not far beyond
export const MAX_SIDE = 100e3; // strips of wider images would take GB
const STRIP = 1 << 20; // pixels processed at once
const TILE = 4096; // side of a canvas in pixels: beyond a browser's limit, it silently stays empty

/** An image decoded by the browser, read in strips, tile by tile, so that canvases are small. */
export class BitmapSource {
  constructor(bitmap) {
    this.bitmap = bitmap;
    this.width = bitmap.width;
    this.height = bitmap.height;
  }

  /** RGBA of the rows from `top` to `bottom` (exclusive), with straight alpha. */
  rows(top, bottom) {
    const { width } = this;
    const out = new Uint8ClampedArray(4 * width * (bottom - top));
    for (let y = top; y < bottom; y += TILE) {
      for (let x = 0; x < width; x += TILE) {
        const [wide, high] = [Math.min(TILE, width - x), Math.min(TILE, bottom - y)];
        const tile = this.read(x, y, wide, high);
        for (let row = 0; row < high; row++) {
          const line = tile.subarray(4 * wide * row, 4 * wide * (row + 1));
          out.set(line, 4 * ((y - top + row) * width + x));
        }
      }
    }
    return out;
  }

  read(left, top, width, height) {
    const { canvas } = this.context ?? {};
    if (!canvas || canvas.width < width || canvas.height < height) {
      const larger = new OffscreenCanvas(Math.min(TILE, this.width), height);
      this.context = larger.getContext("2d", { willReadFrequently: true });
      this.context.globalCompositeOperation = "copy";
    }
    this.context.drawImage(this.bitmap, left, top, width, height, 0, 0, width, height);
    return this.context.getImageData(0, 0, width, height).data;
  }

  close() {
    this.bitmap.close();
    this.context = null;
  }
}

/** Pixels in memory, with the same interface. */
export class MemorySource {
  constructor(data, width, height) {
    Object.assign(this, { data, width, height });
  }

  rows(top, bottom) {
    return this.data.subarray(4 * top * this.width, 4 * bottom * this.width);
  }

  close() {}
}

/** Strips of an image: the rows to write, and those to read for them, with a margin. */
export function* strips({ width, height }, margin = 0) {
  const step = Math.max(1, Math.floor(STRIP / width) - 2 * margin, 2 * margin);
  for (let top = 0; top < height; top += step) {
    const bottom = Math.min(height, top + step);
    yield { top, bottom, first: Math.max(0, top - margin), end: Math.min(height, bottom + margin) };
  }
}

/**
 * For each of `size` output positions, the start of its window in the input, and the weights in it.
 * Bilinear; when shrinking, the window grows (antialiasing).
 */
export function makeWindows(length, size) {
  const scale = length / size;
  const reach = Math.max(1, scale);
  const count = Math.ceil(2 * reach) + 1;
  const first = new Int32Array(size);
  const weights = new Float64Array(size * count);
  for (let i = 0; i < size; i++) {
    const centre = scale * (i + 0.5);
    first[i] = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(length, Math.floor(centre + reach + 0.5));
    let sum = 0;
    for (let j = first[i]; j < end; j++) {
      const weight = Math.max(0, 1 - Math.abs(j + 0.5 - centre) / reach);
      weights[i * count + j - first[i]] = weight;
      sum += weight;
    }
    for (let k = 0; k < count; k++) weights[i * count + k] /= sum;
    // A window that would reach past the end starts earlier, so that loops need no bounds checks.
    const back = first[i] - Math.max(0, length - count);
    if (back <= 0) continue;
    first[i] -= back;
    weights.copyWithin(i * count + back, i * count, (i + 1) * count - back);
    weights.fill(0, i * count, i * count + back);
  }
  return { first, count: Math.min(count, length), stride: count, weights };
}

/** The same with 15-bit weights, as torch and Pillow use for bytes. */
function quantize(windows) {
  const highest = windows.weights.reduce((a, b) => Math.max(a, b), 0);
  const bits = Math.min(22, Math.ceil(Math.log2((2 ** 15 - 0.5) / highest)) - 1);
  return { ...windows, weights: windows.weights.map((w) => Math.floor(w * 2 ** bits + 0.5) / 2 ** bits) };
}

const toByte = (value) => (value < 0 ? 0 : value > 255 ? 255 : Math.floor(value + 0.5));

/** Blend RGBA onto white, in place; alpha stays. */
export function layOnWhite(rgba) {
  for (let i = 3; i < rgba.length; i += 4) {
    const alpha = rgba[i];
    if (alpha === 255) continue;
    for (let c = i - 3; c < i; c++) rgba[c] = Math.round((rgba[c] * alpha + 255 * (255 - alpha)) / 255);
  }
  return rgba;
}

/**
 * The network's input: the image on white, resized to a square in bytes, first along rows, then
 * along columns, rounding after each, then normalised. The result is 3 × size × size.
 */
export function prepareInput(source, { img_size: size, mean, std }) {
  const { width, height } = source;
  const across = quantize(makeWindows(width, size));
  const down = quantize(makeWindows(height, size));
  const narrow = new Uint8Array(height * size * 3);
  for (const { top, bottom } of strips(source)) {
    const rgba = layOnWhite(source.rows(top, bottom).slice());
    for (let y = top; y < bottom; y++) resizeRow(rgba, 4 * (y - top) * width, across, narrow, 3 * y * size);
  }
  const input = new Float32Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    for (let i = 0; i < 3 * size; i++) {
      let sum = 0;
      for (let k = 0, at = 3 * size * down.first[y] + i; k < down.count; k++, at += 3 * size) {
        sum += down.weights[y * down.stride + k] * narrow[at];
      }
      const c = i % 3;
      input[c * size * size + y * size + (i - c) / 3] = (toByte(sum) / 255 - mean[c]) / std[c];
    }
  }
  return input;
}

function resizeRow(rgba, start, { first, count, stride, weights }, out, place) {
  for (let x = 0; x < first.length; x++) {
    let red = 0, green = 0, blue = 0;
    for (let k = 0, at = start + 4 * first[x]; k < count; k++, at += 4) {
      const weight = weights[x * stride + k];
      red += weight * rgba[at];
      green += weight * rgba[at + 1];
      blue += weight * rgba[at + 2];
    }
    out[place + 3 * x] = toByte(red);
    out[place + 3 * x + 1] = toByte(green);
    out[place + 3 * x + 2] = toByte(blue);
  }
}

/** Planes (float arrays) resized bilinearly, row by row. */
export class Stretched {
  constructor(planes, width, height, target) {
    Object.assign(this, { planes, width });
    this.across = makeWindows(width, target.width);
    this.down = makeWindows(height, target.height);
    this.mixed = planes.map(() => new Float32Array(width));
  }

  /** Go to a row of the target; `at` then gives its values. */
  go(y) {
    const { width, down } = this;
    this.planes.forEach((plane, i) => {
      const row = this.mixed[i].fill(0);
      for (let k = 0; k < down.count; k++) {
        const weight = down.weights[y * down.stride + k];
        const start = (down.first[y] + k) * width;
        if (weight) for (let x = 0; x < width; x++) row[x] += weight * plane[start + x];
      }
    });
  }

  at(i, x) {
    const { first, count, stride, weights } = this.across;
    const row = this.mixed[i];
    let sum = 0;
    for (let k = 0; k < count; k++) sum += weights[x * stride + k] * row[first[x] + k];
    return sum;
  }
}

/** A smaller image by box averaging, fed row by row. */
export class BoxShrink {
  constructor({ width, height }, side, planes) {
    const scale = Math.min(1, side / Math.max(width, height));
    this.width = Math.max(1, Math.round(width * scale));
    this.height = Math.max(1, Math.round(height * scale));
    this.column = Int32Array.from({ length: width }, (_, x) => place(x, width, this.width));
    this.line = Int32Array.from({ length: height }, (_, y) => place(y, height, this.height));
    this.planes = Array.from({ length: planes }, () => new Float64Array(this.width * this.height));
  }

  /** Add row `y` to a plane; `value(x)` gives its pixels. */
  add(plane, y, value) {
    const sums = this.planes[plane];
    const { column } = this;
    const start = this.line[y] * this.width;
    for (let x = 0; x < column.length; x++) sums[start + column[x]] += value(x);
  }

  /** The averaged planes. */
  finish() {
    const wide = new Float64Array(this.width), high = new Float64Array(this.height);
    for (const x of this.column) wide[x]++;
    for (const y of this.line) high[y]++;
    return this.planes.map((plane) =>
      Float32Array.from(plane, (sum, i) => sum / (wide[i % this.width] * high[Math.floor(i / this.width)])),
    );
  }
}

/** Which of `size` boxes holds position `i` of `length`; box k begins at ⌊k·scale + ½⌋. */
function place(i, length, size) {
  const scale = length / size;
  const k = Math.min(size - 1, Math.floor((i + 0.5) / scale));
  if (i < Math.floor(k * scale + 0.5)) return k - 1;
  return k + 1 < size && i >= Math.floor((k + 1) * scale + 0.5) ? k + 1 : k;
}
