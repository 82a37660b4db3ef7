import { describe, expect, it } from "vitest";

import type { Lane, Span } from "../../lib/documents";
import { box, churn, markAt, neighbour, spanAt, xOf } from "./lanes";

const span = (worker: string, start_s: number, end_s: number | null, outcome: Span["outcome"] = "accepted"): Span => ({
  worker, start_s, end_s, outcome, n_units: 1,
});
const lane: Lane = { path: "01", spans: [span("a", 10, 20), span("a", 20, 30), span("b", 45, 60, "expired"), span("c", 60, null, "working")] };
const window = { start: 0, end: 100 };

it("places moments", () => expect([xOf(0, window, 500), xOf(50, window, 500), xOf(100, window, 500)]).toEqual([0, 250, 500]));

it("cuts spans to the window, and draws open ones to now", () => {
  expect(box(lane.spans[0]!, window, 80, 100)).toEqual({ x: 10, width: 10 });
  expect(box(lane.spans[3]!, window, 80, 100)).toEqual({ x: 60, width: 20 });
  expect(box(lane.spans[0]!, { start: 15, end: 25 }, 80, 100)).toEqual({ x: 0, width: 50 });
  expect(box(lane.spans[0]!, { start: 21, end: 25 }, 80, 100)).toBeNull();
  expect(box(span("a", 50, 50), window, 80, 100)?.width).toBe(1);
});

it("finds what lies under the pointer as a slow search does", () => {
  expect(spanAt(lane, 15, 80, 0)?.worker).toBe("a");
  expect(spanAt(lane, 38, 80, 5)).toBeNull();
  expect(spanAt(lane, 42, 80, 5)?.worker).toBe("b");
  expect(spanAt(lane, 79, 80, 0)?.worker).toBe("c");
  const marks = [{ at_s: 10, kind: "router", text: "v1", count: 1 }, { at_s: 14, kind: "lost", text: "b", count: 1 }] as const;
  expect(markAt(marks, 13, 5)?.kind).toBe("lost");
  expect(markAt(marks, 30, 5)).toBeNull();
});

describe("churn", () => {
  it("counts hands and gaps", () => expect(churn(lane, window, 80)).toEqual({ handovers: 2, idleS: 15, workers: 3 }));
  it("counts the part in sight", () => expect(churn(lane, { start: 15, end: 50 }, 80)).toEqual({ handovers: 1, idleS: 15, workers: 2 }));
  it("of an empty lane is none", () => expect(churn({ path: "0", spans: [] }, window, 80)).toEqual({ handovers: 0, idleS: 0, workers: 0 }));
  it("counts the time since somebody left", () =>
    expect(churn({ path: "0", spans: [span("a", 10, 20)] }, window, 80)).toEqual({ handovers: 0, idleS: 60, workers: 1 }));
});

it("steps from span to span and stops at the ends", () => {
  const first = neighbour(lane, null, 1, window, 80);
  expect(first).toBe(lane.spans[0]);
  expect(neighbour(lane, first, -1, window, 80)).toBe(first);
  expect(neighbour(lane, first, 1, window, 80)).toBe(lane.spans[1]);
  expect(neighbour(lane, null, -1, window, 80)).toBe(lane.spans[3]);
  expect(neighbour({ path: "", spans: [] }, null, 1, window, 80)).toBeNull();
});
