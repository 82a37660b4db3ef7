import { expect, it } from "vitest";

import type { StateSpan } from "../../lib/documents";
import { bandWindow, pieces, sums } from "./bands";

const span = (state: StateSpan["state"], start_s: number, end_s: number | null): StateSpan => ({ state, reason: "", start_s, end_s });
const spans = [span("working", 100, 150), span("paused", 150, 180), span("working", 180, null)];

it("reaches from the first state to now", () => {
  expect(bandWindow(spans, 200)).toEqual({ start: 100, end: 200 });
  expect(bandWindow([], 200)).toEqual({ start: 199, end: 200 });
});

it("is filled without gap or overlap by states that follow on", () => {
  const all = pieces(spans, bandWindow(spans, 200), 200);
  expect(all.map(({ left, width }) => [left, width])).toEqual([[0, 0.5], [0.5, expect.closeTo(0.3)], [0.8, expect.closeTo(0.2)]]);
  expect(sums(all)).toEqual([["working", 70], ["paused", 30]]);
});
