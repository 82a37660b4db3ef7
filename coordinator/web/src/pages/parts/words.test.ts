import { expect, it } from "vitest";

import { reasonWords } from "./words";

it("says a reason in words, with its detail", () => {
  expect(reasonWords("exclusive_app", "game.exe")).toBe("a program runs that it makes way for: game.exe");
  expect(reasonWords("", "by hand")).toBe("by hand");
  expect(reasonWords("new_code")).toBe("new code");
  expect(reasonWords("")).toBe("");
});
