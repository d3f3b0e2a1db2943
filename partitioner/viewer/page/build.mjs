// Bundles main.ts, style.css and index.html into ../page.html and allows exactly that script and that style.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const hash = (text) => `'sha256-${createHash("sha256").update(text, "utf8").digest("base64")}'`;

const bundle = async (entry) => {
  const result = await build({
    entryPoints: [here(entry)],
    bundle: true,
    write: false,
    format: "iife",
    target: "es2022",
    charset: "ascii",
    legalComments: "none",
    absWorkingDir: here("."),
  });
  return `\n${result.outputFiles[0].text}`;
};

const script = await bundle("main.ts");
const style = await bundle("style.css");
if (script.includes("</script") || style.includes("</style")) throw new Error("the bundle would end its own element");

const policy = [
  "default-src 'none'",
  `script-src ${hash(script)}`,
  `style-src ${hash(style)}`,
  "base-uri 'none'",
  "form-action 'none'",
].join("; ");

// Lets the tests see without Node whether page.html was built from the sources beside it.
const sources = readdirSync(here(".")).filter((name) => /\.(ts|css|html)$/.test(name)).sort();
const source = createHash("sha256");
for (const name of sources) source.update(`${name}\n`).update(readFileSync(here(name)));

const fill = (page, name, text) => page.replace(`{{${name}}}`, () => text);
let page = readFileSync(here("index.html"), "utf8");
for (const [name, text] of Object.entries({ policy, source: source.digest("hex"), style, script })) page = fill(page, name, text);
writeFileSync(here("../page.html"), page);
console.log(`page.html: ${(page.length / 1024).toFixed(0)} KiB`);
