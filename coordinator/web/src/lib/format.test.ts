import { describe, expect, it } from "vitest";

import * as format from "./format";

const plain = (text: string): string => text.replaceAll("\u00a0", " ").replaceAll("\u2212", "-");

describe("numbers", () => {
  it.each([
    [0, "0"], [7, "7"], [999, "999"], [999.6, "1.00k"], [1000, "1.00k"], [18_400, "18.4k"], [99_960, "100k"],
    [2_050_000, "2.05M"], [-1500, "-1.50k"], [0.25, "0.25"], [12.34, "12.3"],
  ])("writes %d with a unit of a thousand", (value, expected) => {
    expect(plain(format.compact(value))).toBe(expected);
  });

  it.each([
    [0, "0 B"], [1023, "1023 B"], [1024, "1.0 KiB"], [35_651_584, "34.0 MiB"], [1024 ** 3 * 200, "200 GiB"],
  ])("writes %d bytes", (value, expected) => {
    expect(plain(format.bytes(value))).toBe(expected);
  });

  it("writes signs, and none where nothing changed", () => {
    expect(plain(format.change(-0.0624))).toBe("-0.062");
    expect(plain(format.change(0.01))).toBe("+0.010");
    expect(format.change(-0.0001)).toBe("0.000");
  });

  it("writes shares as percent", () => {
    expect([0, 0.0004, 0.078, 0.9999, 1].map((share) => plain(format.percent(share)))).toEqual([
      "0 %", "0.04 %", "7.8 %", "100 %", "100 %",
    ]);
  });

  it("writes a dash for what is not known", () => {
    for (const write of [format.count, format.compact, format.bytes, format.loss, format.percent, format.duration]) {
      expect(write(null)).toBe(format.NONE);
      expect(write(Number.NaN)).toBe(format.NONE);
    }
  });
});

describe("times", () => {
  it.each([
    [0, "0 s"], [59.4, "59 s"], [60, "1 min"], [95, "1 min 35 s"], [2280, "38 min"], [3599, "1 h"],
    [6600, "1 h 50 min"], [7200, "2 h"], [86_399, "1 d"], [273_600, "3 d 4 h"],
  ])("writes %d seconds", (seconds, expected) => {
    expect(plain(format.duration(seconds))).toBe(expected);
  });

  it("writes the run's clock", () => {
    expect([45, 725, 7925, 267_120].map(format.clock)).toEqual(["0:45", "12:05", "2:12:05", "3d 02:12"]);
  });

  it("writes places on an axis of times", () => {
    expect([0, 30, 90, 720, 7200, 9000, 259_200, 190_800].map((s) => plain(format.clockTick(s)))).toEqual([
      "0 s", "30 s", "1:30", "12 min", "2 h", "2:30 h", "3 d", "2d 05h",
    ]);
  });

  it("writes how long ago", () => {
    expect([0.5, 12, 130, 7300, 200_000].map((s) => plain(format.ago(s)))).toEqual([
      "now", "12 s ago", "2 min ago", "2 h ago", "2 d ago",
    ]);
  });

  it("writes when the run ends, with the larger side of the range", () => {
    const now = new Date(2026, 10, 21, 20, 0);
    expect(plain(format.eta(6000, 4500, 8100, now))).toBe("21:40 ± 35 min");
    expect(plain(format.eta(6000, null, null, now))).toBe("21:40");
    expect(plain(format.eta(86_400, null, null, now))).toBe("Sun 20:00");
    expect(format.eta(null, null, null, now)).toBe(format.NONE);
  });
});

describe("names", () => {
  it("falls back on the id", () => {
    expect(format.workerName({ worker: "w-0123456789abcdef", name: "" })).toBe("w-0123456789…");
    expect(format.workerName({ worker: "w-0", name: "quiet-otter" })).toBe("quiet-otter");
  });

  it("spells the root in addresses", () => {
    expect([format.nodeHref(""), format.nodeHref("01")]).toEqual(["/node/root", "/node/01"]);
  });
});
