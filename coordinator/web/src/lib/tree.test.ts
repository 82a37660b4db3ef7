import { describe, expect, it } from "vitest";

import { divergingStep, roundUp, sequentialStep } from "./colour";
import * as tree from "./tree";

/** A tree of which the leaves have these masses. */
function placesOf(leaves: Record<string, number | null>): tree.Places {
  const places = new Map<string, tree.Place>();
  for (const [leaf, mass] of Object.entries(leaves)) {
    for (const path of tree.wayTo(leaf)) {
      const known = places.get(path)?.mass ?? 0;
      places.set(path, { path, mass: mass === null ? null : known + mass });
    }
  }
  return places;
}

const FOUR = placesOf({ "00": 0.5, "01": 0.25, "10": 0.2, "11": 0.05 });
const all = (places: tree.Places): Set<string> => new Set([...places.keys()].filter((p) => tree.childrenOf(places, p).length));

describe("what is seen", () => {
  it("is everything where that is few", () => {
    expect(tree.visible(FOUR, "", tree.openNodes(FOUR, "", 100))).toEqual(["", "0", "00", "01", "1", "10", "11"]);
  });

  it("is what has the most mass where that is many", () => {
    expect(tree.visible(FOUR, "", tree.openNodes(FOUR, "", 5))).toEqual(["", "0", "00", "01", "1"]);
  });

  it("keeps to the reader's word", () => {
    const open = tree.openNodes(FOUR, "", 5, new Map([["0", false], ["1", true]]));
    expect(tree.visible(FOUR, "", open)).toEqual(["", "0", "1", "10", "11"]);
  });

  it("begins where it is told to", () => {
    expect(tree.visible(FOUR, "1", all(FOUR))).toEqual(["1", "10", "11"]);
    expect(tree.visible(FOUR, "111", all(FOUR))).toEqual([]);
  });
});

describe("icicle", () => {
  const options = { width: 1000, height: 400, top: "", open: all(FOUR) };
  const at = (cells: tree.Cell[], path: string): tree.Cell => cells.find((cell) => cell.path === path)!;

  it("is as wide as the masses", () => {
    const cells = tree.icicle(FOUR, options);
    expect(["00", "01", "10", "11"].map((path) => Math.round(at(cells, path).width))).toEqual([500, 250, 200, 50]);
    expect([at(cells, "0").x, at(cells, "1").x, at(cells, "").width]).toEqual([0, 750, 1000]);
  });

  it("fills the picture: every row has its parent's width, every leaf reaches the bottom", () => {
    const places = placesOf({ "000": 0.3, "001": 0.1, "01": 0.25, "10": 0.25, "11": 0.1 });
    const cells = tree.icicle(places, { ...options, open: all(places) });
    for (const cell of cells) {
      const children = tree.childrenOf(places, cell.path).map((path) => at(cells, path));
      if (!children.length) expect(cell.y + cell.height).toBeCloseTo(400);
      else expect(children.reduce((sum, child) => sum + child.width, 0)).toBeCloseTo(cell.width);
    }
  });

  it("gives a leaf without mass some width", () => {
    const places = placesOf({ "0": 1, "1": 0 });
    expect(at(tree.icicle(places, { ...options, open: all(places) }), "1").width).toBeCloseTo(tree.FLOOR, 0);
  });

  it("makes all leaves alike where nobody knows the masses, or on request", () => {
    const unknown = placesOf({ "00": null, "01": null, "1": null });
    const cells = tree.icicle(unknown, { ...options, open: all(unknown) });
    expect(at(cells, "1").width).toBe(333);
    expect(at(tree.icicle(FOUR, { ...options, isEqual: true }), "11").width).toBeCloseTo(250);
  });

  it("shows the way down to the node that fills it", () => {
    const cells = tree.icicle(FOUR, { ...options, top: "1" });
    expect(cells.map((cell) => [cell.path, cell.isAbove])).toEqual([["", true], ["1", false], ["10", false], ["11", false]]);
    expect(at(cells, "1").width).toBe(1000);
    expect(at(cells, "10").width).toBeCloseTo(800);
  });

  it("shows all of a thousand nodes", () => {
    const leaves: Record<string, number> = {};
    for (let i = 0; i < 512; i++) leaves[i.toString(2).padStart(9, "0")] = 1 / 512;
    const places = placesOf(leaves);
    expect(tree.icicle(places, { ...options, open: tree.openNodes(places, "", 2000) })).toHaveLength(1023);
  });
});

describe("tidy tree", () => {
  it("puts parents over the middle of their children", () => {
    const { dots, step } = tree.tidy(FOUR, { width: 800, height: 300, top: "", open: all(FOUR), margin: 20 });
    const x = new Map(dots.map((dot) => [dot.path, dot.x]));
    expect(step).toBe(200);
    expect(x.get("0")).toBeCloseTo((x.get("00")! + x.get("01")!) / 2);
    expect(dots.find((dot) => dot.path === "")!.y).toBe(20);
    expect(dots.find((dot) => dot.path === "11")!.y).toBe(280);
  });
});

describe("keys", () => {
  const seen = ["", "0", "00", "01", "1"];
  const isOpen = (path: string): boolean | null => (path === "1" ? false : path.length === 2 ? null : true);
  it.each<[string, string, tree.Step | null]>([
    ["ArrowDown", "", { kind: "go", path: "0" }],
    ["ArrowDown", "1", null],
    ["ArrowUp", "1", { kind: "go", path: "01" }],
    ["ArrowUp", "", null],
    ["Home", "01", { kind: "go", path: "" }],
    ["End", "0", { kind: "go", path: "1" }],
    ["ArrowRight", "0", { kind: "go", path: "00" }],
    ["ArrowRight", "1", { kind: "open", path: "1" }],
    ["ArrowRight", "00", null],
    ["ArrowLeft", "0", { kind: "close", path: "0" }],
    ["ArrowLeft", "01", { kind: "go", path: "0" }],
    ["ArrowLeft", "1", { kind: "go", path: "" }],
    ["x", "0", null],
  ])("%s at %s", (key, at, expected) => {
    expect(tree.stepOf(key, seen, at, isOpen)).toEqual(expected);
  });

  it("finds the path that is typed, or as much of it as there is", () => {
    expect(["0", "01", "0111", "x", ""].map((typed) => tree.typedPath(FOUR, typed))).toEqual(["0", "01", "01", null, null]);
  });
});

describe("search", () => {
  const nodes = [
    { path: "", holders: [] }, { path: "0", holders: ["w-1"] }, { path: "01", holders: ["w-2"] }, { path: "1", holders: ["w-1"] },
  ];
  const name = (worker: string): string => (worker === "w-1" ? "Quiet Otter" : "");
  it("looks for paths, names and ids", () => {
    expect(tree.search(nodes, name, "0").map((found) => found.path)).toEqual(["0", "01"]);
    expect(tree.search(nodes, name, "otter")).toEqual([{ path: "0", by: "Quiet Otter" }, { path: "1", by: "Quiet Otter" }]);
    expect(tree.search(nodes, name, "w-2").map((found) => found.path)).toEqual(["01"]);
    expect(tree.search(nodes, name, "root").map((found) => found.path)).toEqual([""]);
    expect(tree.search(nodes, name, " ")).toEqual([]);
  });
});

it("zooms as little as brings a node to sight", () => {
  expect(tree.zoomFor(FOUR, "11", 40, 1000)).toBe("");
  expect(tree.zoomFor(FOUR, "11", 100, 1000)).toBe("1");
});

describe("steps of scales", () => {
  it("are even around zero", () => {
    expect([-2, -0.5, 0, 0.5, 9].map((value) => divergingStep(value, 1))).toEqual([0, 2, 4, 6, 8]);
  });
  it("span what there is", () => {
    expect([0, 5, 10, 11].map((value) => sequentialStep(value, 0, 10))).toEqual([0, 4, 8, 8]);
    expect(sequentialStep(3, 3, 3)).toBe(0);
  });
  it("end at round numbers", () => {
    expect([0.43, 0.07, 1, 3, 0].map(roundUp).map((value) => Number(value.toFixed(6)))).toEqual([0.5, 0.1, 1, 5, 1]);
  });
});
