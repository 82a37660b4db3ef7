import { describe, expect, it } from "vitest";

import { along, between, tokensUntil } from "./axis";
import { columnsOf, lineOf, summary } from "./chart";
import { fullSeries } from "./documents";

describe("another axis", () => {
  it("goes straight between what is known", () => {
    const place = between([0, 10, 20], [0, 100, 400]);
    expect([-1, 0, 5, 10, 15, 20, 99].map(place)).toEqual([0, 0, 50, 100, 250, 400, 400]);
    expect(between([], [])(3)).toBe(0);
  });

  it("adds up what was trained, so that it ends at the total", () => {
    const rate = fullSeries({ metric: "tokens_per_s", bucket_s: 10, t: [5, 15, 35], mean: [2, 4, 1] });
    const until = tokensUntil(rate, 100);
    // 20, 40, nothing, and 10 tokens; 30 came before the first bucket
    expect([0, 10, 20, 25, 30, 35, 40].map(until)).toEqual([30, 50, 90, 90, 90, 95, 100]);
  });

  it("makes one point of those that fall together", () => {
    const line = { label: "l", colour: "--line-1", t: [1, 2, 3], mean: [10, 20, 30] };
    expect(along(line, (t) => (t < 3 ? 0 : 7))).toMatchObject({ t: [0, 7], mean: [20, 30] });
  });
});

describe("charts", () => {
  const one = lineOf(fullSeries({ metric: "loss", t: [1, 3], mean: [4, 2] }), "held-out", "--line-1");
  const two = lineOf(fullSeries({ metric: "loss", t: [2, 3], mean: [7, 6], low: [5, 5], high: [8, 8] }), "training", "--line-2");

  it("stand on common times, empty where a line has nothing", () => {
    expect(columnsOf([one, two])).toEqual([
      [1, 2, 3], [4, null, 2], [4, null, 2], [4, null, 2], [null, 7, 6], [null, 5, 5], [null, 8, 8],
    ]);
  });

  it("can be told in a sentence", () => {
    expect(summary("Loss", [one, two], String, (t) => `${t} s`)).toBe(
      "Loss, 1 s to 3 s. held-out: from 4 to 2, between 2 and 4. training: from 7 to 6, between 6 and 7.",
    );
    expect(summary("Loss", [], String, String)).toBe("Loss: nothing yet.");
  });
});
