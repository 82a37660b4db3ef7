import { describe, expect, it } from "vitest";

import { kept, LEAST_S, panned, readWindow, ticks, touches, writeWindow, zoomed } from "./window";

const NOW = 7200;
const read = (query: string, now = NOW) => readWindow((name) => new URLSearchParams(query).get(name) ?? "", now);

describe("zoom and pan", () => {
  it("keep the moment under the pointer", () => {
    const before = { start: 1000, end: 2000 };
    for (const [factor, at] of [[0.5, 0], [0.5, 0.3], [2, 0.5], [0.1, 1]] as const) {
      const after = zoomed(before, factor, at, NOW);
      expect(after.start + at * (after.end - after.start)).toBeCloseTo(1000 + at * 1000, 6);
      expect(after.end - after.start).toBeCloseTo(1000 * factor, 6);
    }
  });

  it("stay within the run, and no narrower than can be read", () => {
    expect(panned({ start: 0, end: 100 }, -1, NOW)).toEqual({ start: 0, end: 100 });
    expect(panned({ start: 7000, end: 7200 }, 5, NOW)).toEqual({ start: 7000, end: 7200 });
    expect(zoomed({ start: 0, end: 7200 }, 9, 0.5, NOW)).toEqual({ start: 0, end: 7200 });
    const least = zoomed({ start: 100, end: 112 }, 0.01, 0.5, NOW);
    expect(least.end - least.start).toBeCloseTo(LEAST_S, 9);
    expect(kept({ start: 5, end: 5 }, 0)).toEqual({ start: 0, end: LEAST_S });
  });
});

describe("the window in the URL", () => {
  it("comes back", () => {
    const fixed = read("from=100&to=400.5");
    expect(fixed).toEqual({ start: 100, end: 400.5, isLive: false });
    expect(writeWindow(fixed, false)).toEqual({ from: "100", to: "400.5", last: null });
    const live = read("last=600");
    expect(live).toEqual({ start: 6600, end: 7200, isLive: true });
    expect(writeWindow(live, true)).toEqual({ from: null, to: null, last: "600" });
  });

  it.each(["", "from=400&to=100", "from=x&to=y", "last=-5", "from=10", "last=NaN"])("shows the last hour for %j", (query) => {
    expect(read(query)).toEqual({ start: 3600, end: 7200, isLive: true });
  });

  it("shows all of a young run", () => expect(read("", 60)).toEqual({ start: 0, end: 60, isLive: true }));

  it("knows the present", () => {
    expect(touches({ start: 0, end: 7200 }, 7200)).toBe(true);
    expect(touches({ start: 0, end: 6000 }, 7200)).toBe(false);
  });
});

it("ticks are round, within the window, and not too many", () => {
  for (const window of [{ start: 3, end: 33 }, { start: 0, end: 7200 }, { start: 1e6, end: 4e6 }, { start: 0, end: 1e9 }]) {
    const all = ticks(window, 8);
    expect(all.length).toBeLessThanOrEqual(9);
    expect(all.length).toBeGreaterThanOrEqual(2);
    expect(all.every((at) => at >= window.start && at <= window.end)).toBe(true);
  }
  expect(ticks({ start: 0, end: 60 }, 6)).toEqual([0, 10, 20, 30, 40, 50, 60]);
});
