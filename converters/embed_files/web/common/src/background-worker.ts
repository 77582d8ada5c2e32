// The worker of a `BackgroundEncoder`: loads the engine and the artifact, and answers one request after another.
//
// It is a classic script that imports when asked to: LiteRT.js loads its WebAssembly by `importScripts`, which a worker
// that is a module does not have.

let encoder: Promise<import("./encoder.js").Encoder> | undefined;
let work = Promise.resolve();

const answers: import("./background.js").Answers = {
  async load(folder, options) {
    const module = await import("./encoder.js").catch((cause: unknown) => {
      throw new Error(`The engine in vendor/ cannot be loaded; make the site again with npm run build (${cause})`);
    });
    encoder = module.Encoder.load(folder, options);
    const { threads, checked } = await encoder;
    return { engine: module.ENGINE, threads, checked };
  },
  preprocess: async (image) => (await import("./preprocess.js")).preprocess(image),
  run: async (input) => (await encoder!).run(input),
};

addEventListener("message", ({ data: { id, name, given } }: MessageEvent<import("./background.js").Request>) => {
  const answer = answers[name] as (...given: unknown[]) => Promise<unknown>;
  work = work.then(async () => {
    try {
      postMessage({ id, value: await answer(...given) });
    } catch (error) {
      postMessage({ id, error: error instanceof Error ? error : new Error(String(error)) });
    }
  });
});
