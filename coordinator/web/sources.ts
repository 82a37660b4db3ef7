/** One hash over everything the built page is made of, so that tests can tell stale files without Node.
 *
 * `tests/dashboard/test_built_page.py` counts the same way: of every source, by path, its path and its SHA-256.
 */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

import type { Plugin } from "vite";

const FILES = ["index.html", "openapi.json", "package-lock.json", "sources.ts", "tsconfig.json", "vite.config.ts"];
const FOLDERS = ["public", "src"];

/** What is built: all but tests, and types, which are made of openapi.json. */
const isSource = (path: string): boolean => !path.endsWith(".test.ts") && path !== "src/lib/schema.d.ts";

function filesIn(root: string, folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = `${folder}/${entry.name}`;
    return entry.isDirectory() ? filesIn(root, path) : entry.isFile() ? [path] : [];
  });
}

const sha256 = (content: string | Buffer): string => createHash("sha256").update(content).digest("hex");

export function hashOfSources(root: string): string {
  const paths = [...FILES, ...FOLDERS.flatMap((folder) => filesIn(root, folder))].filter(isSource).sort();
  return sha256(paths.map((path) => `${path}\0${sha256(readFileSync(join(root, path)))}\n`).join(""));
}

/** Writes that hash beside the built files. */
export function sourcesHash(root: string): Plugin {
  return {
    name: "sources-hash",
    apply: "build",
    generateBundle() {
      this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${hashOfSources(root)}\n` });
    },
  };
}
