import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

/** A coordinator or a replay to develop against: `DASHBOARD=http://127.0.0.1:8444 npm run dev`. */
const server = process.env["DASHBOARD"] ?? "http://127.0.0.1:8444";

export default defineConfig({
  plugins: [svelte()],
  build: {
    outDir: "../tinylora_coordinator/dashboard/static",
    emptyOutDir: true,
    target: ["chrome123", "firefox128", "safari17.5"], // those that know light-dark()
    assetsInlineLimit: 0, // the page's policy allows no data: scripts, styles or fonts
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": server } },
});
