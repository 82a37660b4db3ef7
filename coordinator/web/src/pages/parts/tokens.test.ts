import { expect, it } from "vitest";

import { readRequest, wholeCommand } from "./tokens";

const typed = { uses: "4", expires: "7d", tags: "lab, night  gpu", needsApproval: true };

it("reads what was typed", () =>
  expect(readRequest(typed)).toEqual({ request: { uses: 4, expires: "7d", tags: ["lab", "night", "gpu"], needs_approval: true }, wrong: "" }));

it.each([{ uses: "0" }, { uses: "4.5" }, { uses: "10001" }, { uses: "" }, { expires: "7" }, { expires: "0d" }, { expires: "a week" },
  { tags: "a b c d e f g h i" }, { tags: "x".repeat(41) }])("says what is wrong with %j", (change) => {
  const { request, wrong } = readRequest({ ...typed, ...change });
  expect(request).toBeNull();
  expect(wrong).toMatch(/\.$/);
});

it("puts the token before the command, once", () => {
  const whole = "TINYLORA_TOKEN=tl1.a.b.c tinylora-worker join https://x:8443 --data TEXTS";
  expect(wholeCommand({ token: "tl1.a.b.c", command: "tinylora-worker join https://x:8443 --data TEXTS" })).toBe(whole);
  expect(wholeCommand({ token: "tl1.a.b.c", command: whole })).toBe(whole);
});
