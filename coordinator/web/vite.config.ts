import { fileURLToPath } from "node:url";

import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

import { sourcesHash } from "./sources.ts";

/** A coordinator or a replay to develop against: `DASHBOARD=http://127.0.0.1:8444 npm run dev`. */
const server = process.env["DASHBOARD"] ?? "http://127.0.0.1:8444";

export default defineConfig({
  plugins: [
    svelte({ configFile: false }),
    sourcesHash(fileURLToPath(new URL(".", import.meta.url))),
  ],
  build: {
    outDir: "../tinylora_coordinator/dashboard/static",
    emptyOutDir: true,
    manifest: "manifest.json", // which file loads which: the budget's test adds them up
    assetsInlineLimit: 0, // the page's policy allows no data: scripts, styles or fonts
    modulePreload: { polyfill: false },
    license: { fileName: "licenses.md" }, // of what is built in
    target: ["chrome123", "firefox128", "safari17.5"], // those that know light-dark()
  },
  ...(process.env["VITEST"] ? { resolve: { conditions: ["browser"] } } : {}),
  test: { environment: "./test-environment.ts" },
  server: { proxy: { "/api": server, "/lite": server, "/metrics": server } },
});
