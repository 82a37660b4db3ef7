import { describe, expect, it } from "vitest";

import { fullWorker, type Worker } from "../../lib/documents";
import {
  COLUMNS, readChoice, reliability, rows, sorted, table, tally, toggled, visible, writeChoice,
} from "./workers-table";

const worker = (id: string, more: Partial<Worker> = {}): Worker => fullWorker({ worker: id, state: "working", ...more });

const read = (query: string) => readChoice((name) => new URLSearchParams(query).get(name) ?? "");
const usual = read("");
const ids = (workers: Worker[]) => workers.map((w) => w.worker).join(" ");

describe("the choice in the URL", () => {
  it.each(["", "q=otter&sort=-speed", "state=working,lost&columns=name,tags", "sort=name"])("comes back from %j", (query) => {
    const said = Object.entries(writeChoice(read(query))).filter((pair): pair is [string, string] => pair[1] !== null);
    expect(read(new URLSearchParams(said).toString())).toEqual(read(query));
  });

  it("leaves out what is usual", () => expect(Object.values(writeChoice(usual))).toEqual([null, null, null, null]));

  it("takes nonsense as not said", () => {
    expect(read("sort=-__proto__&state=dancing&columns=constructor")).toEqual(usual);
  });

  it("always shows the name", () => {
    expect(read("columns=gpu").columns).toEqual(["name", "gpu"]);
    expect(toggled(["name", "gpu"], "name")).toEqual(["name", "gpu"]);
    expect(toggled(["name", "gpu"], "state")).toEqual(["name", "state", "gpu"]);
  });

  it("begins with the largest number and the first text, and turns round", () => {
    const speed = sorted(usual, "speed");
    expect([speed.isDescending, sorted(speed, "speed").isDescending, sorted(usual, "gpu").isDescending]).toEqual([true, false, false]);
  });
});

describe("rows", () => {
  const some = [
    worker("w1", { name: "Zed", tokens_per_s: 5, gpu: "RTX 3060", node: "01" }),
    worker("w2", { name: "amy", state: "lost", tokens_per_s: null, tags: ["lab"] }),
    worker("w3", { name: "bob", state: "paused", reason: "battery", tokens_per_s: 9, node: "" }),
  ];

  it("sorts as a slow sort does, and puts what is not known last either way", () => {
    expect(ids(rows(some, sorted(usual, "speed")))).toBe("w3 w1 w2");
    expect(ids(rows(some, sorted(sorted(usual, "speed"), "speed")))).toBe("w1 w3 w2");
    expect(ids(rows(some, { ...usual, sort: "name" }))).toBe("w2 w3 w1");
    expect(ids(rows(some, usual))).toBe("w1 w3 w2");
  });

  it.each([["rtx", "w1"], ["BATTERY", "w3"], ["lab lost", "w2"], ["root", "w3"], ["nobody", ""]])("finds %j", (filter, found) => {
    expect(ids(rows(some, { ...usual, filter }))).toBe(found);
  });

  it("shows chosen states", () => expect(ids(rows(some, { ...usual, states: ["lost", "paused"] }))).toBe("w3 w2"));

  it("counts states", () => expect([...tally(some)]).toEqual([["working", 1], ["lost", 1], ["paused", 1]]));

  it("can show and sort a worker of whom nothing is known", () => {
    const bare = worker("w9");
    for (const column of COLUMNS) expect(ids(rows([bare], { ...usual, sort: column.id, filter: "w9" }))).toBe("w9");
    expect(reliability(bare)).toBeNull();
    expect(table([bare], COLUMNS.map((column) => column.id)).rows[0]).toContain("w9");
  });
});

it("reliability is the share of closed units", () => {
  expect(reliability(worker("w", { n_accepted: 8, n_rejected: 1, n_expired: 1 }))).toBe(0.8);
});

it("writes chosen columns alone, in full", () => {
  const made = table([worker("w1", { tokens_per_s: 812.25 })], ["name", "speed"]);
  expect(made).toEqual({ head: ["worker", "name", "tokens_per_s"], rows: [["w1", "", 812.25]] });
});

it("draws the rows in sight and a few beside them", () => {
  for (const [n, top, height] of [[200, 0, 400], [200, 3000, 400], [3, 0, 400], [0, 0, 400], [200, 9000, 400]] as const) {
    const { first, end } = visible(n, 40, top, height, 2);
    const inSight = Array.from({ length: n }, (_, i) => i).filter((i) => (i + 1) * 40 > top && i * 40 < top + height);
    expect(inSight.every((i) => i >= first && i < end)).toBe(true);
    expect(end - first).toBeLessThanOrEqual(Math.min(n, height / 40 + 6));
  }
});
