// llama.cpp on one thread, through node-llama-cpp: node llama.mjs MODULES FILE.gguf TOKENS CONTEXT... -> one line of JSON
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [modules, file, tokens, ...contexts] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(found));
const processor = () => { const used = process.cpuUsage(); return (used.user + used.system) / 1e6; };

const start = processor();
const llama = await getLlama({build: "never", gpu: false, logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: file});
const took = {load_s: processor() - start, step_s: {}, prompt_s: {}};
for (const length of contexts.map(Number)) {
    const context = await model.createContext({contextSize: length + Number(tokens) + 16, threads: 1, flashAttention: true});
    const ids = Array.from({length}, (_, i) => (7919 * i + 11) % 49000);
    let since = processor(), count = 0;
    for await (const _ of context.getSequence().evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        if (count === 0) { took.prompt_s[length] = processor() - since; since = processor(); }
        if (++count > tokens) break;
    }
    took.step_s[length] = (processor() - since) / tokens;
    await context.dispose();
}
took.peak_bytes = process.resourceUsage().maxRSS * 1024;
console.log(JSON.stringify(took));
process.exit(0);
