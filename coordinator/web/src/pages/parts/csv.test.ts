import { describe, expect, it } from "vitest";

import { cell, csv } from "./csv";

describe("cell", () => {
  it.each(["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r\n=1", " =1", "＝1"])("defuses %j", (text) => {
    expect(cell(text).replace(/^"/, "")).toMatch(/^'/);
  });

  it.each([
    ["quiet-otter", "quiet-otter"],
    ["-12.5", "-12.5"],
    ['say "hi"', '"say ""hi"""'],
    ["a,b", '"a,b"'],
    ["two\nlines", '"two\nlines"'],
    ["", ""],
  ])("writes %j", (text, expected) => expect(cell(text)).toBe(expected));

  it("keeps numbers and leaves out what is none", () => {
    expect([-1.5, 0, Number.NaN, Number.POSITIVE_INFINITY, null, undefined, true].map(cell)).toEqual(
      ["-1.5", "0", "", "", "", "", "true"],
    );
  });
});

it("csv has a mark, a head and lines that end as RFC 4180 says", () => {
  expect(csv(["a", "b"], [["x", 1]])).toBe("\ufeffa,b\r\nx,1\r\n");
});
