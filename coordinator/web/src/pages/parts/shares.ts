/** Routing in numbers: shares of leaves, what entropy they have, and how a text's way is drawn. */

import type { GateRow, LeafShare, Lookup } from "../../lib/documents";

export type Order = "mass" | "path";

/** A leaf with less than this part of an equal share is dead. */
export const DEAD_PART = 0.1;

/** Whether a leaf of so many gets next to no text. */
export const isDead = (mass: number, nLeaves: number): boolean => mass < DEAD_PART / Math.max(1, nLeaves);

/** The leaves in the order in which they are shown: the largest first, or by path. */
export function ordered(leaves: readonly LeafShare[], order: Order): LeafShare[] {
  const byPath = (a: LeafShare, b: LeafShare): number => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0);
  return leaves.toSorted(order === "path" ? byPath : (a, b) => b.mass - a.mass || byPath(a, b));
}

/** Entropy over the most possible; null where there is one leaf or nobody has measured. */
export function balance(entropyBits: number | null, maxBits: number): number | null {
  if (entropyBits === null || !maxBits) return null;
  return Math.min(1, Math.max(0, entropyBits / maxBits));
}

/** How many leaves of equal share would have this entropy. */
export const evenLeaves = (entropyBits: number): number => 2 ** entropyBits;

export interface Point {
  path: string;
  x: number;
  y: number;
  /** Probability of the right side; null at the leaf. */
  right: number | null;
  went: "0" | "1" | null;
}

/**
 * Where the nodes on a text's way are drawn: each a step below the last, to the side where it went.
 *
 * The steps are as wide as fits, at most 56 pixels, and the drawing is moved so that it begins at `padPx`.
 */
export function way(lookup: Lookup, widthPx: number, rowPx: number, padPx: number): { points: Point[]; heightPx: number } {
  let [at, low, high] = [0, -1, 1]; // the branch that was not taken is drawn, too
  const columns = [0];
  for (const gate of lookup.gates) {
    const next = at + (gate.went === "1" ? 1 : -1);
    [low, high, at] = [Math.min(low, next, at - 1), Math.max(high, next, at + 1), next];
    columns.push(next);
  }
  const step = Math.min(56, (widthPx - 2 * padPx) / Math.max(1, high - low));
  const left = (widthPx - (high - low) * step) / 2;
  const points = columns.map((column, i): Point => {
    const gate = lookup.gates[i];
    return {
      path: gate ? gate.path : lookup.path, x: left + (column - low) * step, y: padPx + i * rowPx,
      right: gate ? gate.right : null, went: gate ? gate.went : null,
    };
  });
  return { points, heightPx: 2 * padPx + Math.max(0, columns.length - 1) * rowPx };
}

/** How sure a gate is of the side that it chose. */
export const sureness = (right: number, went: "0" | "1"): number => (went === "1" ? right : 1 - right);

export type GateOrder = "path" | "accuracy" | "split";

/** The gates in the order in which they are shown; those of which nothing is known are last. */
export function gatesBy(gates: readonly GateRow[], order: GateOrder): GateRow[] {
  const key = (gate: GateRow): number => {
    if (order === "accuracy") return gate.accuracy ?? 2;
    if (order === "split") return gate.right === null ? 2 : -Math.abs(gate.right - 0.5);
    return gate.path.length; // from the root down
  };
  return gates.toSorted((a, b) => key(a) - key(b) || (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}
