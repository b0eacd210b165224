// Masks as transformers.js makes them, in Node.js, without a network:
//
//   node background_removal.mjs PACKAGES FOLDER OUTPUT IMAGE …
//
// PACKAGES is a folder with node_modules/@huggingface/transformers, FOLDER one of
// save_pretrained(…, onnx=True); OUTPUT gets one RGBA image for each IMAGE.
import { createRequire } from "node:module";
import path from "node:path";

const [packages, folder, output, ...images] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(packages), "any.js"));
const { env, pipeline } = require("@huggingface/transformers");
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const removeBackground = await pipeline("background-removal", path.basename(folder));
for (const image of images) {
  const cutout = await removeBackground(image);
  await cutout.save(path.join(output, `${path.parse(image).name}.png`));
}
