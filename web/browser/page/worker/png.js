// PNG, written row by row: a canvas would limit the size, and lose colours where alpha is low.

const SIGNATURE = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
const COLOUR_TYPES = { 1: 0, 3: 2, 4: 6 }; // grey, RGB, RGBA
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export class PngWriter {
  constructor(width, height, channels) {
    Object.assign(this, { width, channels });
    this.above = new Uint8Array(width * channels);
    const header = new Uint8Array(13);
    const view = new DataView(header.buffer);
    view.setUint32(0, width);
    view.setUint32(4, height);
    header.set([8, COLOUR_TYPES[channels], 0, 0, 0], 8);
    this.parts = [SIGNATURE, ...chunk("IHDR", header)];
    const deflate = new CompressionStream("deflate");
    this.writer = deflate.writable.getWriter();
    this.written = this.collect(deflate.readable.getReader());
  }

  /** Add whole rows of bytes. */
  async write(rows) {
    const length = this.width * this.channels;
    const count = rows.length / length;
    const out = new Uint8Array(count * (length + 1));
    for (let y = 0; y < count; y++) {
      const row = rows.subarray(y * length, (y + 1) * length);
      out[y * (length + 1)] = 4;
      filter(row, this.above, this.channels, out.subarray(y * (length + 1) + 1, (y + 1) * (length + 1)));
      this.above = row;
    }
    this.above = this.above.slice();
    await this.writer.write(out);
  }

  /** The file. */
  async finish() {
    await this.writer.close();
    await this.written;
    return new Blob([...this.parts, ...chunk("IEND", new Uint8Array(0))], { type: "image/png" });
  }

  async collect(reader) {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.parts.push(...chunk("IDAT", value));
    }
  }
}

/** The Paeth filter: bytes minus their prediction from left, above and above left. */
function filter(row, above, step, out) {
  for (let i = 0; i < row.length; i++) {
    const left = i < step ? 0 : row[i - step];
    const corner = i < step ? 0 : above[i - step];
    const up = above[i];
    const toLeft = Math.abs(up - corner);
    const toUp = Math.abs(left - corner);
    const toCorner = Math.abs(left + up - 2 * corner);
    const near = toLeft <= toUp && toLeft <= toCorner ? left : toUp <= toCorner ? up : corner;
    out[i] = row[i] - near;
  }
}

function chunk(name, data) {
  const head = new Uint8Array(8);
  new DataView(head.buffer).setUint32(0, data.length);
  head.set(new TextEncoder().encode(name), 4);
  let crc = ~0;
  for (const bytes of [head.subarray(4), data]) {
    for (let i = 0; i < bytes.length; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  }
  const tail = new Uint8Array(4);
  new DataView(tail.buffer).setUint32(0, ~crc >>> 0);
  return [head, data, tail];
}
