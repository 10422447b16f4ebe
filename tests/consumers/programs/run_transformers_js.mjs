// transformers.js in Node: single prompts, then all of them as one left-padded batch. Local files only.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, basename } from "node:path";

const request = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(`${process.cwd()}/`);
const { AutoModelForCausalLM, AutoTokenizer, env } = require("@huggingface/transformers");
env.allowRemoteModels = false;
env.localModelPath = dirname(request.folder);
const name = basename(request.folder);

// no dtype, no file name: config.json says both
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
tokenizer.padding_side = "left";

async function generate(prompts) {
  const inputs = tokenizer(prompts, { padding: true });
  const output = await model.generate({ ...inputs, max_new_tokens: request.new_tokens, do_sample: false });
  return output.tolist().map((row) => row.slice(inputs.input_ids.dims[1]).map(Number));
}

const encode = (texts) => texts.map((text) => tokenizer.encode(text));
const single = [];
for (const prompt of request.prompts) single.push((await generate([prompt]))[0]);
const result = {
  loaded: `model${{ fp32: "", fp16: "_fp16" }[model.sessions.model.config.dtype]}.onnx`,
  prompt_ids: encode(request.prompts),
  tokenized: encode(request.texts),
  single,
  batch: await generate(request.prompts),
  versions: { "@huggingface/transformers": env.version, "onnxruntime-node": version("onnxruntime-node") },
};
process.stdout.write(JSON.stringify(result));

function version(name) {
  return JSON.parse(readFileSync(`${process.cwd()}/node_modules/${name}/package.json`, "utf8")).version;
}
