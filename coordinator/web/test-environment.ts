/** Tests run in Node, but of Svelte they get what runs in browsers: a state whose readers are told of changes. */
import type { Environment } from "vitest/environments";

const environment: Environment = {
  name: "client",
  viteEnvironment: "client",
  setup: () => ({ teardown: () => undefined }),
};

export default environment;
