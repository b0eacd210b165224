// Refined edges, and the object's own colours: as in src/pictures/matting.py, which explains the
// method. Colours are planes of floats from 0 to 1.

export const COLOUR_SIDE = 512; // colours far from the edge are estimated at this size
export const REFINE_SIDE = 1024;
export const RADII = [6, 2, 1]; // of the later windows, at full size
const PRIOR = 0.003; // weight of the map against colours
const FREEDOM = [0.06, 1.2]; // of colours to move alpha off a map that is sure, or unsure

export const isMixed = (alpha) => alpha >= 0.5 / 255 && alpha < 1;
const clamp = (value, low = 0, high = 1) => (value < low ? low : value > high ? high : value);

/** Means over windows of 2·radius + 1 pixels, cut off at the border. */
export function boxMean(plane, width, height, radius) {
  const rows = new Float32Array(plane.length);
  for (let y = 0; y < height; y++) slide(plane, rows, y * width, 1, width, radius);
  const sums = new Float64Array(width);
  const out = new Float32Array(plane.length);
  const addRow = (y, sign) => {
    for (let x = 0, at = y * width; x < width; x++, at++) sums[x] += sign * rows[at];
  };
  for (let y = 0; y < Math.min(radius, height); y++) addRow(y, 1);
  for (let y = 0; y < height; y++) {
    if (y + radius < height) addRow(y + radius, 1);
    if (y > radius) addRow(y - radius - 1, -1);
    const count = Math.min(height, y + radius + 1) - Math.max(0, y - radius);
    for (let x = 0, at = y * width; x < width; x++, at++) out[at] = sums[x] / count;
  }
  return out;
}

function slide(plane, out, start, step, length, radius) {
  let sum = 0;
  for (let i = 0; i < Math.min(radius, length); i++) sum += plane[start + i * step];
  for (let i = 0; i < length; i++) {
    if (i + radius < length) sum += plane[start + (i + radius) * step];
    if (i > radius) sum -= plane[start + (i - radius - 1) * step];
    const count = Math.min(length, i + radius + 1) - Math.max(0, i - radius);
    out[start + i * step] = sum / count;
  }
}

/**
 * Colours of object and background, over shrinking windows: the mean of each, weighted by how much
 * of it is there, then corrected so that blending both gives the pixel.
 *
 * The first argument holds pixels, near and behind (three planes each) and alpha; `own`, if any, is
 * the image's own alpha: what it hides has no influence.
 */
export function fuse({ pixels, near, behind, alpha, own }, width, height, radii) {
  const size = alpha.length;
  const object = new Float32Array(size);
  const rest = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const visible = own ? own[i] : 1;
    object[i] = alpha[i] * visible;
    rest[i] = (1 - alpha[i]) * visible;
  }
  const weighted = new Float32Array(size);
  const mean = (plane, weight, amount, radius) => {
    for (let i = 0; i < size; i++) weighted[i] = plane[i] * weight[i];
    const means = boxMean(weighted, width, height, radius);
    for (let i = 0; i < size; i++) means[i] /= amount[i] + 1e-5;
    return means;
  };
  for (const radius of radii) {
    const amounts = [object, rest].map((weight) => boxMean(weight, width, height, radius));
    near = near.map((plane) => mean(plane, object, amounts[0], radius));
    behind = behind.map((plane) => mean(plane, rest, amounts[1], radius));
    for (let c = 0; c < 3; c++) {
      for (let i = 0; i < size; i++) {
        const a = alpha[i], b = 1 - a;
        const off = (pixels[c][i] - a * near[c][i] - b * behind[c][i]) / (a * a + b * b + 0.1);
        near[c][i] = clamp(near[c][i] + a * off);
        behind[c][i] = clamp(behind[c][i] + b * off);
      }
    }
  }
  return { near, behind };
}

/** The alpha whose blend of both colours comes closest to the pixel, and to the prior. */
export function placeBetween(pixel, near, behind, prior, doubt) {
  let along = doubt * prior, square = doubt;
  for (let c = 0; c < 3; c++) {
    const way = near[c] - behind[c];
    along += way * (pixel[c] - behind[c]);
    square += way * way;
  }
  return clamp(along / square);
}

/**
 * Around the outline of a map: the colours of object and background near each pixel (six planes),
 * how unreliable they are, and where this applies (a band of 0 and 1). Null if the map is sure.
 */
export function localColours(pixels, prior, width, height) {
  const radius = Math.max(2, Math.round(Math.max(width, height) / 140)); // maps are unsure that far
  const band = unsureBand(prior, width, height, radius);
  if (!band.includes(1)) return null;
  let level = prior, near, behind, doubt;
  for (let round = 0; round < 2; round++) {
    near = windowMean(pixels, certainty(level, false), width, height, radius);
    behind = windowMean(pixels, certainty(level, true), width, height, radius);
    doubt = new Float32Array(prior.length);
    const next = Float32Array.from(prior);
    const of = (planes, i) => [planes[0][i], planes[1][i], planes[2][i]];
    for (let i = 0; i < prior.length; i++) {
      const little = clamp(near.amount[i] / 0.01, 0.3) * clamp(behind.amount[i] / 0.05, 1e-3);
      const freedom = clamp((10 * prior[i] * (1 - prior[i])) ** 2, ...FREEDOM);
      doubt[i] = (PRIOR + near.variance[i] + behind.variance[i]) / (little * freedom);
      if (!band[i]) continue;
      next[i] = placeBetween(of(pixels, i), of(near.mean, i), of(behind.mean, i), prior[i], doubt[i]);
    }
    level = next;
  }
  return [...near.mean, ...behind.mean, doubt, band];
}

function certainty(level, inverted) {
  return level.map((value) => {
    const sure = inverted ? 1 - value : value;
    return clamp((sure - 0.7) / 0.3) + 1e-4 * sure;
  });
}

function windowMean(pixels, weight, width, height, radius) {
  const amount = boxMean(weight, width, height, radius);
  const over = (value) => {
    const sums = boxMean(weight.map((w, i) => w * value(i)), width, height, radius);
    return sums.map((sum, i) => sum / (amount[i] + 1e-9));
  };
  const mean = pixels.map((plane) => over((i) => plane[i]));
  const square = over((i) => pixels[0][i] ** 2 + pixels[1][i] ** 2 + pixels[2][i] ** 2);
  const variance = square.map((value, i) =>
    Math.max(0, value - mean[0][i] ** 2 - mean[1][i] ** 2 - mean[2][i] ** 2),
  );
  return { mean, amount, variance };
}

/** Where the map is unsure, and the pixels nearby. */
function unsureBand(alpha, width, height, radius) {
  const highest = extreme(alpha, width, height, radius, Math.max);
  const lowest = extreme(alpha, width, height, radius, Math.min);
  return highest.map((high, i) => (high > 0.04 && lowest[i] < 0.96 ? 1 : 0));
}

function extreme(plane, width, height, radius, pick) {
  const along = (from, at, step, length) => (_, start) => {
    const place = at(start);
    let best = from[start];
    const low = Math.max(-radius, -place), high = Math.min(radius, length - 1 - place);
    for (let k = low; k <= high; k++) best = pick(best, from[start + k * step]);
    return best;
  };
  const rows = plane.map(along(plane, (i) => i % width, 1, width));
  return rows.map(along(rows, (i) => Math.floor(i / width), width, height));
}
