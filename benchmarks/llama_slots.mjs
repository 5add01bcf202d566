// llama.cpp's parallel slots on one thread, through node-llama-cpp: node llama_slots.mjs MODULES FILE.gguf WORK.json SLOTS
import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [modules, file, work, slots] = process.argv.slice(2);
const found = createRequire(`${modules}/`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(found));
const lines = JSON.parse(readFileSync(work, "utf-8"));
const most = (of) => Math.max(...lines.map(of));
const contextSize = most((line) => line.ids.length) + most((line) => line.tokens);

const llama = await getLlama({build: "never", gpu: false, logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize, sequences: Number(slots), threads: 1, flashAttention: true});
const before = process.cpuUsage();
const waiting = [...lines];
let tokens = 0;
await Promise.all(Array.from({length: Number(slots)}, async () => {
    const sequence = context.getSequence();
    for (let line; (line = waiting.shift());) {
        await sequence.clearHistory();
        let count = 0;
        const asked = {temperature: 0, yieldEogToken: line.least !== undefined};
        for await (const _ of sequence.evaluate(line.ids, asked))
            if (++count === line.tokens) break;
        tokens += count;
    }
}));
const used = process.cpuUsage(before);
console.log(JSON.stringify({s: (used.user + used.system) / 1e6, tokens, rows: Number(slots)}));
process.exit(0);
