// The network on ONNX Runtime Web: on WebGPU if available, else on the CPU.

const PAGE = new URL("../", import.meta.url); // the page's folder
const RUNTIMES = new URL("runtime/", PAGE).href;
const MOST_THREADS = 8; // more would slow down a network this small

/** The best runtime for this browser, by its name in model.json; `?runtime=` overrides it. */
async function pickRuntime() {
  const gpu = "Suspending" in WebAssembly ? "jspi" : "webgpu"; // the former is much smaller
  const asked = new URLSearchParams(self.location.search).get("runtime");
  if (asked) return asked === "webgpu" ? gpu : "wasm";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return "wasm";
  return (adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter) ? "wasm" : gpu;
}

/** A file's bytes; `tell` is called with the number of bytes in each part received. */
async function fetchBytes(path, tell) {
  const response = await fetch(new URL(path, PAGE));
  if (!response.ok) throw new Error(`${path}: the server returned ${response.status}`);
  const parts = [];
  for (let reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    tell(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export class Network {
  /** Load runtime and network; `tell` is called with the fraction received, from 0 to 1. */
  static async load(tell) {
    const response = await fetch(new URL("model.json", PAGE));
    if (!response.ok) throw new Error(`model.json: the server returned ${response.status}`);
    const about = await response.json();
    const name = await pickRuntime();
    const { module, wasm, bytes } = about.runtimes[name];
    const all = bytes + about.bytes;
    let arrived = 0;
    const count = (more) => tell((arrived += more) / all);
    const [binary, model, ort] = await Promise.all([
      fetchBytes(RUNTIMES + wasm, count),
      fetchBytes(about.file, count),
      import(RUNTIMES + module),
    ]);
    const threads = self.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = Math.min(MOST_THREADS, threads);
    ort.env.wasm.wasmPaths = RUNTIMES;
    ort.env.wasm.wasmBinary = binary;
    const network = new Network();
    const files = [module, wasm.replace(/wasm$/, "mjs"), wasm].map((file) => `runtime/${file}`);
    Object.assign(network, { ort, model, about, threads: ort.env.wasm.numThreads, files: [...files, about.file] });
    await network.start(name === "wasm" ? "wasm" : "webgpu");
    return network;
  }

  async start(provider) {
    try {
      // Threads that spin while waiting would compete for cores that other programs use too.
      const extra = { session: { intra_op: { allow_spinning: "0" } } };
      const options = { executionProviders: [provider], graphOptimizationLevel: "all", extra };
      this.session = await this.ort.InferenceSession.create(this.model, options);
      this.provider = provider;
    } catch (error) {
      if (provider === "wasm") throw error;
      await this.start("wasm");
    }
  }

  /** What the network runs on, in words. */
  get place() {
    if (this.provider === "webgpu") return "the GPU (WebGPU)";
    return this.threads > 1 ? `${this.threads} CPU threads` : "one CPU thread";
  }

  /** The map { values, size, milliseconds } of a prepared image 3×S×S. */
  async run(input) {
    const size = this.about.img_size;
    const tensor = new this.ort.Tensor("float32", input, [1, 3, size, size]);
    const start = performance.now();
    let values;
    try {
      const [name] = this.session.inputNames;
      const results = await this.session.run({ [name]: tensor });
      const maps = await results[this.session.outputNames[0]].getData();
      const offset = (this.about.object_map ?? 0) * size * size;
      values = maps.slice(offset, offset + size * size);
      if (!values.every(Number.isFinite)) throw new Error("the model's output is not finite");
    } catch (error) {
      if (this.provider === "wasm") throw error;
      await this.start("wasm"); // the GPU was lost, or lacks a feature
      return this.run(input);
    }
    return { values, size, milliseconds: performance.now() - start };
  }
}
