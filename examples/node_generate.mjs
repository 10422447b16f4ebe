// Greedy generation from an exported folder in Node, with nothing but onnxruntime-node.
//
//   ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node
//   node node_generate.mjs gemma-tiny-fp32 2,404,1166,2722,968,2724,580,881 64
//
// Arguments: folder, prompt as token ids, tokens to generate. Prints the new token ids; any tokenizer makes them text.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// packages of the folder that this is started in
const { InferenceSession, Tensor } = createRequire(`${process.cwd()}/`)("onnxruntime-node");
const [folder, prompt, count] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(`${folder}/gemma_export.json`, "utf8"));
const graph = manifest.graphs.find(({ role }) => role === "main");
const { eos_token_id } = JSON.parse(readFileSync(`${folder}/generation_config.json`, "utf8"));
const stop = new Set([eos_token_id].flat());

const session = await InferenceSession.create(`${folder}/${graph.file}`);
const int64 = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

const arrays = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };
// the cache starts with no positions at all
let cache = {};
for (const state of graph.state) {
  const shape = state.shape.map((size) => ({ batch_size: 1, past_sequence_length: 0 })[size] ?? size);
  for (const name of state.past) {
    cache[name] = new Tensor(state.dtype, new arrays[state.dtype](), shape);
  }
}

let ids = prompt.split(",").map(Number);
let total = 0;
const tokens = [];
while (tokens.length < Number(count)) {
  total += ids.length;
  const output = await session.run({ input_ids: int64(ids), attention_mask: int64(Array(total).fill(1)), ...cache });
  const token = largest(output.logits);
  if (stop.has(token)) break;
  tokens.push(token);
  ids = [token];
  cache = Object.fromEntries(graph.state.flatMap((s) => s.past.map((past, i) => [past, output[s.present[i]]])));
}
console.log(tokens.join(","));

// the likeliest token after the last position: logits are [1, positions, vocabulary]
function largest({ data, dims, type }) {
  const row = data.subarray(data.length - dims[2]);
  // Node before 24 shows float16 as raw bits: flipping negative ones makes their order that of the numbers
  const ordered = type === "float16" && row instanceof Uint16Array ? row.map((b) => (b & 0x8000 ? ~b : b | 0x8000)) : row;
  return ordered.reduce((best, value, index) => (value > ordered[best] ? index : best), 0);
}
