import { expect, it } from "vitest";

import type { Lookup } from "../../lib/documents";
import { balance, evenLeaves, gatesBy, isDead, ordered, sureness, way } from "./shares";

const leaf = (path: string, mass: number) => ({ path, mass, data_notes: [] });

it("orders by mass or by path, and ties by path", () => {
  const leaves = [leaf("11", 0.2), leaf("00", 0.2), leaf("01", 0.6)];
  expect(ordered(leaves, "mass").map((l) => l.path)).toEqual(["01", "00", "11"]);
  expect(ordered(leaves, "path").map((l) => l.path)).toEqual(["00", "01", "11"]);
});

it("calls a leaf dead below a tenth of an equal share", () => {
  expect([isDead(0.0249, 4), isDead(0.025, 4), isDead(1, 1)]).toEqual([true, false, false]);
});

it("sets entropy against the most", () => {
  expect([balance(1.5, 3), balance(null, 3), balance(0, 0), balance(3.0001, 3)]).toEqual([0.5, null, null, 1]);
  expect(evenLeaves(3)).toBe(8);
});

it("tells how sure a gate is of its side", () => expect([sureness(0.9, "1"), sureness(0.9, "0")]).toEqual([0.9, expect.closeTo(0.1)]));

it("draws a way within its width, a step to the side at each gate", () => {
  const wents = ["1", "1", "1", "0", "1", "0", "0", "0", "0"] as const;
  const gates = wents.map((went, i) => ({ path: wents.slice(0, i).join(""), right: went === "1" ? 0.9 : 0.2, went }));
  const lookup: Lookup = { path: wents.join(""), n_tokens: 5, gates, leaves: [], router_version: 3 };
  for (const width of [300, 700]) {
    const { points, heightPx } = way(lookup, width, 40, 24);
    expect(points.map((p) => p.path)).toEqual([...gates.map((g) => g.path), lookup.path]);
    expect(points.every((p) => p.x >= 24 && p.x <= width - 24 && p.y <= heightPx - 24)).toBe(true);
    points.slice(1).forEach((p, i) => expect(Math.sign(p.x - points[i]!.x)).toBe(wents[i] === "1" ? 1 : -1));
  }
  expect(way({ ...lookup, path: "", gates: [] }, 300, 40, 24).points).toEqual([{ path: "", x: 150, y: 24, right: null, went: null }]);
});

it("orders gates from the root down, by accuracy or by unevenness, the unknown last", () => {
  const gate = (path: string, right: number | null, accuracy: number | null) => ({ path, right, accuracy, tau: null });
  const gates = [gate("1", 0.5, 0.9), gate("0", null, null), gate("", 0.9, 0.6), gate("00", 0.2, 0.55)];
  const paths = (order: "path" | "accuracy" | "split") => gatesBy(gates, order).map((g) => g.path || "root").join(" ");
  expect([paths("path"), paths("accuracy"), paths("split")]).toEqual(["root 0 1 00", "00 root 1 0", "root 00 1 0"]);
});
