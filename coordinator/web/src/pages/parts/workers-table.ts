/**
 * What the table of workers shows, and in which order: pure decisions, so that they can be tested without a page.
 *
 * Everything that a reader chose stands in the query string, in as few words as possible: what is at its default is left out.
 */

import type { Worker } from "../../lib/documents";
import { nodeName } from "../../lib/format";
import type { Cell } from "./csv";
import { reasonWords } from "./words";

export type StateName = Worker["state"];

export interface Column {
  id: string;
  label: string;
  /** What the column means, for who chooses columns. */
  about: string;
  isNumber: boolean;
  /** Whether it is shown until somebody chooses. */
  isUsual: boolean;
  /** What rows are sorted by; null sorts last in either direction. */
  key: (worker: Worker) => string | number | null;
  /** What the file gets. */
  cells: readonly (readonly [head: string, value: (worker: Worker) => Cell])[];
}

/** The states in the order in which people look for them. */
export const STATES: readonly StateName[] = [
  "working", "waiting", "paused", "lost", "starting", "leaving", "pending", "finished", "out",
];

/** Share of its closed units that were accepted, or null before there is one. */
export function reliability(worker: Worker): number | null {
  const accepted = worker.n_accepted;
  const closed = accepted + worker.n_rejected + worker.n_expired;
  return closed ? accepted / closed : null;
}

/** What a worker sorts under: its name, else the number made from its key. */
const called = (worker: Worker): string => worker.name || worker.worker;
const text = (value: string): string | null => (value ? value.toLocaleLowerCase("en") : null);
const traffic = (worker: Worker): number => worker.bytes_sent + worker.bytes_received;

export const COLUMNS: readonly Column[] = [
  {
    id: "name", label: "Worker", about: "The name that its owner chose, or the number made from its key.",
    isNumber: false, isUsual: true, key: (w) => text(called(w)),
    cells: [["worker", (w) => w.worker], ["name", (w) => w.name]],
  },
  {
    id: "state", label: "State", about: "What it does now, and why it does not work.",
    isNumber: false, isUsual: true, key: (w) => STATES.indexOf(w.state),
    cells: [["state", (w) => w.state], ["reason", (w) => w.reason], ["detail", (w) => w.detail]],
  },
  {
    id: "node", label: "Node", about: "The node of the tree that it trains.",
    isNumber: false, isUsual: true, key: (w) => (w.node === null ? null : nodeName(w.node)),
    cells: [["node", (w) => (w.node === null ? "" : nodeName(w.node))]],
  },
  {
    id: "gpu", label: "GPU", about: "Model of its device, as it reports; CPUs report none.",
    isNumber: false, isUsual: true, key: (w) => text(w.gpu), cells: [["gpu", (w) => w.gpu]],
  },
  {
    id: "memory", label: "Memory", about: "Memory of its device.",
    isNumber: true, isUsual: true, key: (w) => w.memory_bytes || null,
    cells: [["memory_bytes", (w) => w.memory_bytes || null]],
  },
  {
    id: "speed", label: "Speed", about: "Tokens per second that it trains, lately.",
    isNumber: true, isUsual: true, key: (w) => w.tokens_per_s,
    cells: [["tokens_per_s", (w) => w.tokens_per_s]],
  },
  {
    id: "sync", label: "Last sync", about: "Time since its latest update was accepted.",
    isNumber: true, isUsual: true, key: (w) => (w.last_accepted_s === null ? null : -w.last_accepted_s),
    cells: [["last_accepted_s", (w) => w.last_accepted_s]],
  },
  {
    id: "updates", label: "Accepted / rejected", about: "Updates that the run took, and those that it refused.",
    isNumber: true, isUsual: true, key: (w) => w.n_accepted,
    cells: [["accepted", (w) => w.n_accepted], ["rejected", (w) => w.n_rejected]],
  },
  {
    id: "traffic", label: "Traffic", about: "Payloads to it and from it, without protocol overhead.",
    isNumber: true, isUsual: true, key: traffic,
    cells: [["bytes_sent", (w) => w.bytes_sent], ["bytes_received", (w) => w.bytes_received]],
  },
  {
    id: "reliability", label: "Reliability", about: "Share of its units that came back and were accepted.",
    isNumber: true, isUsual: true, key: reliability, cells: [["reliability", reliability]],
  },
  {
    id: "tokens", label: "Tokens", about: "Tokens in all its accepted updates.",
    isNumber: true, isUsual: false, key: (w) => w.tokens, cells: [["tokens", (w) => w.tokens]],
  },
  {
    id: "expired", label: "Expired", about: "Units that it did not bring back in time.",
    isNumber: true, isUsual: false, key: (w) => w.n_expired, cells: [["expired", (w) => w.n_expired]],
  },
  {
    id: "lost", label: "Went away", about: "How often it went offline.",
    isNumber: true, isUsual: false, key: (w) => w.n_lost, cells: [["lost", (w) => w.n_lost]],
  },
  {
    id: "heard", label: "Heard", about: "Time since it last reported.",
    isNumber: true, isUsual: false, key: (w) => (w.heard_s === null ? null : -w.heard_s),
    cells: [["heard_s", (w) => w.heard_s]],
  },
  {
    id: "tags", label: "Tags", about: "Tags of the token that it came with.",
    isNumber: false, isUsual: false, key: (w) => text(w.tags.join(" ")), cells: [["tags", (w) => w.tags.join(" ")]],
  },
  {
    id: "note", label: "Its text", about: "What its owner says of the text that it trains on.",
    isNumber: false, isUsual: false, key: (w) => text(w.data_note), cells: [["data_note", (w) => w.data_note]],
  },
];

/** What is left of the columns on a narrow screen. */
export const NARROW: readonly string[] = ["name", "state", "node"];

const USUAL = COLUMNS.filter((column) => column.isUsual).map((column) => column.id);
const KNOWN = new Map(COLUMNS.map((column) => [column.id, column]));

/** What a reader chose. */
export interface Choice {
  /** Words that all must occur in the worker's texts. */
  filter: string;
  /** States to show; none means all. */
  states: readonly StateName[];
  sort: string;
  isDescending: boolean;
  /** Columns, in the table's order. */
  columns: readonly string[];
}

/** The choice that a query string holds; what makes no sense is taken as not said. */
export function readChoice(word: (name: string) => string): Choice {
  const sort = word("sort");
  const id = sort.replace(/^-/, "");
  const said = word("columns").split(",");
  const columns = COLUMNS.filter((column) => said.includes(column.id)).map((column) => column.id);
  return {
    filter: word("q").slice(0, 200),
    states: STATES.filter((state) => word("state").split(",").includes(state)),
    sort: KNOWN.has(id) ? id : "state",
    isDescending: KNOWN.has(id) && sort.startsWith("-"),
    columns: columns.length ? withName(columns) : USUAL,
  };
}

/** The query that `readChoice` makes the same choice of; null where a word is left out. */
export function writeChoice(choice: Choice): Record<string, string | null> {
  const isUsualOrder = choice.sort === "state" && !choice.isDescending;
  return {
    q: choice.filter || null,
    state: choice.states.join(",") || null,
    sort: isUsualOrder ? null : `${choice.isDescending ? "-" : ""}${choice.sort}`,
    columns: choice.columns.join() === USUAL.join() ? null : choice.columns.join(","),
  };
}

function withName(columns: readonly string[]): string[] {
  return columns.includes("name") ? [...columns] : ["name", ...columns];
}

/** The columns after one was shown or hidden; the name always stays. */
export function toggled(columns: readonly string[], id: string): string[] {
  const wanted = columns.includes(id) ? columns.filter((other) => other !== id) : [...columns, id];
  return COLUMNS.filter((column) => column.id === "name" || wanted.includes(column.id)).map((column) => column.id);
}

/** The choice after a head was pressed: numbers begin with the largest, texts with the first. */
export function sorted(choice: Choice, id: string): Choice {
  const isSame = choice.sort === id;
  return { ...choice, sort: id, isDescending: isSame ? !choice.isDescending : (KNOWN.get(id)?.isNumber ?? false) };
}

function haystack(worker: Worker): string {
  const parts = [
    worker.worker, worker.name, worker.state, reasonWords(worker.reason, worker.detail),
    worker.node === null ? "" : nodeName(worker.node),
    worker.gpu, ...worker.tags, worker.data_note,
  ];
  return parts.join("\n").toLocaleLowerCase("en");
}

/** The rows to show, in order; workers that sort the same keep the order of their names, then of their numbers. */
export function rows(workers: Iterable<Worker>, choice: Choice): Worker[] {
  const words = choice.filter.toLocaleLowerCase("en").split(/\s+/).filter(Boolean);
  const isShown = (worker: Worker): boolean => {
    if (choice.states.length && !choice.states.includes(worker.state)) return false;
    if (!words.length) return true;
    const hay = haystack(worker);
    return words.every((word) => hay.includes(word));
  };
  const key = (KNOWN.get(choice.sort) ?? COLUMNS[0]!).key;
  const keyed = [...workers].filter(isShown).map((worker) => ({ worker, key: key(worker), name: text(called(worker)) }));
  const sign = choice.isDescending ? -1 : 1;
  keyed.sort((a, b) => compare(a.key, b.key, sign) || compare(a.name, b.name, 1) || compare(a.worker.worker, b.worker.worker, 1));
  return keyed.map((row) => row.worker);
}

function compare(a: string | number | null, b: string | number | null, sign: number): number {
  if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
  return a === b ? 0 : a < b ? -sign : sign;
}

/** How many workers are in each state. */
export function tally(workers: Iterable<Worker>): Map<StateName, number> {
  const counts = new Map<StateName, number>();
  for (const worker of workers) counts.set(worker.state, (counts.get(worker.state) ?? 0) + 1);
  return counts;
}

/** Head and rows of the file: each chosen column in full precision, in the units that its head names. */
export function table(workers: readonly Worker[], columns: readonly string[]): { head: string[]; rows: Cell[][] } {
  const cells = COLUMNS.filter((column) => columns.includes(column.id)).flatMap((column) => column.cells);
  return { head: cells.map(([head]) => head), rows: workers.map((worker) => cells.map(([, value]) => value(worker))) };
}

/** Which rows a table of rows of equal height has to draw. */
export function visible(n: number, rowPx: number, topPx: number, heightPx: number, spare = 6): { first: number; end: number } {
  const first = Math.min(Math.max(0, Math.floor(topPx / rowPx) - spare), Math.max(0, n - 1));
  return { first, end: Math.min(n, Math.ceil((topPx + heightPx) / rowPx) + spare) };
}
