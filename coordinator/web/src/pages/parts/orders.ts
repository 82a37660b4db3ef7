/** What the operator can order, with its consequences in words; and how far the orders are. */

import type { OrderRequest, OrderRow } from "../../lib/documents";

export type OrderKind = OrderRequest["kind"];

export interface Consequence {
  /** On the button that asks for it. */
  verb: string;
  /** Head of the question. */
  ask: string;
  /** What happens then, sentence by sentence. */
  then: readonly string[];
  /** Whether nothing brings it back. */
  isFinal: boolean;
}

/** What an order does; `who` is the worker's name, where one is concerned. */
export function consequence(kind: OrderKind, who = "this worker"): Consequence {
  switch (kind) {
    case "pause":
      return {
        verb: "Pause the run", ask: "Pause the run?", isFinal: false,
        then: ["No more units are given out.", "Units under way may come back, and count.", "Workers stay connected and wait until you resume."],
      };
    case "resume":
      return { verb: "Resume the run", ask: "Resume the run?", isFinal: false, then: ["Units are given out again, within seconds."] };
    case "finish":
      return {
        verb: "Finish the run", ask: "Finish the run now?", isFinal: true,
        then: ["The run ends with what there is: no more units are given out, and workers go home.", "Its bundle is written and published."],
      };
    case "revoke":
      return {
        verb: "Revoke", ask: `Revoke ${who}?`, isFinal: true,
        then: [
          "It gets no more work, and its key opens nothing any more.",
          "What it taught the routers is subtracted exactly.",
          "Nodes that it trained fall back to the last version without it, its own leaf to the path above.",
        ],
      };
    case "release":
      return {
        verb: "Release its lease", ask: `Release the lease of ${who}?`, isFinal: false,
        then: ["Its unit is taken back at once and goes to somebody else; the steps done on it since it was leased are lost.", "The worker stays, and may ask for another unit."],
      };
    case "reassign":
      return {
        verb: "Reassign", ask: `Reassign ${who}?`, isFinal: false,
        then: [
          "It holds the leaf that you name from now on.",
          "A unit under way is given back and goes to others; the steps done on it are lost.",
        ],
      };
  }
}

const PATH = /^[01]{1,32}$/;

/** The path that an operator typed, or why it is none. */
export function readLeaf(typed: string, known: ReadonlySet<string>): { path: string; wrong: "" } | { path: null; wrong: string } {
  const text = typed.trim();
  const path = text === "root" ? "" : text;
  if (!text) return { path: null, wrong: "Type a leaf: a path of 0 and 1." };
  if (path && !PATH.test(path)) return { path: null, wrong: `“${text.slice(0, 40)}” is no leaf; a path has only 0 and 1, such as 0110.` };
  if (known.size && !known.has(path)) return { path: null, wrong: `The tree has no leaf ${text}; only leaves are given by hand.` };
  return { path, wrong: "" };
}

/** Whether an order waits for the rounds. */
export const isWaiting = (order: OrderRow): boolean => order.outcome === null;

/** Orders with one that was just given, without telling any twice; the newest first. */
export function withOrder(orders: readonly OrderRow[], given: OrderRow): OrderRow[] {
  return orders.some((order) => order.order_id === given.order_id) ? [...orders] : [given, ...orders];
}
