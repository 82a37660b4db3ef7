/** Lanes of nodes over time: where things are drawn, what lies under the pointer, and what changed hands. */

import type { Lane, Mark, Span } from "../../lib/documents";
import type { Shape } from "../../lib/marks";
import type { Window } from "./window";

export type Outcome = Span["outcome"];

/** How each outcome looks and is called; the pattern tells it where colours do not. */
export const OUTCOMES: readonly { id: Outcome; words: string; pattern: "plain" | "slashes" | "crosses" | "dots" | "open" }[] = [
  { id: "working", words: "under way", pattern: "open" },
  { id: "accepted", words: "accepted", pattern: "plain" },
  { id: "expired", words: "expired", pattern: "slashes" },
  { id: "rejected", words: "rejected", pattern: "crosses" },
  { id: "mixed", words: "several, too short to tell apart", pattern: "dots" },
];

/** How each mark looks, by the outlines of `marks.ts`, and is called. */
export const MARKS: Record<Mark["kind"], { shape: Shape; words: string; colour: string }> = {
  router: { shape: "diamond", words: "routers averaged", colour: "--ink-2" },
  topology: { shape: "square", words: "tree changed", colour: "--ink-2" },
  lost: { shape: "cross", words: "worker lost", colour: "--bad" },
  returned: { shape: "tick", words: "worker returned", colour: "--good" },
  paused: { shape: "bars", words: "paused", colour: "--warn" },
  resumed: { shape: "arrow", words: "resumed", colour: "--ink-2" },
  finished: { shape: "disc", words: "finished", colour: "--good" },
  out: { shape: "barred", words: "worker out", colour: "--bad" },
};

/** Where a moment lies, in pixels from the left edge of the window. */
export const xOf = (atS: number, window: Window, widthPx: number): number =>
  ((atS - window.start) / (window.end - window.start)) * widthPx;

/** Left edge and width of a span, cut to the window; at least a pixel wide. Null where it is out of sight. */
export function box(span: Span, window: Window, nowS: number, widthPx: number): { x: number; width: number } | null {
  const end = span.end_s ?? nowS;
  if (end < window.start || span.start_s > window.end) return null;
  const x = xOf(Math.max(span.start_s, window.start), window, widthPx);
  return { x, width: Math.max(1, xOf(Math.min(end, window.end), window, widthPx) - x) };
}

/** The span of a lane at a moment, or the nearest within `slackS` of it. */
export function spanAt(lane: Lane, atS: number, nowS: number, slackS: number): Span | null {
  let best: Span | null = null;
  let bestGap = slackS;
  for (const span of lane.spans) {
    const gap = Math.max(span.start_s - atS, atS - (span.end_s ?? nowS), 0);
    if (gap < bestGap || (gap === 0 && best === null)) [best, bestGap] = [span, gap];
    if (gap === 0) return span;
  }
  return best;
}

/** The nearest mark within `slackS`. */
export function markAt(marks: readonly Mark[], atS: number, slackS: number): Mark | null {
  let best: Mark | null = null;
  for (const mark of marks) {
    const gap = Math.abs(mark.at_s - atS);
    if (gap <= slackS && (!best || gap < Math.abs(best.at_s - atS))) best = mark;
  }
  return best;
}

export interface Churn {
  /** How often the node went from one worker to another. */
  handovers: number;
  /** How long nobody held it, in seconds, of the part of the window since somebody first did. */
  idleS: number;
  /** Workers that held it. */
  workers: number;
}

/** What changed hands on a lane within a window. */
export function churn(lane: Lane, window: Window, nowS: number): Churn {
  const spans = lane.spans.filter((span) => (span.end_s ?? nowS) >= window.start && span.start_s <= window.end);
  const ordered = spans.toSorted((a, b) => a.start_s - b.start_s);
  let [handovers, idleS, reached] = [0, 0, ordered[0] ? Math.max(ordered[0].start_s, window.start) : 0];
  ordered.forEach((span, i) => {
    if (i > 0 && ordered[i - 1]!.worker !== span.worker) handovers += 1;
    idleS += Math.max(0, span.start_s - reached);
    reached = Math.max(reached, Math.min(span.end_s ?? nowS, window.end));
  });
  if (ordered.length) idleS += Math.max(0, Math.min(window.end, nowS) - reached);
  return { handovers, idleS, workers: new Set(ordered.map((span) => span.worker)).size };
}

/** The span before or after one in its lane; the first or last in sight where there is none yet. */
export function neighbour(lane: Lane, span: Span | null, step: 1 | -1, window: Window, nowS: number): Span | null {
  const inSight = lane.spans.filter((other) => (other.end_s ?? nowS) >= window.start && other.start_s <= window.end);
  if (!inSight.length) return null;
  const at = span ? inSight.findIndex((other) => other.start_s === span.start_s && other.worker === span.worker) : -1;
  if (at < 0) return step > 0 ? inSight[0]! : inSight.at(-1)!;
  return inSight[Math.min(Math.max(at + step, 0), inSight.length - 1)]!;
}
