/** Draws lanes of nodes over time on a canvas: which worker held each, what came of it, and what concerns the whole run. */

import type { Lane, Mark, Span } from "../../lib/documents";
import { LINES, type Shape, SHAPES } from "../../lib/marks";
import { box, MARKS, OUTCOMES, type Outcome, xOf } from "./lanes";
import { ticks, type Window } from "./window";

export const HEAD_PX = 44;
export const ROW_PX = 24;
const BAR_PX = 16;
const LEAST_TEXT_PX = 44;
/** Handovers nearer to each other are not told apart; their number stands beside the node. */
const TURN_PX = 8;

/** Colours as the canvas understands them, by the name of the property in `app.css`. */
export type Colour = (name: string) => string;

export interface Scene {
  lanes: readonly Lane[];
  marks: readonly Mark[];
  window: Window;
  now: number;
  widthPx: number;
  colour: Colour;
  font: string;
  time: (s: number) => string;
  nameOf: (worker: string) => string;
  /** What is pointed at. */
  lane: number | null;
  span: Span | null;
  mark: Mark | null;
}

const COLOURS: Record<Outcome, string> = {
  working: "--accent", accepted: "--good", expired: "--warn", rejected: "--bad", mixed: "--line-4",
};

/** The whole picture. */
export function draw(c: CanvasRenderingContext2D, scene: Scene): void {
  const height = HEAD_PX + scene.lanes.length * ROW_PX;
  c.clearRect(0, 0, scene.widthPx, height);
  c.textBaseline = "middle";
  c.font = scene.font;
  grid(c, scene, height);
  const fills = patterns(c, scene.colour);
  scene.lanes.forEach((lane, i) => {
    const y = HEAD_PX + i * ROW_PX;
    if (i === scene.lane) {
      c.fillStyle = scene.colour("--sunken");
      c.fillRect(0, y, scene.widthPx, ROW_PX);
    }
    idle(c, scene, y);
    bars(c, scene, lane, y, fills);
  });
  marks(c, scene, height);
}

function grid(c: CanvasRenderingContext2D, scene: Scene, height: number): void {
  c.lineWidth = 1;
  for (const at of ticks(scene.window, Math.max(2, Math.floor(scene.widthPx / 90)))) {
    const x = Math.round(xOf(at, scene.window, scene.widthPx)) + 0.5;
    c.strokeStyle = scene.colour("--line");
    line(c, x, HEAD_PX - 4, x, height);
    c.fillStyle = scene.colour("--ink-3");
    const text = scene.time(at);
    const room = c.measureText(text).width / 2;
    c.textAlign = "center";
    c.fillText(text, Math.min(Math.max(x, room), scene.widthPx - room), 9);
  }
}

/** The line on which nobody is: a gap between bars shows it. */
function idle(c: CanvasRenderingContext2D, scene: Scene, y: number): void {
  c.strokeStyle = scene.colour("--line-strong");
  c.setLineDash([1, 4]);
  const end = Math.min(scene.widthPx, xOf(scene.now, scene.window, scene.widthPx));
  line(c, 0, y + ROW_PX / 2 + 0.5, end, y + ROW_PX / 2 + 0.5);
  c.setLineDash([]);
}

function bars(c: CanvasRenderingContext2D, scene: Scene, lane: Lane, y: number, fills: Fills): void {
  const top = y + (ROW_PX - BAR_PX) / 2;
  let before: Span | null = null;
  let turned = -Infinity;
  for (const span of lane.spans) {
    const place = box(span, scene.window, scene.now, scene.widthPx);
    if (place) {
      bar(c, scene, span, place.x, top, place.width, fills);
      const isTurn = before !== null && before.worker !== span.worker && span.start_s >= scene.window.start;
      if (isTurn && place.x - turned >= TURN_PX) {
        handover(c, scene, place.x, y);
        turned = place.x;
      }
    }
    before = span;
  }
}

function bar(c: CanvasRenderingContext2D, scene: Scene, span: Span, x: number, y: number, width: number, fills: Fills): void {
  const name = COLOURS[span.outcome];
  const isPlain = span.outcome === "accepted";
  const inner = width > 3 ? width - 1 : width; // a hair of air, so that neighbours are told apart
  c.fillStyle = isPlain ? scene.colour(name) : scene.colour("--surface");
  c.fillRect(x, y, inner, BAR_PX);
  if (!isPlain) {
    c.fillStyle = fills[span.outcome];
    c.fillRect(x, y, inner, BAR_PX);
    if (inner > 3) {
      c.strokeStyle = scene.colour(name);
      c.lineWidth = 1.5;
      c.strokeRect(x + 0.75, y + 0.75, inner - 1.5, BAR_PX - 1.5);
    }
  }
  if (inner >= LEAST_TEXT_PX) label(c, scene, scene.nameOf(span.worker), x, y, inner, isPlain);
  if (span === scene.span) {
    c.strokeStyle = scene.colour("--ink");
    c.lineWidth = 2;
    c.strokeRect(x - 1, y - 2, inner + 2, BAR_PX + 4);
  }
}

function label(c: CanvasRenderingContext2D, scene: Scene, name: string, x: number, y: number, width: number, isPlain: boolean): void {
  const text = fitted(c, name, width - 10);
  if (!text) return;
  c.textAlign = "left";
  if (!isPlain) {
    c.fillStyle = scene.colour("--surface");
    c.fillRect(x + 3, y + 2, c.measureText(text).width + 4, BAR_PX - 4);
  }
  c.fillStyle = scene.colour(isPlain ? "--surface" : "--ink");
  c.fillText(text, x + 5, y + BAR_PX / 2 + 0.5);
}

/** As much of a text as fits, or nothing where that is too little to be of use. */
function fitted(c: CanvasRenderingContext2D, text: string, width: number): string {
  if (c.measureText(text).width <= width) return text;
  let n = Math.floor((text.length * width) / Math.max(1, c.measureText(text).width));
  while (n > 2 && c.measureText(`${text.slice(0, n)}…`).width > width) n -= 1;
  return n > 2 ? `${text.slice(0, n)}…` : "";
}

/** Where another worker took over. */
function handover(c: CanvasRenderingContext2D, scene: Scene, x: number, y: number): void {
  c.strokeStyle = scene.colour("--ink");
  c.lineWidth = 2;
  line(c, x, y + 1, x, y + ROW_PX - 1);
}

function marks(c: CanvasRenderingContext2D, scene: Scene, height: number): void {
  let [reached, isNarrow] = [-Infinity, false];
  for (const mark of scene.marks) {
    const x = Math.round(xOf(mark.at_s, scene.window, scene.widthPx)) + 0.5;
    if (x < -1 || x > scene.widthPx + 1) continue;
    const isPointed = mark === scene.mark;
    c.strokeStyle = scene.colour(MARKS[mark.kind].colour);
    c.globalAlpha = isPointed ? 1 : 0.55;
    c.lineWidth = isPointed ? 2 : 1;
    c.setLineDash(mark.kind === "router" ? [2, 3] : []);
    line(c, x, HEAD_PX - 10, x, height);
    c.setLineDash([]);
    c.globalAlpha = 1;
    isNarrow = x - reached < 14;
    if (isNarrow && !isPointed) continue;
    reached = x;
    glyph(c, MARKS[mark.kind].shape, scene.colour(MARKS[mark.kind].colour), Math.min(Math.max(x, 6), scene.widthPx - 6), HEAD_PX - 17);
  }
}

/** A mark of 12 by 12 pixels around a point. */
function glyph(c: CanvasRenderingContext2D, shape: Shape, colour: string, x: number, y: number): void {
  const path = new Path2D(SHAPES[shape]);
  c.save();
  c.translate(x - 6, y - 6);
  c.lineWidth = 1.8;
  c.lineCap = c.lineJoin = "round";
  c.strokeStyle = c.fillStyle = colour;
  if (LINES.has(shape)) c.stroke(path);
  else c.fill(path);
  c.restore();
}

function line(c: CanvasRenderingContext2D, x0: number, y0: number, x1: number, y1: number): void {
  c.beginPath();
  c.moveTo(x0, y0);
  c.lineTo(x1, y1);
  c.stroke();
}

type Fills = Record<Outcome, CanvasPattern | string>;

function patterns(c: CanvasRenderingContext2D, colour: Colour): Fills {
  const fills = {} as Fills;
  for (const { id, pattern } of OUTCOMES) fills[id] = tile(c, pattern, colour(COLOURS[id]));
  return fills;
}

/** A small picture that is repeated; the same as `Swatch.svelte` shows. */
function tile(c: CanvasRenderingContext2D, pattern: (typeof OUTCOMES)[number]["pattern"], colour: string): CanvasPattern | string {
  if (pattern === "plain") return colour;
  if (pattern === "open") return "transparent";
  const canvas = new OffscreenCanvas(6, 6);
  const t = canvas.getContext("2d")!;
  t.strokeStyle = t.fillStyle = colour;
  t.lineWidth = 1.6;
  const strokes = pattern === "slashes" ? SLASH : pattern === "crosses" ? [...SLASH, ...BACKSLASH] : [];
  for (const [x0, y0, x1, y1] of strokes) {
    t.beginPath();
    t.moveTo(x0, y0);
    t.lineTo(x1, y1);
    t.stroke();
  }
  if (pattern === "dots") t.fillRect(1, 1, 3, 3);
  return c.createPattern(canvas, "repeat") ?? colour;
}

const SLASH = [[-1, 7, 7, -1], [-1, 1, 1, -1], [5, 7, 7, 5]] as const;
const BACKSLASH = [[-1, -1, 7, 7], [-1, 5, 1, 7], [5, -1, 7, 1]] as const;
