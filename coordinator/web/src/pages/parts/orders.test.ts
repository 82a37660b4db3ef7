import { describe, expect, it } from "vitest";

import type { OrderRow } from "../../lib/documents";
import { consequence, isWaiting, type OrderKind, readLeaf, withOrder } from "./orders";

const KINDS: OrderKind[] = ["pause", "resume", "finish", "revoke", "release", "reassign"];
const order = (order_id: string, outcome: string | null = null): OrderRow => ({
  order_id, kind: "pause", worker: "", reason: "", given_unix_s: 0, outcome,
});

it.each(KINDS)("says in sentences what %s does", (kind) => {
  const { verb, ask, then } = consequence(kind, "quiet-otter");
  expect(verb).not.toBe("");
  expect(ask).toMatch(/\?$/);
  expect(then.length).toBeGreaterThan(0);
  for (const sentence of then) expect(sentence).toMatch(/^[A-Z].*\.$/);
});

it("warns of what nothing brings back", () => {
  expect(KINDS.filter((kind) => consequence(kind).isFinal)).toEqual(["finish", "revoke"]);
});

describe("a typed leaf", () => {
  const known = new Set(["", "0", "1", "01"]);
  it.each([["root", ""], [" 01 ", "01"]])("%j is %j", (typed, path) => expect(readLeaf(typed, known)).toEqual({ path, wrong: "" }));
  it.each(["", "  ", "012", "11", "<b>"])("%j is none, and says why", (typed) => {
    const { path, wrong } = readLeaf(typed, known);
    expect(path).toBeNull();
    expect(wrong).toMatch(/\.$/);
  });
});

it("tells an order once, the newest first", () => {
  expect(withOrder([order("1")], order("2")).map((o) => o.order_id)).toEqual(["2", "1"]);
  expect(withOrder([order("2", "done")], order("2"))).toEqual([order("2", "done")]);
  expect([isWaiting(order("1")), isWaiting(order("1", "paused"))]).toEqual([true, false]);
});
