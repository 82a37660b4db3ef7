/** Commands for a bundle, and the run's numbers as one table. */

import type { Metric, Series } from "../../lib/documents";
import type { Cell } from "./csv";

/** What `tinylora --help` offers for a bundle. */
export const USES: readonly { command: string; does: string }[] = [
  { command: "tinylora verify bundle.safetensors", does: "checks structure, names, shapes, hashes and finite values" },
  { command: "tinylora inspect bundle.safetensors", does: "tells what is in it" },
  { command: 'tinylora generate bundle.safetensors --base PATH --prompt "Once"', does: "continues a text, routing every token" },
  { command: "tinylora eval bundle.safetensors --base PATH --data DIR", does: "measures its loss on your own files, beside the base's" },
  { command: "tinylora cut bundle.safetensors --rank 4 --out SMALL", does: "makes nested adapters smaller, without training" },
  { command: "tinylora mush bundle.safetensors --out ONE", does: "mixes several leaves into one adapter without routing" },
];

/** Of the run as a whole. */
export const METRICS: readonly Metric[] = ["loss", "train_loss", "tokens_per_s", "workers", "bytes_per_s", "progress", "entropy", "drift"];

/** One row per moment that any of the series has, one column per series; what a series lacks is left empty. */
export function seriesTable(all: readonly Series[]): { head: string[]; rows: Cell[][] } {
  const rows = new Map<number, Cell[]>();
  all.forEach((series, column) => {
    series.t.forEach((t, i) => {
      const row = rows.get(t) ?? new Array<Cell>(all.length).fill(null);
      row[column] = series.mean[i] ?? null;
      rows.set(t, row);
    });
  });
  const times = [...rows.keys()].sort((a, b) => a - b);
  return { head: ["clock_s", ...all.map((series) => series.metric)], rows: times.map((t) => [t, ...rows.get(t)!]) };
}
