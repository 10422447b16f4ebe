// examples/node_generate.mjs as a user runs it, once for each prompt.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const request = JSON.parse(readFileSync(0, "utf8"));
const script = fileURLToPath(new URL("../../../examples/node_generate.mjs", import.meta.url));
const generate = (ids) =>
  execFileSync(process.execPath, [script, request.folder, ids.join(","), request.new_tokens], { encoding: "utf8" });
const { version } = JSON.parse(readFileSync("node_modules/onnxruntime-node/package.json", "utf8"));
const result = {
  loaded: request.graph,
  single: request.prompt_ids.map((ids) => generate(ids).trim().split(",").map(Number)),
  versions: { "onnxruntime-node": version },
};
process.stdout.write(JSON.stringify(result));
