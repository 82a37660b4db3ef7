/** A symbol, a colour and a word for every state: the symbol tells them apart without colour, the word to ears. */
import type { Node, Run, UpdateRow, Worker } from "./documents";

export type StateName = Node["state"] | Worker["state"] | Run["phase"] | UpdateRow["state"];

export type Shape =
  | "disc" | "ring" | "dots" | "bars" | "cross" | "floor" | "half" | "tick" | "diamond" | "arrow" | "barred" | "square"
  | "dash";

export type Tone = "good" | "warn" | "bad" | "plain" | "accent";

export interface Mark {
  readonly shape: Shape;
  readonly tone: Tone;
  readonly text: string;
}

const mark = (shape: Shape, tone: Tone, text: string): Mark => ({ shape, tone, text });

export const MARKS: Readonly<Record<StateName, Mark>> = {
  working: mark("disc", "good", "working"),
  waiting: mark("dots", "plain", "waiting"),
  paused: mark("bars", "warn", "paused"),
  lost: mark("cross", "bad", "lost"),
  unassigned: mark("floor", "plain", "unassigned"),
  pending: mark("half", "accent", "pending"),
  done: mark("tick", "good", "done"),
  router: mark("diamond", "plain", "router"),
  starting: mark("ring", "accent", "starting"),
  leaving: mark("arrow", "plain", "leaving"),
  finished: mark("tick", "good", "finished"),
  out: mark("barred", "bad", "out"),
  running: mark("disc", "good", "training"),
  stopping: mark("square", "warn", "stopping"),
  leased: mark("disc", "accent", "under way"),
  expired: mark("cross", "warn", "expired"),
  accepted: mark("tick", "good", "accepted"),
  dropped: mark("dash", "plain", "dropped"),
  rejected: mark("barred", "bad", "rejected"),
};

/** Outlines in a box of 12 by 12. Of those in `LINES` the outline is drawn, the others are filled. */
export const SHAPES: Readonly<Record<Shape, string>> = {
  disc: "M6 1.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 0 1 0-9z",
  ring: "M6 2a4 4 0 1 1 0 8a4 4 0 0 1 0-8z",
  dots: "M6 2a4 4 0 1 1 0 8a4 4 0 0 1 0-8z",
  bars: "M2.5 1.5h2.5v9H2.5zM7 1.5h2.5v9H7z",
  cross: "M2.5 2.5l7 7M9.5 2.5l-7 7",
  floor: "M1.5 9.5h9",
  half: "M6 1.5a4.5 4.5 0 0 1 0 9zM6 1.5v1.2a3.3 3.3 0 0 0 0 6.6v1.2a4.5 4.5 0 0 1 0-9z",
  tick: "M2 6.5l2.8 2.8L10 3",
  diamond: "M6 2l4 4l-4 4l-4-4z",
  arrow: "M1.5 6h8.5M6.8 2.8L10 6l-3.2 3.2",
  barred: "M6 2a4 4 0 1 1 0 8a4 4 0 0 1 0-8zM3.2 8.8l5.6-5.6",
  square: "M2 2h8v8H2z",
  dash: "M2 6h8",
};
export const LINES: ReadonlySet<Shape> = new Set<Shape>([
  "ring", "dots", "cross", "floor", "tick", "diamond", "arrow", "barred", "dash",
]);

/** A state's mark, and one for a state that is not known to this page. */
export const markOf = (state: string): Mark =>
  (MARKS as Readonly<Record<string, Mark>>)[state] ?? mark("ring", "plain", state.replaceAll("_", " "));
