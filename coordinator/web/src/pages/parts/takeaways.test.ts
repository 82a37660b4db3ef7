import { expect, it } from "vitest";

import type { Metric, Series } from "../../lib/documents";
import { seriesTable } from "./takeaways";

const series = (metric: Metric, t: number[], mean: number[]): Series => ({ metric, node: null, bucket_s: 1, t, mean, low: mean, high: mean });

it("joins series by their moments", () => {
  expect(seriesTable([series("loss", [1, 3], [2.5, 2.25]), series("workers", [2, 3], [4, 5])])).toEqual({
    head: ["clock_s", "loss", "workers"], rows: [[1, 2.5, null], [2, null, 4], [3, 2.25, 5]],
  });
});
